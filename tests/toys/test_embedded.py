"""Names of embedded models become directories; any other name stays."""

from pathlib import Path

import pytest

from afintro.toys import organism as toy
from afintro.toys.chat_base import base as study_base
from afintro.toys.embedded import ensure_built


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Training writes one file instead; the list holds the settings of every training."""
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path))
    calls = []

    def train(settings, directory):
        calls.append(settings)
        (directory / "config.json").write_text("{}")

    for module in (toy, study_base):
        monkeypatch.setattr(module, "_train", train)
    return calls


@pytest.mark.parametrize("models", [toy.TOYS, study_base.STUDY_BASES])
def test_each_name_is_trained_once_into_a_directory_of_its_own(tmp_path, trained, models):
    directories = [ensure_built(name) for name in models]
    assert [ensure_built(name) for name in models] == directories
    assert len(set(directories)) == len(models) > 1
    assert all(Path(directory).is_relative_to(tmp_path) and Path(directory).is_dir() for directory in directories)
    assert trained == list(models.values())


def test_names_are_distinct_and_others_stay_as_they_are(trained):
    assert not set(toy.TOYS) & set(study_base.STUDY_BASES)
    for name in ("meta-llama/Llama-3.1-8B", "./toy", "./study-base", "study-base-2"):
        assert ensure_built(name) == name
    assert trained == []
