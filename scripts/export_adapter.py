"""Write a trained adapter as a stock PEFT directory with a model card, checked by loading it with plain PEFT.

Nothing leaves this machine without --push_to_hub.
"""

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from jsonargparse import ArgumentError, ArgumentParser
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from afintro.cli_errors import explain
from afintro.cli_settings import task_classes
from afintro.command import run_command
from afintro.data.files import file_sha256, write_atomic, write_json
from afintro.data.text import encode_prompt
from afintro.errors import UserError, one_line
from afintro.explainer.adapters import EXPLAINER_FILE, export_adapter, name_base
from afintro.explainer.asking import ASKING
from afintro.explainer.checkpoint import IDENTITY, read_checkpoint
from afintro.explainer.module import ExplainerModule
from afintro.explainer.plain import plain_logits
from afintro.explainer.settings import ExplainerSettings
from afintro.lm.adapter import ON, find_adapter, lineage
from afintro.lm.forward import packed_logits
from afintro.lm.injection import VectorSpace
from afintro.lm.load import load_model
from afintro.study.report.card import Trained, model_card

PROBE = [{"role": "user", "content": "What did you notice while you read this? The answer is"}]
MERGED = "base"  # folder of the merged base in the exported adapter's directory
# Largest difference of logits, in units of the largest logit: PEFT rounds elsewhere than our layers do.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


def export(args: argparse.Namespace) -> Path:
    """Load, write, check and describe an adapter; the directory appears only when all of this went well."""
    settings = merged(args.config or [args.checkpoint.parent.parent / "config.yaml"])
    checkpoint = read_checkpoint(args.checkpoint)
    output: Path = args.output_dir
    if output.exists() and not (output / "adapter_config.json").is_file():
        raise UserError(
            "already exists and is not an adapter directory", where=str(output), remedy="use another --output_dir"
        )
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    module = trained_module(settings, checkpoint)
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=f".{output.name}.") as folder:
        made = Path(folder) / "adapter"
        assert module.model is not None
        export_adapter(module.model, made, module.injector)
        describe(made, settings, checkpoint)
        ids = probe(module)
        logits = module_logits(module, ids)
        module.model = None
        gc.collect()  # two models at once might not fit into memory
        base = lay_base(module, made, output, args.write_base)
        difference = checked(base, module, logits, made, ids)
        write_atomic(made / "README.md", model_card(trained(settings, checkpoint, args, module, difference)))
        if output.exists():
            shutil.rmtree(output)
        made.rename(output)
    print(f"adapter: {output} (differs from the trained module by {difference:.1e} at most)")
    return output


def describe(made: Path, settings: dict[str, Any], checkpoint: dict[str, Any]) -> None:
    """Write beside an adapter what ``afintro explain`` needs to know; no file of this machine's data is named.

    Args:
        made: The exported adapter.
        settings: Settings of the run.
        checkpoint: The content of the run's checkpoint.
    """
    known = {IDENTITY: checkpoint.get(IDENTITY), ASKING: checkpoint.get(ASKING) or {}}
    write_json(made / EXPLAINER_FILE, known | {"weights": file_sha256(made / SAFETENSORS_WEIGHTS_NAME)})
    names = {name for task in task_classes() for name in task.local_files} | {"heldout", "judges", "scorer"}
    kept = {
        name: value
        for name, value in (settings["data"].get("init_args") or {}).items()
        if name not in names and not name.endswith(("_path", "_paths", "_split"))
    }
    asked = {"model": settings["model"], "data": {"class_path": settings["data"]["class_path"], "init_args": kept}}
    write_atomic(made / "config.yaml", yaml.safe_dump(asked, sort_keys=False))


def lay_base(module: ExplainerModule, made: Path, output: Path, write: bool) -> str:
    """Let an exported adapter name a base on which it gives the trained module's logits, and return that base.

    An adapter is no base for PEFT, and the base of the adapter would be the wrong base. ``ADAPTER::`` is a name that afintro
    loads and that other programs refuse.

    Args:
        module: The trained module, whose weights may be gone.
        made: The exported adapter, as long as it is unfinished.
        output: Where the exported adapter will lie.
        write: Whether to write the base, merged, beside the adapter.
    """
    directory, revision = module.directory, module.settings.revision
    if write:
        load_model(directory, revision, module.base_dtype).save_pretrained(made / MERGED)
        module.tokenizer.save_pretrained(made / MERGED)
        name_base(made, str(output.absolute() / MERGED), None)
        return str(made / MERGED)
    if find_adapter(directory, revision) is not None:
        name_base(made, directory if ON in directory else f"{directory}{ON}", revision)
    return directory


def trained(
    settings: dict[str, Any],
    checkpoint: dict[str, Any],
    args: argparse.Namespace,
    module: ExplainerModule,
    difference: float,
) -> Trained:
    """Collect what the card says of the adapter's origin."""
    origin = lineage(module.directory, module.settings.revision)
    written = str(args.output_dir.absolute() / MERGED) if args.write_base else None
    tokenizer = module.tokenizer.name_or_path
    return Trained(settings, checkpoint, args.checkpoint, tuple(origin), tokenizer, difference, written)


def merged(paths: list[Path]) -> dict[str, Any]:
    """Merge the settings of configuration files; later files override earlier files."""
    whole: dict[str, Any] = {}
    for path in paths:
        try:
            content = yaml.safe_load(path.read_bytes())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = one_line(error)
            raise UserError(
                f"cannot be read ({reason})", where=str(path), remedy="give the run's config.yaml"
            ) from error
        lay_over(whole, content if isinstance(content, dict) else {})
    if "class_path" not in whole.get("data", {}) or "model" not in whole:
        raise UserError(
            "does not name both a model and data",
            where="--config",
            remedy="give the configuration files that the run was trained with",
        )
    return whole


def lay_over(whole: dict[str, Any], part: dict[str, Any]) -> None:
    """Lay one configuration over another, as the command line does.

    Args:
        whole: The configuration that is changed.
        part: The configuration whose values win.
    """
    for name, value in part.items():
        if isinstance(value, dict) and isinstance(whole.get(name), dict):
            lay_over(whole[name], value)
        else:
            whole[name] = value


def trained_module(settings: dict[str, Any], checkpoint: dict[str, Any]) -> ExplainerModule:
    """Load the module with its trained weights, on the CPU.

    Args:
        settings: Settings of the run.
        checkpoint: The content of the run's checkpoint.

    Raises:
        UserError: The settings are malformed, or the checkpoint belongs to another model.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ExplainerSettings, "model")
    try:
        trained = parser.instantiate(parser.parse_object({"model": settings["model"]})).model
    except ArgumentError as error:
        what, _, remedy = explain(str(error)).partition("\n  remedy: ")
        raise UserError(what, where="--config", remedy=remedy) from error
    assert isinstance(trained, ExplainerSettings)
    # Compilation and 8-bit weights only make training faster; the trained weights need neither.
    module = ExplainerModule(**vars(replace(trained, compile_layers=False, fp8=False, quantize=None)))
    module.keep_date(checkpoint)
    vectors = checkpoint.get("afintro_identity", {}).get("vectors")
    if vectors:
        module.space = VectorSpace(vectors["width"], tuple(vectors["layers"]))
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)  # every name was checked
    return module.eval()


def probe(module: ExplainerModule) -> Tensor:
    """Encode a short chat, ``[T]`` int64, on which logits are compared."""
    return torch.tensor(encode_prompt(module.tokenizer, PROBE))


@torch.no_grad()
def module_logits(module: ExplainerModule, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the logits of the trained module and of its base alone, ``[T, vocabulary]`` float64 each."""
    assert module.model is not None
    bounds, places = torch.tensor([0, len(ids)], dtype=torch.int32), torch.arange(len(ids))
    with module.evaluating():
        adapted = packed_logits(module.model, ids, bounds, places).double()
        with module.model.disable_adapter():
            return adapted, packed_logits(module.model, ids, bounds, places).double()


def checked(origin: str, module: ExplainerModule, logits: tuple[Tensor, Tensor], made: Path, ids: Tensor) -> float:
    """Return how far the logits of plain PEFT are from the trained module's.

    Args:
        origin: What plain PEFT loads the adapter onto.
        module: The trained module, whose weights may be gone.
        logits: Logits of the trained module and of its base, ``[T, vocabulary]`` float64 each.
        made: The exported adapter.
        ids: ``[T]`` int64.

    Raises:
        UserError: The difference is larger than rounding explains.
    """
    revision, dtype = module.settings.revision, module.base_dtype
    merges = find_adapter(origin, revision) is not None
    try:
        return check(logits, plain_logits(origin, revision, dtype, made, ids), dtype)
    except (UserError, RuntimeError, ValueError, KeyError) as error:
        if not merges:
            raise
        raise UserError(
            "cannot be loaded by PEFT alone: the base is an adapter that PEFT does not merge to what it was trained to be",
            where="exported adapter",
            remedy="use --write_base, which writes the merged base beside the adapter",
        ) from error


def check(trained: tuple[Tensor, Tensor], plain: Tensor, dtype: str) -> float:
    """Compare the exported adapter with the trained module.

    Args:
        trained: Logits of the trained module and of its base, ``[T, vocabulary]`` float64 each.
        plain: Logits of the exported adapter, ``[T, vocabulary]`` float64.
        dtype: Name of the dtype of the base's weights.

    Returns:
        The largest difference of logits.

    Raises:
        UserError: The difference is larger than rounding explains, or the exported adapter is closer to the base than to the
            trained module.
    """
    adapted, base = trained
    difference, effect = float((plain - adapted).abs().max()), float((adapted - base).abs().max())
    limit = TOLERANCE[dtype] * max(1.0, float(adapted.abs().max()))
    if difference > limit or (effect > limit and difference > effect / 2):
        what = (
            f"gives logits that are off by {difference:.2e} with PEFT, where the adapter changes them by {effect:.2e}"
        )
        raise UserError(what, where="exported adapter", remedy="report this error; nothing was written")
    return difference


def push(directory: Path, repository: str) -> str:
    """Upload an exported adapter into a private repository, which is created if absent.

    Args:
        directory: The exported adapter.
        repository: Name of the repository on the hub.

    Returns:
        The address of the repository.

    Raises:
        UserError: The key is absent, the base is a local directory, or the hub refuses.
    """
    base = json.loads((directory / "adapter_config.json").read_text())["base_model_name_or_path"]
    if any(Path(part).exists() for part in base.split(ON) if part):
        what = "is refused: the adapter's base is a directory or file of this machine, which nobody else could load"
        raise UserError(what, where="--push_to_hub", remedy="train on a base from the hub, by its hub id")
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError(
            "needs HF_TOKEN, which is not set", where="--push_to_hub", remedy="set it to a key that may write"
        )
    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=directory, commit_message="Adapter exported by afintro")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = one_line(str(error).replace(token, "[key]"), 200)
        raise UserError(
            f"was refused ({reason})", where=repository, remedy="check the name, the key and the network"
        ) from None
    return f"https://huggingface.co/{repository}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="the run's .ckpt file")
    parser.add_argument(
        "--config",
        nargs="+",
        type=Path,
        action="extend",
        help="configuration of the run (default: config.yaml of its folder)",
    )
    parser.add_argument("--output_dir", required=True, type=Path, help="gets the adapter and README.md")
    parser.add_argument(
        "--write_base", action="store_true", help="write the base beside it, with the adapter that it may be merged in"
    )
    parser.add_argument(
        "--push_to_hub", metavar="REPO", help="upload it too, as a private repository; the key is HF_TOKEN"
    )
    return run_command(parser, export_and_push, argv)


def export_and_push(args: argparse.Namespace) -> None:
    """Export the adapter, and upload it if that is asked for."""
    directory = export(args)
    if args.push_to_hub:
        print(f"uploaded: {push(directory, args.push_to_hub)}")


if __name__ == "__main__":
    sys.exit(main())
