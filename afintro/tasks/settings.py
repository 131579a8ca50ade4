"""The settings that every task's data module has."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from afintro.data.sources import refuse_same, source_of
from afintro.errors import UserError
from afintro.ranges import NonNegativeFloat, NonNegativeInt, OpenUnitInterval, PositiveInt, check_ranges

Setting = TypeVar("Setting")

log = logging.getLogger(__name__)

ASKED = 64  # scenarios of a split that are kept for asking the organism about them once more
ROLES = ("train", "validation", "test")
SET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
USED = ("checkpoints", "text_only", "vector_only", "other_base")


@dataclass
class TaskSettings:
    """The settings that every task's data module has.

    Args:
        train_path: File, dataset directory or hub id of training records; None for the embedded default.
        validation_path: Validation records likewise; None splits ``validation_fraction`` of the scenarios off training.
        test_path: Test records likewise.
        test_paths: Several test sets by name, each as ``test_path``, which ``test`` reports one by one and beside each other; they
            take the place of ``test_path``.
        train_split: Split of a dataset that training reads; None for the split ``train``.
        validation_split: Split of a dataset that validation reads; None for the split ``validation``.
        test_split: Split of a dataset that the test reads; None for the split ``test``.
        heldout: Files whose texts must never be trained on; ``DATASET::SPLIT`` names the split of a dataset.
        heldout_action: ``error`` stops the run at a hit, ``drop`` removes the training records.
        limit: Largest number of records in a split; None for all.
        split_seed: Seed of the split and of the order of training.
        question_weights: Weight in the loss of each question type; 0 leaves the question type out of training.
        batch_size: Number of examples in a step; with ``max_tokens`` only the number of answers generated at once.
        max_tokens: Number of tokens in a step: a step takes as many examples as fit, prompts and answers together, into one
            packed row; None for ``batch_size`` examples.
        validation_fraction: Share of the scenarios that is split off where there is no validation file.
        explained: Number of held-out scenarios (64 at most) on which the base itself is asked without and with the adapter, to
            see what explaining does to the explained; 0 asks none, None asks 32 where the base is the organism.

    Raises:
        UserError: A number is outside of its range, or another path is given without ``train_path``.
    """

    train_path: str | None = None
    validation_path: str | None = None
    test_path: str | None = None
    test_paths: dict[str, str] | None = None
    train_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    heldout: list[str] | None = None
    heldout_action: Literal["error", "drop"] = "error"
    limit: PositiveInt | None = None
    split_seed: int = 0
    question_weights: dict[str, NonNegativeFloat] = field(default_factory=dict)
    batch_size: PositiveInt = 32
    max_tokens: PositiveInt | None = None
    validation_fraction: OpenUnitInterval = 0.1
    explained: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        if self.train_path is None and (self.validation_path or self.test_path):
            raise UserError(
                "is absent while another path is given", where="data.train_path", remedy="give it too, or none of them"
            )
        for role in ROLES:
            if getattr(self, f"{role}_split") and not getattr(self, f"{role}_path"):
                raise UserError("needs a dataset", where=f"data.{role}_split", remedy=f"give data.{role}_path too")
        check_ranges(self, "data")
        if (self.explained or 0) > ASKED:
            raise UserError(
                f"is {self.explained}, but {ASKED} scenarios of a split are kept",
                where="data.explained",
                remedy=f"use {ASKED}",
            )
        check_set_names(self.test_paths or {}, "data.test_paths")

    def sources(self) -> dict[str, str | None]:
        """Return the source of each split, which names the split where the path is a dataset; None without a path.

        Raises:
            UserError: A dataset lacks the split, or two paths are the same split.
        """
        paths = {role: getattr(self, f"{role}_path") for role in ROLES}
        found = {
            role: source_of(role, path, getattr(self, f"{role}_split")) if path else None
            for role, path in paths.items()
        }
        refuse_same(found)
        for name, source in self.test_sources().items():
            refuse_same({**found, "test": None, f"test_paths.{name}": source})
        return found

    def test_sources(self) -> dict[str, str]:
        """Return the source of each of several test sets by name; empty without several.

        Raises:
            UserError: A dataset has no split for testing.
        """
        return {name: source_of("test", path, None) for name, path in (self.test_paths or {}).items()}


def check_set_names(names: Iterable[str], where: str) -> None:
    """Refuse names of test sets that cannot name a folder in the folder of a run.

    Args:
        names: The names.
        where: The setting, for the error.

    Raises:
        UserError: A name holds other characters than letters, digits, ``_``, ``-`` and inner dots, or is used by the run.
    """
    for name in names:
        if not SET_NAME.fullmatch(name) or name in USED:
            raise UserError(
                f"names a set {name!r}",
                where=where,
                remedy="use letters, digits, _ and -, and no name of a run's folders",
            )


def renamed(name: str, value: Setting, old_name: str, old_value: Setting | None) -> Setting:
    """Return the value of a setting that has a new name, and is accepted under its old name too.

    The old name wins where it is given: nothing gives it by default, while a configuration below an older overlay may give
    the new name.

    Args:
        name: The new name, without ``data.``.
        value: The value under the new name.
        old_name: The old name, without ``data.``.
        old_value: The value under the old name; None if it is not given.
    """
    if old_value is None:
        return value
    log.warning("data.%s is called data.%s now; its old name still works, and takes precedence", old_name, name)
    return old_value
