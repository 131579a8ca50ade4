"""Report what this machine has and what the given configurations still need. Contacts no network.

With settings as ``fit`` takes them (``--model.name MODEL``), the configurations are laid over each other, and the report is of what
that one command needs.

Exit code 0 when every model, dataset and file that the configurations name is here, 1 when something is missing, 2 for a
configuration that cannot be read. Versions that differ from requirements.lock are warnings.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

ROOT = Path(__file__).resolve().parents[1]  # the source tree, or the installed package
GB = 1e9
# Rule of thumb, in bytes a parameter. Running: bf16 weights and a quarter for activations and the KV cache. Training: a
# LoRA of rank 128 with gradient checkpointing took 30 to 34 GB for 7.25 billion parameters.
RUN, TRAIN = 2.5, 4.5
NEEDED = ("afintro", "datasets", "huggingface_hub", "peft", "psutil", "torch", "transformers", "yaml")
ON = "::"  # between an adapter and the base that is given for it, as in afintro.lm.adapter
MODEL_KEYS = ("other_base", "organism", "model_name", "adapter")
DATA_ENDINGS = ("_path", "_paths", "_file", "_files")
FILE_SUFFIXES = (".json", ".jsonl", ".parquet", ".npy", ".safetensors", ".ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def show_versions() -> None:
    """Print the version of Python, and every package of the lock that is not installed as pinned."""
    lock = ROOT / "requirements.lock"
    if not lock.is_file():  # an installed package carries no lock
        print(f"Python {platform.python_version()}; versions are not compared, because this is no source tree")
        return
    lines = [line.partition("==") for line in lock.read_text().splitlines() if "==" in line]
    warnings = [] if sys.version_info >= (3, 11) else ["Python 3.11 or newer is needed"]
    for name, _, pinned in lines:
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            here = "absent"
        if here.partition("+")[0] != pinned:  # 2.13.0+cpu is a build of 2.13.0
            warnings.append(f"{name} {here}, the lock has {pinned}")
    print(f"Python {platform.python_version()}, {len(lines)} packages in requirements.lock, {len(warnings)} warnings")
    for line in warnings:
        print(f"  warning: {line}")


def show_machine() -> None:
    """Print cores, memory and accelerators, and how large a model each of them takes."""
    import psutil
    import torch

    free = psutil.virtual_memory().available
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {free / GB:.1f} GB memory free")
    holding = processes()  # before this process holds an accelerator itself
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name = torch.cuda.get_device_name(index)
        try:
            room, total = torch.cuda.mem_get_info(index)
            found.append(f"cuda:{index} {name}, {room / GB:.1f} of {total / GB:.1f} GB free: {capacity(room)}")
        except RuntimeError as error:  # e.g. in exclusive use by another process
            found.append(f"cuda:{index} {name}, not usable now ({str(error).splitlines()[0]})")
    if torch.backends.mps.is_available():
        found.append(f"mps, shares the processor's memory: {capacity(free)}")
    print("Accelerators:" if found else "Accelerators: none; the toy needs none, larger models are slow without")
    for line in found:
        print(f"  {line}")
    print("Processes that hold an accelerator" + holding)


def processes() -> str:
    """Return which processes hold an accelerator, one a line below a colon, or that nvidia-smi cannot tell."""
    try:
        cards = {uuid: index for index, uuid in query("query-gpu", "index,uuid")}
        holding = query("query-compute-apps", "gpu_uuid,pid,used_memory,process_name")
    except FileNotFoundError:
        return ": not known, since there is no nvidia-smi"
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = (getattr(error, "stdout", "") or str(error)).strip().splitlines()
        return f": not known, since nvidia-smi fails ({said[0] if said else type(error).__name__})"
    lines = []
    for uuid, pid, memory, name in holding:
        room = f"{int(memory) * 2**20 / GB:.1f} GB" if memory.isdigit() else "unknown memory"
        lines.append(f"\n  cuda:{cards.get(uuid, '?')} pid {pid}, {room}, {name}")
    return ":" + "".join(lines) if lines else ": none"


def query(what: str, columns: str) -> list[list[str]]:
    """Return the rows of a query of nvidia-smi, whose last column may hold commas."""
    command = ["nvidia-smi", f"--{what}={columns}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    count = columns.count(",")
    rows = [[cell.strip() for cell in line.split(",", count)] for line in done.stdout.splitlines() if line.strip()]
    if any(len(row) != count + 1 for row in rows):
        raise ValueError(f"unexpected output: {done.stdout.splitlines()[0]}")
    return rows


def capacity(free: float) -> str:
    """Return how large a model fits into ``free`` bytes."""
    run, train = free / GB / RUN, free / GB / TRAIN
    return f"rule of thumb: runs up to {run:.1f} B parameters in bf16, trains a LoRA on up to {train:.1f} B"


def show_disk(runs: str) -> None:
    """Print the free room where runs, toys and downloads go."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from afintro.data.cache import cache_directory

    print("Disk:")
    for name, place in (("runs", runs), ("AFINTRO_CACHE", cache_directory()), ("HF cache", HF_HUB_CACHE)):
        path = Path(place).expanduser().absolute()
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        note = "" if there == path else " (not made yet)"
        print(f"  {name}: {shutil.disk_usage(there).free / GB:.1f} GB free, {path}{note}")


def is_model(key: str) -> bool:
    """Tell whether a key, with its parents, names a model; ``other_base`` may hold several models by their names."""
    parent, _, last = key.rpartition(".")
    return key == "model.name" or last in MODEL_KEYS or parent.rpartition(".")[2] == "other_base"


def named(tree: Any, parent: str = "") -> Iterator[tuple[str, str, str | None]]:
    """Yield what a configuration names: key with its parent, value, and the revision beside a model's name."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        name = f"{parent}.{key}".removeprefix(".")
        data = key == "heldout" or (key.endswith(DATA_ENDINGS) and key != "class_path")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and (data or is_model(name)):
                model = tree if name == "model.name" else {}
                yield name, f"{one}{ON}{model['base']}" if model.get("base") else one, model.get("revision")
            yield from named(one, parent if key == "init_args" else key)


def lookup(name: str, file: str, revision: str | None) -> Path | None:
    """Return the path of a model's file in its directory or in the Hugging Face cache; None if it is absent."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).is_dir():
        return Path(name, file) if Path(name, file).is_file() else None
    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def lacking(name: str, revision: str | None, base: str) -> list[str]:
    """Return what a model or adapter lacks to be loaded: files, or the base model of an adapter, also if another is given."""
    adapter = lookup(name, "adapter_config.json", revision)
    if adapter:
        base = base or json.loads(adapter.read_text())["base_model_name_or_path"]
        state, remedy = model_state(base, None)
        weights = [] if lookup(name, "adapter_model.safetensors", revision) else ["adapter_model.safetensors"]
        return weights + ([f"its base {base} ({state}; {remedy})"] if remedy else [])
    index = lookup(name, "model.safetensors.index.json", revision)
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index else ["model.safetensors"]
    files = [file for file in ("config.json", *shards) if not lookup(name, file, revision)]
    return files + ([] if any(lookup(name, file, revision) for file in TOKENIZERS) else ["a tokenizer"])


def made_or_read_state(name: str) -> tuple[str, str | None]:
    """Return the state of SmolLM2, which is made out of a package, or of a GGUF file; see :func:`model_state`."""
    from afintro.toys import smollm2

    if name == smollm2.NAME:
        if smollm2.directory().is_dir():
            return f"here, {smollm2.directory()}", None
        packages, state = [smollm2.MODULE, "gguf"], "is made on first use"
    elif Path(name).is_file():
        packages, state = ["gguf"], "here"
    else:
        return "MISSING: no such file", "check the path"
    absent = [package for package in packages if util.find_spec(package) is None]
    return (f"MISSING: the package {' and '.join(absent)}", smollm2.INSTALL) if absent else (state, None)


def model_state(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return the state of a model, and how to get it if it is missing (else None)."""
    from huggingface_hub.errors import HFValidationError

    from afintro.data.cache import cache_directory
    from afintro.lm.gguf import is_gguf
    from afintro.toys import smollm2
    from afintro.toys.chat_base.base import STUDY_BASES
    from afintro.toys.organism import TOYS

    keys = {one: settings.key for one, settings in TOYS.items()} | {one: own.key for one, own in STUDY_BASES.items()}
    name, _, base = name.partition(ON)
    if name in keys:
        trained = list(cache_directory().glob(f"organisms/[!.]*-{keys[name]}"))
        return (f"here, {trained[0]}" if trained else "is trained on first use"), None
    if name == smollm2.NAME or is_gguf(name):
        return made_or_read_state(name)
    local = Path(name).is_dir()
    try:
        lacks = lacking(name, revision, base)
    except HFValidationError:  # no hub id can look so
        return "MISSING: no such directory", "check the path"
    except (ValueError, KeyError, TypeError) as error:
        lacks = [f"a readable adapter_config.json or weight index ({type(error).__name__})"]
    if not lacks:
        return "here" if local else "in the HF cache", None
    if local:
        return f"MISSING in this directory: {', '.join(lacks)}", "complete it; weights are read from safetensors only"
    command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    state = f"MISSING: no such directory, and the HF cache lacks {', '.join(lacks)}"
    return state, f"{command}   (for a gated model, hf auth login before)"


def data_state(key: str, name: str) -> tuple[str, str | None]:
    """Return the state of a file, a dataset directory or a hub dataset, and how to get it if it is missing (else None)."""
    from datasets.load import CachedDatasetModuleFactory

    from afintro.data.sources import split_source

    name, _ = split_source(name)
    if Path(name).exists():
        return "here", None
    if key.endswith("ckpt_path") and name in ("best", "last"):
        return "is looked up among the runs", None
    if Path(name).suffix in FILE_SUFFIXES or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        make = "scripts/generate_af_context_ablation.py --input_path SAMPLES --model_name MODEL --output_dir"
        made = key.endswith(("train_path", "validation_path", "test_path"))
        return "MISSING: no such file", "check the path" + (f", or python {make} {Path(name).parent}" if made else "")
    try:
        CachedDatasetModuleFactory(name).get_module()
    except FileNotFoundError:
        return "MISSING in the HF datasets cache", f"python -c \"import datasets; datasets.load_dataset('{name}')\""
    return "in the HF datasets cache", None


def read(path: Path) -> list[tuple[str, str, str | None]]:
    """Return what a configuration file names; exit with code 2 if it cannot be read."""
    import yaml

    from afintro.shipped import shipped_config

    try:
        return list(named(yaml.safe_load(Path(shipped_config(str(path))).read_bytes())))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        print(f"error: {path}: cannot be read ({reason})\n  remedy: give a YAML file", file=sys.stderr)
        raise SystemExit(2) from error


def laid(configs: Sequence[Path], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings of ``fit`` with configurations and overrides; exit with code 2 if they cannot be parsed."""
    from jsonargparse import ArgumentError

    from afintro.cli import parsed
    from afintro.cli_errors import explain
    from afintro.cli_settings import configured_task

    arguments = ["fit", *(part for path in configs for part in ("--config", str(path))), *overrides]
    try:
        return parsed(arguments)
    except ArgumentError as error:
        print(f"error: {explain(str(error), configured_task(arguments))}", file=sys.stderr)
        raise SystemExit(2) from error


def divided(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide the words of the command line into this program's own and the settings of ``fit``."""
    own: list[str] = []
    overrides: list[str] = []
    words_of = overrides
    for word in words:
        if word.startswith("-"):
            words_of = own if word.partition("=")[0] in ("--config", "--help", "-h") else overrides
        words_of.append(word)
    return own, overrides


def check(key: str, value: str, revision: str | None) -> bool:
    """Print the state of what one key names, and return whether it is here."""
    state, remedy = model_state(value, revision) if is_model(key) else data_state(key, value)
    print(f"  {key}: {value}: {state}" + (f"\n    remedy: {remedy}" if remedy else ""))
    return remedy is None


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        epilog="any other --NAME VALUE is a setting of fit",
    )  # fmt: skip
    parser.add_argument(
        "--config", nargs="+", action="extend", type=Path, metavar="FILE", help="default: configs/*.yaml"
    )
    own, overrides = divided(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(own)
    if overrides and not args.config:
        parser.error("settings need a --config that they are laid over")
    configs = args.config or sorted(
        file for folder in ("configs", "_configs") for file in (ROOT / folder).glob("*.yaml")
    )
    show_versions()
    absent = [name for name in NEEDED if util.find_spec(name) is None]
    if absent:
        print(f"MISSING packages: {', '.join(absent)}\n  remedy: make setup")
        return 1
    named_by: dict[str, list[tuple[str, str, str | None]]] = {str(path): read(path) for path in configs}
    root = Path()
    if overrides:
        settings = laid(configs, overrides)
        root = Path(settings["trainer"]["default_root_dir"] or "")
        named_by = {" ".join(["fit", *(f"--config {path}" for path in configs), *overrides]): list(named(settings))}
    show_machine()
    show_disk(str(root / "lightning_logs"))
    token = "set" if os.environ.get("HF_TOKEN") else "not set"  # never what it is
    print(f"HF_TOKEN: {token}")
    missing = 0
    for path, names in named_by.items():
        print(f"{path}:" if names else f"{path}: names no model and no file")
        missing += sum(not check(*one) for one in names)
    print(f"{missing} missing" if missing else "everything that these configurations name is here or made on first use")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
