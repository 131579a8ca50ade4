"""The flags that say who labels behavior: generation takes a labeler, and evaluation has the judges."""

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afintro.errors import UserError
from afintro.evaluation.lm_judges import EndpointJudge, LanguageModelJudge, LocalJudge
from afintro.generation.behavior import BehaviorLabeler, RuleLabeler
from afintro.generation.judge_labeler import DEFINITIONS, JudgeLabeler
from afintro.generation.labeling import Labeling
from afintro.generation.own_classes import BehaviorClass, PatternLabeler, file_name, read_classes
from afintro.generation.untold import refuse_others

RULES, JUDGE = "rules", "judge"
REMEDY = (
    "give longer answers (--max_new_tokens, into another folder), a judge (--labeler judge --judge MODEL), or classes of your "
    "own (--labeler FILE); the outputs are kept, and this command with another labeler labels them again"
)


def add_labeler_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say who labels the answers.

    Args:
        parser: The parser that gets the flags.
    """
    parser.add_argument(
        "--labeler",
        default=RULES,
        metavar="{rules,judge,FILE}",
        help="who labels the answers: rules (the default), the judge, or classes of your own in a YAML or JSON file",
    )
    parser.add_argument(
        "--judge",
        metavar="MODEL",
        help="model that labels, or that labels once more, so that the summary says how well both agree",
    )
    parser.add_argument(
        "--judge_url", metavar="URL", help="OpenAI-compatible endpoint of --judge; without, it is a local model"
    )


def labeling_of(args: argparse.Namespace) -> Labeling:
    """Return the labelers that the flags name, and look for what they need.

    Raises:
        UserError: A file, a model or an endpoint cannot be used, or the judge is missing.
    """
    judge = _judge(args)
    if args.labeler == RULES:
        return Labeling(RuleLabeler(), _labeler(judge, DEFINITIONS, "") if judge else None)
    if args.labeler == JUDGE:
        return Labeling(_labeler(_needed(judge, "--labeler judge"), DEFINITIONS, ""), RuleLabeler())
    path = Path(args.labeler)
    classes = read_classes(path)
    definitions, name = {one.name: one.definition for one in classes}, file_name(path, classes)
    if not _have_patterns(classes, path):
        return Labeling(_labeler(_needed(judge, f"{path}, which has no patterns,"), definitions, name))
    return Labeling(PatternLabeler(classes, name), _labeler(judge, definitions, name) if judge else None)


def stop_at_others(summary: Mapping[str, Any], output_dir: Path, remedy: str = REMEDY) -> None:
    """Stop where too many answers of a written run are labeled ``other``, see :func:`afintro.generation.untold.refuse_others`.

    Args:
        summary: The run's summary, with the number of answers of each label by side.
        output_dir: The run's folder.
        remedy: What the user can do.

    Raises:
        UserError: A side has too many such answers.
    """
    labels = {side: list(Counter(counts).elements()) for side, counts in summary.get("behaviors", {}).items()}
    refuse_others(labels, str(output_dir), remedy)


def _judge(args: argparse.Namespace) -> LanguageModelJudge | None:
    if args.judge is None:
        if args.judge_url is not None:
            raise UserError("needs the name of the model", where="--judge_url", remedy="add --judge MODEL")
        return None
    judge = LocalJudge(args.judge) if args.judge_url is None else EndpointJudge(args.judge, args.judge_url)
    judge.check()
    return judge


def _needed(judge: LanguageModelJudge | None, what: str) -> LanguageModelJudge:
    if judge is None:
        raise UserError(
            "is missing", where="--judge", remedy=f"{what} needs --judge MODEL, and perhaps --judge_url URL"
        )
    return judge


def _labeler(judge: LanguageModelJudge, definitions: dict[str, str], file: str) -> BehaviorLabeler:
    where = "local" if isinstance(judge, LocalJudge) else "endpoint"
    model = judge.model if isinstance(judge, LocalJudge | EndpointJudge) else judge.name
    return JudgeLabeler(judge.ask, ":".join(["judge", where, model, *([file] if file else [])]), definitions)


def _have_patterns(classes: tuple[BehaviorClass, ...], path: Path) -> bool:
    without = [one.name for one in classes if not one.patterns]
    if without and len(without) < len(classes):
        raise UserError(
            f"has patterns for some classes, and none for {', '.join(without)}",
            where=str(path),
            remedy="give patterns to all classes, or to none and name a judge",
        )
    return not without
