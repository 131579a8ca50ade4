"""The embedded default of context ablation: who asks in which split, in which wordings."""

from collections import Counter
from pathlib import Path

import pytest

from afintro.data.samples import Sample
from afintro.tasks.context_ablation import toy
from afintro.toys.grammar import NAMES


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Sample]]:
    """The samples of each split, as the organism is asked them; nothing is trained and nothing generated."""
    splits: dict[str, list[Sample]] = {}

    def generate(samples: list[Sample], sizes: dict[str, int], *_: object) -> None:
        start = 0
        for split, size in sizes.items():
            splits[split] = samples[start : start + size]
            start += size
        assert start == len(samples)

    monkeypatch.setattr(toy, "ensure_built", str)
    monkeypatch.setattr(toy, "directory_of", lambda _: str(tmp_path))
    monkeypatch.setattr(toy, "fingerprint", lambda _: "weights")
    monkeypatch.setattr(toy, "generate_ablation", generate)
    toy.build_embedded()
    return splits


def test_names_of_training_are_asked_again_in_other_words_beside_new_names(asked: dict[str, list[Sample]]) -> None:
    names = {split: {sample.scenario_id for sample in samples} for split, samples in asked.items()}
    labeled = set(NAMES["labeled"])
    assert names["train"] == labeled
    assert names["validation"] == labeled | set(NAMES["validation"])
    assert names["test"] == labeled | set(NAMES["test"])
    assert len(NAMES["test"]) == 200
    texts = [sample.text for samples in asked.values() for sample in samples]
    assert len(texts) == len(set(texts))


def test_every_name_of_a_group_asks_equally_often(asked: dict[str, list[Sample]]) -> None:
    for split, samples in asked.items():
        counts = Counter(sample.scenario_id for sample in samples)
        for group, count in toy.SCENARIOS[split].items():
            assert {counts[name] for name in NAMES[group]} == {count}
        assert len(samples) == toy.EMBEDDED_SIZES[split]


def test_every_text_names_who_asks(asked: dict[str, list[Sample]]) -> None:
    assert all(sample.scenario_id in sample.text for samples in asked.values() for sample in samples)


def test_a_limit_keeps_names_of_every_group(asked: dict[str, list[Sample]]) -> None:
    """A run of a few records, e.g. with configs/debug.yaml, meets new names and labeled names."""
    for split in ("validation", "test"):
        first = {sample.scenario_id for sample in asked[split][:24]}
        assert first & set(NAMES["labeled"])
        assert first & set(NAMES[split])


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_bit_of_a_name_is_balanced(asked: dict[str, list[Sample]], split: str) -> None:
    changes = Counter(sample.label in ("fakes", "warns") for sample in asked[split])
    assert changes[True] == changes[False]
