"""Names of embedded models become directories; any other name stays."""

from pathlib import Path

from afintro.organisms import toy
from afintro.organisms.embedded import resolve


def count_training(module, monkeypatch):
    """Replace a module's training by writing one file; the list holds one entry a training."""
    calls = []

    def train(settings, directory):
        calls.append(settings)
        (directory / "config.json").write_text("{}")

    monkeypatch.setattr(module, "_train", train)
    return calls


def test_names_resolve_to_trained_directories_and_others_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path))
    calls = count_training(toy, monkeypatch)
    for name in toy.TOYS:
        assert Path(resolve(name)).is_relative_to(tmp_path)
    assert len({resolve(name) for name in toy.TOYS}) == len(toy.TOYS) == 2
    assert calls == list(toy.TOYS.values())
    assert resolve("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"
    assert resolve("./toy") == "./toy"
    assert len(calls) == 2
