"""Splits that do not leak: by scenario, and never a held-out text in training."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afintro.data.samples import read_rows
from afintro.errors import UserError

SHINGLE_WORDS = 8
CONTAINMENT = 0.3
TEXT_FIELDS = ("text", "original_text", "ablation_prompt", "prompt", "chosen_label")


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


def check_contamination(
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
            where="contamination check",
            remedy="remove them from the training file, or set data.heldout_action: drop",
        )
    dropped = {hit.train_index for hit in hits}
    return [index for index in range(len(train)) if index not in dropped], lines


def stable_hash(text: str) -> int:
    """A number from 0 to 2**64 - 1 that depends on the text alone: a random draw that every process repeats."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def split_by_scenario(scenarios: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split indices so that no scenario is on both sides.

    Which side a scenario falls on depends on its id and the seed alone, so a file that grows keeps its split.
    """
    first: list[int] = []
    second: list[int] = []
    for index, scenario in enumerate(scenarios):
        (second if stable_hash(f"{seed} {scenario}") < fraction * 2**64 else first).append(index)
    return first, second


def hold_out(
    keys: NDArray[np.int64],
    clusters: NDArray[np.int32],
    names: Sequence[str],
    fraction: float,
    most: int,
    seed: int,
    whole: Sequence[bool] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Split features off training in two ways: whole clusters, and single features of clusters that training keeps.

    Features of a cluster share their label, so a split by feature alone leaks it; both kinds are reported.

    Args:
        keys: ``[n]`` a number for each feature, different for each.
        clusters: ``[n]`` index of its cluster in ``names``.
        names: The clusters' names.
        fraction: Share of the features to hold out, once for each kind.
        most: At most so many, for each kind.
        seed: Which ones are held out depends on it and on keys and names, not on their order.
        whole: Which clusters may be held out whole; None for all.

    Returns:
        Ascending indices: training, held-out clusters (whole, as many as fit), held-out features. A cluster larger than
        the share allowed is never held out.
    """
    budget = min(int(fraction * len(keys)), most)
    sizes = np.bincount(clusters, minlength=len(names))
    unseen = np.zeros(len(names), dtype=bool)
    left = budget
    draws = np.fromiter((stable_hash(f"{seed} {name}") for name in names), np.uint64, len(names))
    for index in np.argsort(draws, kind="stable"):
        if left == 0:
            break
        if 0 < sizes[index] <= left and (whole is None or whole[index]):
            unseen[index] = True
            left -= int(sizes[index])
    by_cluster = unseen[clusters]
    rest = np.flatnonzero(~by_cluster)
    # A feature that is alone in its cluster would take the cluster with it.
    shared = rest[sizes[clusters[rest]] > 1]
    drawn = shared[np.argsort(_mixed(keys[shared], seed), kind="stable")]
    kept = np.unique(clusters[drawn], return_index=True)[1]  # one feature of each cluster stays in training
    candidates = np.delete(drawn, kept)
    features = np.sort(candidates[:budget])
    training = np.setdiff1d(rest, features, assume_unique=True)
    return training, np.flatnonzero(by_cluster), features


def _mixed(keys: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A hash of each key and the seed: the finaliser of SplitMix64 (Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):
        mixed = keys.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
