"""Convert other tools' pickles of features and explanations into safetensors, .npy and JSON, without running what they name."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from afintro.command import check_at_least, run_command
from afintro.data.files import file_sha256, write_json
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.converted import convert, pickles_in


def inputs(args: argparse.Namespace) -> dict[Path, Path]:
    """Return the pickles, each with the path of what it becomes, without an ending."""
    check_at_least(args, {"layer": 0})
    path, folder = Path(args.input_path), Path(args.output_dir)
    if not path.is_dir():
        return {path: folder / path.stem}
    if args.layer is not None:
        what = "is for one file, but the input is a folder"
        raise UserError(what, where="--layer", remedy="name the files layer_N.pkl, or convert them one by one")
    targets = {file: folder / file.relative_to(path).with_suffix("") for file in pickles_in(path)}
    if not targets:
        raise UserError("holds no .pkl, .pickle, .p, .pt or .pth file", where=str(path), remedy="check the path")
    names = list(targets.values())
    double = [file for file, target in targets.items() if names.count(target) > 1]
    if double:
        what = f"would be converted to the same name as {double[1].name}"
        raise UserError(what, where=str(double[0]), remedy="convert the files one by one into folders of their own")
    return targets


def work(args: argparse.Namespace) -> None:
    """Convert file by file; what is written is whole, also if a later file is refused."""
    manifest = {}
    for file, target in inputs(args).items():
        written, what = convert(file, target, args.layer)
        print(f"{file}: {what} -> {', '.join(map(str, written))}")
        manifest[str(file)] = {"sha256": file_sha256(file), "holds": what, "written": [str(path) for path in written]}
    write_json(Path(args.output_dir) / "convert_pickles.manifest.json", manifest)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input_path", required=True, help="a pickle or file of torch.save, or a folder of them")
    parser.add_argument("--output_dir", required=True, help="folder that gets the converted files and a manifest")
    parser.add_argument(
        "--layer",
        type=int,
        help="take the file for features [width, features] of this layer (default: its name, layer_N)",
    )
    return run_command(parser, work, argv)


if __name__ == "__main__":
    sys.exit(main())
