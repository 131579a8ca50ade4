"""Splits that do not leak: by scenario, and never a held-out text in training."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from afintro.data.samples import read_rows
from afintro.errors import UserError

SHINGLE_WORDS = 8
CONTAINMENT = 0.3
TEXT_FIELDS = ("text", "original_text", "ablation_prompt", "prompt")


@dataclass(frozen=True)
class Hit:
    """A training text that is, or nearly is, a held-out one."""

    train_index: int
    heldout: str
    containment: float


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _shingles(words: Sequence[str]) -> set[int]:
    """Hashes of all runs of eight words; a shorter text is one shingle. (``hash`` of str varies by process: not used.)"""
    runs = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return {
        int.from_bytes(hashlib.blake2b(" ".join(words[i : i + SHINGLE_WORDS]).encode(), digest_size=8).digest())
        for i in runs
    }


def heldout_texts(path: str) -> list[tuple[str, str]]:
    """All texts of a held-out file with the name of each: every text field a record has counts."""
    texts: list[tuple[str, str]] = []
    for index, row in enumerate(read_rows(path)):
        found = [row[name] for name in TEXT_FIELDS if isinstance(row.get(name), str)] if isinstance(row, dict) else []
        if not found:
            raise UserError(
                f"has none of the fields {', '.join(TEXT_FIELDS)}",
                where=f"{path}, record {index}",
                remedy="give held-out files as samples or records",
            )
        texts.extend((text, f"{path}, record {index}") for text in found if text.strip())
    if not texts:
        raise UserError("holds no text", where=path, remedy="check the held-out file")
    return texts


def find_heldout(train: Sequence[str], heldout: Sequence[tuple[str, str]]) -> list[Hit]:
    """All pairs of a training text and a held-out text that match; the closest of a training text first.

    A match is equality of the words after normalisation (case, punctuation, white space), or a containment of eight-word
    shingles of at least 0.3 of the shorter text (Broder 1997, on the resemblance and containment of documents).
    """
    by_shingle: dict[int, list[int]] = {}
    sizes = []
    for index, (text, _) in enumerate(heldout):
        words = _words(text)
        shingles = _shingles(words)
        sizes.append(len(shingles))
        for shingle in shingles:
            by_shingle.setdefault(shingle, []).append(index)
    hits: list[Hit] = []
    for train_index, text in enumerate(train):
        words = _words(text)
        shingles = _shingles(words)
        shared: dict[int, int] = {}
        for shingle in shingles:
            for index in by_shingle.get(shingle, ()):
                shared[index] = shared.get(index, 0) + 1
        found = {index: count / min(len(shingles), sizes[index]) for index, count in shared.items()}
        found = {index: share for index, share in found.items() if share >= CONTAINMENT}
        closest: dict[str, float] = {}  # a held-out record may have several texts
        for index in sorted(found, key=lambda index: (-found[index], index)):
            closest.setdefault(heldout[index][1], found[index])
        hits.extend(Hit(train_index, name, share) for name, share in closest.items())
    return hits


def guard(
    train: Sequence[str], names: Sequence[str], heldout: Sequence[str], action: str
) -> tuple[list[int], list[str]]:
    """Keep held-out texts out of training.

    Args:
        train: Training texts.
        names: How to name each in a message (file and record).
        heldout: Held-out files.
        action: ``error`` stops the run, ``drop`` removes the training records.

    Returns:
        Indices of the training texts to keep, and one line of report for each that was dropped.

    Raises:
        UserError: A hit under ``error``: names every pair.
    """
    if action not in ("error", "drop"):
        raise UserError(f"{action!r} is no action", where="data.heldout_action", remedy="use error or drop")
    hits = find_heldout(train, [text for path in heldout for text in heldout_texts(path)])
    lines = [f"{names[hit.train_index]} matches {hit.heldout} (containment {hit.containment:.2f})" for hit in hits]
    if hits and action == "error":
        raise UserError(
            f"{len({hit.train_index for hit in hits})} training records are in a held-out set: " + "; ".join(lines),
            where="held-out guard",
            remedy="remove them from the training file, or set data.heldout_action: drop",
        )
    dropped = {hit.train_index for hit in hits}
    return [index for index in range(len(train)) if index not in dropped], lines


def split_by_scenario(scenarios: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split indices so that no scenario is on both sides.

    Which side a scenario falls on depends on its id and the seed alone, so a file that grows keeps its split.
    """
    first: list[int] = []
    second: list[int] = []
    for index, scenario in enumerate(scenarios):
        draw = hashlib.sha256(f"{seed} {scenario}".encode()).digest()
        (second if int.from_bytes(draw[:8]) < fraction * 2**64 else first).append(index)
    return first, second
