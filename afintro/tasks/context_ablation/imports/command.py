"""The command that makes context-ablation records of pairs of answers that other people's models gave."""

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from afintro.command import run_command
from afintro.data.files import file_sha256
from afintro.errors import UserError
from afintro.evaluation.report import print_pairs
from afintro.tasks.context_ablation.imports.messages import read_messages
from afintro.tasks.context_ablation.imports.pairs import Source
from afintro.tasks.context_ablation.imports.tables import Columns, files_below, read_columns
from afintro.tasks.context_ablation.imports.vlaf import find_pairs, read_source
from afintro.tasks.context_ablation.imports.write import ImportSettings, records_of, write_pairs
from afintro.tasks.labelers import add_labeler_flags, labeling_of, stop_at_others

FORMATS = ("vlaf", "messages", "columns")
OTHERS_REMEDY = (
    "give a judge (--labeler judge --judge MODEL) or classes of your own (--labeler FILE): this command labels the imported "
    "answers again; or train on the answers themselves (data.answer_form: text)"
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    flags = argparse.ArgumentParser(
        description="Make context-ablation records of monitored and unmonitored answers that other people's models gave."
    )
    flags.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="vlaf: <model>_True.json beside <model>_False.json, in any folder of launchnlp/VLAF; messages: conversations in "
        "OpenAI's format; columns: a row a pair, with the columns of --columns",
    )
    flags.add_argument("--input_path", required=True, type=Path, help="folder, which is searched whole, or one file")
    flags.add_argument("--output_dir", required=True, type=Path, help="folder that gets the files")
    flags.add_argument(
        "--columns",
        nargs="+",
        metavar="PART=COLUMN",
        help="columns of request, monitored and unmonitored answer, and perhaps of cue, unmonitored_cue, model, scenario_id, label",
    )
    flags.add_argument(
        "--cue", help="what the monitored prompt said beside the request, where no column has it (columns)"
    )
    flags.add_argument("--model", help="model that answered, where the rows do not say (messages, columns)")
    flags.add_argument("--only_model", metavar="NAME", help="import the answers of this model alone")
    flags.add_argument(
        "--validation", type=float, default=0.1, help="share of the requests for validation.json (default: %(default)s)"
    )
    flags.add_argument(
        "--test", type=float, default=0.2, help="share of the requests for test.json (default: %(default)s)"
    )
    flags.add_argument("--seed", type=int, default=0, help="seed of the split (default: %(default)s)")
    add_labeler_flags(flags)
    return flags


def import_pairs(args: argparse.Namespace) -> None:
    """Read, match, label and write the pairs, and print the summary.

    Raises:
        UserError: A flag, a file or the output folder cannot be used; or, when all is written, too many answers have no behavior
            that can be told.
    """
    columns = _check(args)
    labeling = labeling_of(args)
    files, unpaired, sources = _read(args, columns)
    imported = records_of(_of_model(sources, args.only_model, args.input_path), unpaired)
    identity = {
        "format": args.format,
        "columns": None if columns is None else asdict(columns),
        "model": args.model,
        "only_model": args.only_model,
        "files": len(files),
        "files_sha256": _sha256(files),
    }
    settings = ImportSettings(args.validation, args.test, args.seed)
    summary = write_pairs(imported, settings, args.output_dir, identity, labeling)
    print_pairs(summary)
    counts, sizes = imported.totals, summary["splits"]
    print(
        f"{counts['pairs']} pairs of {counts['requests']} requests from {len(imported.counts)} sources; the answers are equal in "
        f"{counts['equal']} pairs"
    )
    print(f"{args.output_dir}: {', '.join(f'{name}.json {count}' for name, count in sizes.items())}")
    stop_at_others(summary, args.output_dir, OTHERS_REMEDY)


def _check(args: argparse.Namespace) -> Columns | None:
    """Refuse flags that do not fit each other, and return what ``--columns`` says."""
    if min(args.validation, args.test) < 0 or args.validation + args.test >= 1:
        raise UserError(
            f"are {args.validation:g} and {args.test:g}, which leave nothing for training",
            where="--validation and --test",
            remedy="use shares of 0 or more whose sum is below 1",
        )
    for name in ("columns", "cue") if args.format != "columns" else ():
        if getattr(args, name) is not None:
            what = f"says nothing to --format {args.format}, whose files hold it"
            raise UserError(what, where=f"--{name}", remedy="leave it out, or use --format columns")
    if args.format == "vlaf" and args.model is not None:
        raise UserError(
            "says nothing to --format vlaf, whose files are named by the model", where="--model", remedy="leave it out"
        )
    if args.format != "columns":
        return None
    given = [re.fullmatch(r"(\w+)=(.+)", pair) for pair in args.columns or ()]
    if not given or not all(given):
        raise UserError(
            "must be PART=COLUMN, such as request=prompt monitored=with_cue unmonitored=without_cue",
            where="--columns",
            remedy="name the columns of the table",
        )
    columns = Columns({pair[1]: pair[2] for pair in given if pair}, args.cue, args.model)
    columns.check()
    return columns


def _read(args: argparse.Namespace, columns: Columns | None) -> tuple[list[Path], list[str], list[Source]]:
    """Return the files, those without a partner, and what was read."""
    if args.format == "vlaf":
        pairs, unpaired = find_pairs(args.input_path)
        sources = [read_source(*pair) for pair in tqdm(pairs, desc="files", mininterval=2)]
        return [path for pair in pairs for path in pair], unpaired, sources
    files = files_below(args.input_path)
    read = [read_messages(path, args.model) if columns is None else read_columns(path, columns) for path in files]
    return files, [], _apart([source for of_file in read for source in of_file], args.input_path)


def _apart(sources: Sequence[Source], folder: Path) -> list[Source]:
    """Return sources of which those of files of one name, such as a/pairs.csv and b/pairs.csv, are named by their folders too."""
    names = Counter(source.name for source in sources)
    return [
        source
        if names[source.name] == 1
        else replace(source, name=f"{Path(source.path).relative_to(folder).as_posix()}/{source.model}")
        for source in sources
    ]


def _of_model(sources: Sequence[Source], model: str | None, path: Path) -> list[Source]:
    """Return the sources of one model; all without one.

    Raises:
        UserError: No source is of this model.
    """
    kept = [source for source in sources if model in (None, source.model)]
    if not kept:
        known = ", ".join(sorted({source.model for source in sources}))
        raise UserError(f"has no answers of {model}", where=str(path), remedy=f"use --only_model with one of {known}")
    return kept


def _sha256(files: Sequence[Path]) -> str:
    """Hash the names and contents of files."""
    content: list[Any] = [[path.name, file_sha256(path)] for path in files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 2 for wrong input."""
    return run_command(parser(), import_pairs, argv)
