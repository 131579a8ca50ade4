"""Install the package into empty environments, as a user does, and call its commands in an empty folder.

For every Python interpreter that is given (default: every python3.11 and newer in PATH) the newest releases of all
dependencies are installed except torch, which stays at the version of requirements.lock; --locked installs the lock
instead. Prints where the versions differ from the lock. Needs a package registry. Exit code 1 when a step fails.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
MINORS = range(11, 20)
COMMANDS = (
    ("afintro", "--help"),
    ("afintro", "fit", "--config", "configs/steering.yaml", "--help"),
    ("afintro-check-environment", "--config", "configs/context_ablation.yaml"),
    ("afintro-generate-context-ablation", "--help"),
    ("afintro-import-pairs", "--help"),
    ("afintro-generate-steering-data", "--help"),
    ("afintro-export-adapter", "--help"),
)
FIT = (
    ("afintro", "fit", "--config", "configs/context_ablation.yaml", "--config", "configs/debug.yaml"),
    ("afintro", "validate", "--config", "configs/context_ablation.yaml", "--config", "configs/debug.yaml", "--ckpt_path", "best"),
)  # fmt: skip


def locked() -> dict[str, str]:
    """Return the pinned version of every package of the lock, by its normalized name."""
    lines = [line.partition("==") for line in LOCK.read_text().splitlines() if "==" in line]
    return {normalized(name): version for name, _, version in lines}


def normalized(name: str) -> str:
    """Return a package's name as registries compare it."""
    return name.strip().lower().replace("_", "-").replace(".", "-")


def interpreters() -> list[str]:
    """Return every supported Python interpreter in PATH."""
    return [f"python3.{minor}" for minor in MINORS if shutil.which(f"python3.{minor}")]


def install(python: str, environment: Path, use_lock: bool) -> None:
    """Make an environment and install the package of this source tree into it.

    Args:
        python: The interpreter.
        environment: Folder of the environment.
        use_lock: Install the versions of the lock instead of the newest releases.

    Raises:
        subprocess.CalledProcessError: A step failed.
    """
    subprocess.run([python, "-m", "venv", str(environment)], check=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = environment / "constraints.txt"
    lines = [line for line in LOCK.read_text().splitlines() if use_lock or line.startswith("torch==")]
    constraints.write_text("\n".join(lines) + "\n")
    torch = next(line for line in lines if line.startswith("torch=="))
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "--constraint", str(constraints), str(ROOT)], check=True)


def show_differences(environment: Path) -> None:
    """Print every installed package whose version differs from the lock."""
    python = str(environment / "bin" / "python")
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    pinned = locked()
    for package in json.loads(listed.stdout):
        version, expected = package["version"].partition("+")[0], pinned.get(normalized(package["name"]))
        if expected is not None and version != expected:
            print(f"  {package['name']} {version}, the lock has {expected}")


def call_commands(environment: Path, folder: Path, with_fit: bool) -> list[str]:
    """Call the installed commands in an empty folder, and return those that failed.

    Args:
        environment: Folder of the environment.
        folder: The empty folder.
        with_fit: Also train and validate on a few records; trains the toy if the cache does not hold it.
    """
    failed = []
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for command in (*COMMANDS, *(FIT if with_fit else ())):
        program = str(environment / "bin" / command[0])
        done = subprocess.run(
            [program, *command[1:]], cwd=folder, env=variables, capture_output=True, text=True, check=False
        )
        words = " ".join(command)
        print(f"  {'ok' if done.returncode == 0 else 'FAILED'}: {words}")
        if done.returncode != 0:
            print(done.stderr[-2000:])
            failed.append(words)
    return failed


def main() -> int:
    """Check every interpreter, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", help="interpreters (default: python3.11 and newer in PATH)")
    parser.add_argument("--locked", action="store_true", help="install the lock instead of the newest releases")
    parser.add_argument("--fit", action="store_true", help="also fit and validate on a few records (takes minutes)")
    parser.add_argument("--keep", type=Path, help="keep the environments in this folder, for further tests")
    args = parser.parse_args()
    failed = []
    for python in args.python or interpreters():
        with tempfile.TemporaryDirectory() as temporary:
            environment = Path(args.keep or temporary).absolute() / f"environment-{Path(python).name}"
            print(f"{python}:", flush=True)
            try:
                install(python, environment, args.locked)
            except subprocess.CalledProcessError as error:
                failed.append(f"{python}: {' '.join(error.cmd)}")
                continue
            show_differences(environment)
            folder = Path(temporary) / "empty"
            folder.mkdir()
            failed += [f"{python}: {command}" for command in call_commands(environment, folder, args.fit)]
    for line in failed:
        print(f"failed: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
