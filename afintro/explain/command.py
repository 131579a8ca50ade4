"""The command ``python -m afintro explain``: questions without ground truth in, answers out."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace
from tqdm import tqdm

from afintro.cli import parsed
from afintro.cli_errors import explain as explain_error
from afintro.cli_settings import configured_task
from afintro.cli_trainer import runs_folder
from afintro.command import check_at_least, run_command
from afintro.errors import UserError
from afintro.explain.explainer import CHUNK, Explainer, config_beside, inputs_of
from afintro.explain.interactive import converse
from afintro.explain.output import Answers
from afintro.explain.table import print_answers
from afintro.explainer.checkpoint import checkpoint_of, resolve_checkpoint
from afintro.tasks.unlabeled import Inputs, Questions

FEW = 20  # answers that are also shown as a table
PASSED_ON = """\
All other settings are those of predict, e.g. --config configs/steering.yaml, --model.name, --data.batch_size,
--trainer.accelerator; without --config the config.yaml of the checkpoint's run is read."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags that predict does not have."""
    flags = argparse.ArgumentParser(
        prog="python -m afintro explain", description="Ask a trained explainer, without ground truth.", epilog=PASSED_ON,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    flags.add_argument("--config", "-c", action="append", default=[], help="configuration of the run; later ones win")
    flags.add_argument(
        "--ckpt_path",
        required=True,
        help="best or last (of the newest run of the task), a .ckpt file, or an exported adapter",
    )
    flags.add_argument(
        "--input",
        help="samples, records, feature files or an autoencoder, without ground truth; - is one text on standard input",
    )
    flags.add_argument("--output", type=Path, help="JSONL file of the answers; without it a few answers are printed")
    flags.add_argument("--task", help="which task of a mixture the questions are of")
    flags.add_argument("--limit", type=int, help="answer only the first questions, at most this many")
    flags.add_argument("--batch_size", type=int, help="questions in a forward pass (default: data.batch_size)")
    flags.add_argument("--direction", nargs="+", default=[], help="files of steering vectors, for texts without one")
    flags.add_argument("--layer", nargs="+", type=int, default=[], help="0-based layers of the vectors")
    flags.add_argument("--alpha", nargs="+", type=float, default=[], help="multiples of the directions")
    flags.add_argument("--skip_zero_vector", action="store_true", help="do not answer with a vector of zeros too")
    flags.add_argument(
        "--interactive", action="store_true", help="ask for texts, and show the answers as they are written"
    )
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 2 for wrong input."""
    flags = parser()
    known, others = flags.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    return run_command(_Parsed(known), lambda args: work(args, others), [])


class _Parsed(argparse.ArgumentParser):
    """A parser whose flags are parsed already."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self._args = args

    def parse_args(self, *_: Any, **__: Any) -> argparse.Namespace:  # type: ignore[override]
        """Return the parsed flags."""
        return self._args


def work(args: argparse.Namespace, others: Sequence[str]) -> None:
    """Check everything that can be checked before the weights load, then answer.

    Args:
        args: The flags of :func:`parser`.
        others: The words of the command line that are settings of predict.

    Raises:
        UserError: A flag, the checkpoint, the questions or the output cannot be used.
    """
    check_at_least(args, {"limit": 1, "batch_size": 1})
    if (args.input is None) != args.interactive:
        what = "asks a person" if args.interactive else "is absent"
        raise UserError(what, where="--interactive" if args.interactive else "--input",
                        remedy="give either --input or --interactive")  # fmt: skip
    settings, checkpoint = run_settings(Path(args.ckpt_path), args.config, others)
    explainer = Explainer(settings, checkpoint, args.task)
    if args.interactive:
        converse(explainer, lambda text: inputs_of(text, args.direction, args.layer, args.alpha))
        return
    inputs = _inputs(args)
    questions = explainer.questions(inputs)
    total = min(len(questions), args.limit or len(questions))
    if args.output is None and total > FEW:
        what = f"is absent, and {total} answers are too many to print"
        raise UserError(what, where="--output", remedy="name a JSONL file, or give --limit")
    rows = _answers(explainer, questions, total, args)
    if total <= FEW:
        print_answers(rows)
    if explainer.confidence.reason and any(row["verdict"] for row in rows):
        print(f"confidence is null: {explainer.confidence.reason}")
    if args.output is not None:
        print(f"answers: {args.output}")


def _answers(explainer: Explainer, questions: Questions, total: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Answer the questions into the output, if there is one, and return the answers if they are few."""
    size, zero_vector = args.batch_size or explainer.batch_size, not args.skip_zero_vector
    if args.output is None:
        return [row for rows in explainer.stream(questions, 0, total, size, zero_vector) for row in rows]
    answers = Answers(args.output, {
        **explainer.identity, "questions": questions.key, "total": total, "batch_size": size, "zero_vector": zero_vector,
    }, size * CHUNK, total)  # fmt: skip
    answers.check()
    if not answers.finished:
        with answers.writing():
            progress = tqdm(total=total, initial=answers.done, desc="explain", unit="answer", mininterval=1.0)
            with progress:
                for rows in explainer.stream(questions, answers.done, total, size, zero_vector, progress.update):
                    answers.add(rows)
    return _read(args.output) if total <= FEW else []


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _inputs(args: argparse.Namespace) -> Inputs:
    given: Any = Path(args.input)
    if args.input == "-":
        try:
            given = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise UserError("is not UTF-8", where="standard input", remedy="give a text in UTF-8") from error
        given = given.removesuffix("\n").removesuffix("\r")
        if not given.strip():
            raise UserError("is empty", where="standard input", remedy="give one text")
    return inputs_of(given, args.direction, args.layer, args.alpha)


def run_settings(checkpoint: Path, configs: Sequence[str], others: Sequence[str] = ()) -> tuple[dict[str, Any], Path]:
    """Return the settings of a run, as the command line parses them, and the path of its checkpoint.

    Args:
        checkpoint: A ``.ckpt`` file, a run's folder, an exported adapter, or ``best`` or ``last``.
        configs: Configuration files, later ones over earlier ones; without any, the ``config.yaml`` of the run.
        others: Further arguments of predict.

    Raises:
        UserError: There is no such checkpoint, or the settings cannot be parsed.
    """
    named = str(checkpoint) in ("best", "last")
    if not named:
        checkpoint = _file_of(checkpoint)
        configs = configs or [str(config_beside(checkpoint))]
    if not configs:
        raise UserError(
            "is absent", where="--config", remedy="name the task, e.g. --config configs/context_ablation.yaml"
        )
    arguments = ["predict", *(word for config in configs for word in ("--config", config)), *others]
    try:
        settings = parsed(arguments)
    except ArgumentError as error:
        what, _, remedy = explain_error(str(error), configured_task(arguments)).partition("\n  remedy: ")
        raise UserError(what, where="explain", remedy=remedy) from error
    if named:
        task, folder = configured_task(arguments), runs_folder(Namespace(trainer=settings["trainer"]))
        checkpoint = resolve_checkpoint(str(checkpoint), folder, task.task if task else "")
    return settings, checkpoint


def _file_of(path: Path) -> Path:
    """Return the checkpoint that a path means: itself, or the best one of a run's folder.

    Raises:
        UserError: There is none.
    """
    if any((path / "checkpoints").glob("*.ckpt")):
        return checkpoint_of(path, "best")
    if not path.exists():
        raise UserError(
            "does not exist", where=str(path), remedy="give a .ckpt file, an adapter directory, best or last"
        )
    return path
