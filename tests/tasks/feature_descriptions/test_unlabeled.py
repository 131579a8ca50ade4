"""Features without labels are asked as labeled features are, wherever their vectors lie, and a block at a time."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from afintro.data.files import write_json
from afintro.errors import UserError
from afintro.lm.injection import VectorSpace
from afintro.tasks.feature_descriptions import tensor_files
from afintro.tasks.feature_descriptions.features import FeatureFile, write_features
from afintro.tasks.feature_descriptions.task import FeatureDescriptions, Wording
from afintro.tasks.feature_descriptions.unlabeled import questions
from afintro.tasks.unlabeled import Inputs
from tests.conftest import write_described_features

WIDTH, COUNT, LAYERS = 24, 12, (3, 5)
SPACE = VectorSpace(WIDTH, LAYERS)
NAMES = [f"{layer}/{index}" for layer in LAYERS for index in range(COUNT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of two layers; nobody writes here."""
    found = tmp_path_factory.mktemp("features")
    write_described_features(found, COUNT, WIDTH, LAYERS)
    return found


@pytest.fixture
def reader(tokenizer: PreTrainedTokenizerFast) -> Any:
    return SimpleNamespace(name="small", slot_token="<|slot|>", tokenizer=tokenizer, context_length=2048)


def task(folder: Path, train: str = "absent.json") -> FeatureDescriptions:
    """The data module, of whose files only the vectors need exist."""
    files = [str(folder / f"L{layer}.safetensors") for layer in LAYERS]
    return FeatureDescriptions(
        train_path=str(folder / train), validation_path=str(folder / "descriptions.json"), features=files
    )


def ask(folder: Path, source: Path | str, reader: Any, **settings: Any) -> list[Any]:
    asked = questions(task(folder), Inputs(str(source), **settings), SPACE)
    asked.check()
    return asked.encoded(reader)(0, len(asked))


def shown(example: Any) -> Any:
    return (
        example.uid,
        example.prompt,
        example.prompt_ids,
        example.slot.position,
        example.slot.layer,
        example.slot.vector.tobytes(),
    )


def vectors_of(folder: Path, layer: int) -> np.ndarray:
    return FeatureFile(folder / f"L{layer}.safetensors").rows(np.arange(COUNT))


@pytest.fixture
def labeled(folder: Path, reader: Any) -> list[Any]:
    """What predict asks about the labeled file, in its order."""
    return [shown(item) for item in task(folder, "descriptions.json").read_examples("validation", reader)]


def without_labels(folder: Path, to: Path, form: str) -> Path:
    described = json.loads((folder / "descriptions.json").read_text())
    contents: dict[str, Any] = {
        "described": described,
        "object": dict.fromkeys(described),
        "names": list(described),
        "fields": [{"feature": int(name[2:]), "layer": int(name[0])} for name in described],
        "latents": {"some": [{"latent_id": name} for name in described]},
    }
    write_json(to / "input.json", contents[form])
    return to / "input.json"


@pytest.mark.parametrize("form", ["described", "object", "names", "fields", "latents"])
def test_named_features_are_asked_as_labeled_ones(
    folder: Path, tmp_path: Path, reader: Any, labeled: list[Any], form: str
) -> None:
    found = ask(folder, without_labels(folder, tmp_path, form), reader)
    assert [shown(item) for item in found] == labeled
    assert {item.answer for item in found} == {""}
    assert {item.answer_ids for item in found} == {(reader.tokenizer.eos_token_id,)}


def test_a_folder_and_each_file_of_features_are_asked_whole(folder: Path, reader: Any, labeled: list[Any]) -> None:
    assert [shown(item) for item in ask(folder, folder, reader)] == labeled
    assert [shown(item) for item in ask(folder, folder / "L5.safetensors", reader)] == labeled[COUNT:]
    assert [shown(item) for item in ask(folder, folder, reader, layers=(5,))] == labeled[COUNT:]


def write_vectors(to: Path, kind: str, vectors: np.ndarray) -> tuple[Path, tuple[int, ...]]:
    """Write the vectors of layer 5; returns what to ask about, and the layers to give."""
    columns = np.ascontiguousarray(vectors.T)
    if kind == "npy":
        np.save(to / "v.npy", vectors)
    elif kind == "fortran":
        np.save(to / "v.npy", np.asfortranarray(vectors))
    elif kind == "npz":
        np.savez_compressed(to / "v.npz", W_dec=vectors, b_dec=np.zeros(WIDTH))
    elif kind == "matrix":
        save_file({"v": vectors}, to / "v.safetensors")
    elif kind == "columns":
        save_file({"decoder.weight": columns}, to / "v.safetensors")
    elif kind == "pt":
        torch.save({"decoder.weight": torch.from_numpy(columns)}, to / "v.pt")
    else:
        (to / "sae").mkdir()
        save_file({"W_dec": vectors, "b_enc": np.zeros(COUNT, np.float32)}, to / "sae" / "sae_weights.safetensors")
        write_json(to / "sae" / "cfg.json", {"d_sae": COUNT, "d_in": WIDTH, "hook_name": "blocks.5.hook_resid_post"})
        return to / "sae", ()
    return next(to.glob("v.*")), (5,)


@pytest.mark.parametrize("kind", ["npy", "fortran", "npz", "matrix", "columns", "pt", "saelens"])
def test_every_form_of_the_same_vectors_gives_the_same_questions(
    folder: Path, tmp_path: Path, reader: Any, labeled: list[Any], kind: str
) -> None:
    path, layers = write_vectors(tmp_path, kind, vectors_of(folder, 5))
    assert [shown(item) for item in ask(folder, path, reader, layers=layers)] == labeled[COUNT:]


def test_rows_may_bring_their_vectors(folder: Path, reader: Any, labeled: list[Any]) -> None:
    own = vectors_of(folder, 5)
    rows = [{"feature": number, "layer": 5, "vector": own[number].tolist()} for number in (7, 2)]
    found = ask(folder, "questions", reader, rows=rows)
    assert [shown(item) for item in found] == [labeled[COUNT + 7], labeled[COUNT + 2]]
    found = ask(folder, "questions", reader, rows=list(own), layers=(5,))
    assert [shown(item) for item in found] == labeled[COUNT:]


def test_prompts_follow_the_wording_of_each_feature(folder: Path, reader: Any) -> None:
    data = task(folder)
    data.wording = Wording(user=["One {slot} of {layer}?", "Two {slot}?"])
    asked = questions(data, Inputs(str(folder)), SPACE)
    for item in asked.encoded(reader)(0, len(asked)):
        layer, index = map(int, item.uid.split("/"))
        assert item.prompt == data.wording.text(layer, index, "<|slot|>")


def test_a_variant_without_vectors_is_asked_with_zeros(folder: Path, reader: Any) -> None:
    data = task(folder)
    data.zero_vectors = True
    (item,) = questions(data, Inputs(str(folder)), SPACE).encoded(reader)(4, 5)
    assert item.uid == "3/4"
    assert not item.slot.vector.any()


def test_only_the_blocks_that_are_asked_about_are_read(
    folder: Path, tmp_path: Path, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    block = tensor_files._Npy.block

    def noted(self: Any, name: str, first: int, last: int, transposed: bool) -> Any:
        read.append((first, last))
        return block(self, name, first, last, transposed)

    monkeypatch.setattr(tensor_files._Npy, "block", noted)
    rows = np.random.default_rng(0).standard_normal((5000, WIDTH)).astype(np.float16)
    np.save(tmp_path / "v.npy", rows)
    asked = questions(task(folder), Inputs(str(tmp_path / "v.npy"), layers=(3,)), SPACE)
    assert len(asked) == 5000
    assert not read
    found = asked.encoded(reader)(2040, 2056)
    assert read == [(1024, 2048), (2048, 3072)]
    assert [item.uid for item in found] == [f"3/{number}" for number in range(2040, 2056)]
    assert all((item.slot.vector == rows[2040 + i]).all() for i, item in enumerate(found))
    read.clear()
    asked.check()
    assert max(last - first for first, last in read) == 1024
    assert sum(last - first for first, last in read) == 5000


def test_only_rows_of_a_feature_file_that_are_asked_about_are_read(
    folder: Path, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []
    rows = FeatureFile.rows
    monkeypatch.setattr(FeatureFile, "rows", lambda self, wanted: (read.append(list(wanted)), rows(self, wanted))[1])
    asked = questions(task(folder), Inputs(str(folder)), SPACE)
    assert not read
    assert [item.uid for item in asked.encoded(reader)(10, 14)] == NAMES[10:14]
    assert read == [[10, 11], [0, 1]]


def test_the_key_tells_other_vectors_apart(folder: Path, tmp_path: Path) -> None:
    def key(source: Path, **settings: Any) -> str:
        return questions(task(folder), Inputs(str(source), **settings), SPACE).key

    assert key(folder) == key(folder)
    named = without_labels(folder, tmp_path, "names")
    write_json(tmp_path / "fewer.json", NAMES[1:])
    np.save(tmp_path / "v.npy", vectors_of(folder, 5))
    keys = [key(folder), key(folder, layers=(3,)), key(folder, layers=(5,)), key(tmp_path / "fewer.json")]
    keys += [key(tmp_path / "v.npy", layers=(layer,)) for layer in LAYERS]
    np.save(tmp_path / "v.npy", vectors_of(folder, 3))
    keys.append(key(tmp_path / "v.npy", layers=(3,)))
    rows = [{"feature": 1, "layer": 5, "vector": [float(number)] * WIDTH} for number in (1, 2)]
    keys += [questions(task(folder), Inputs("questions", [row]), SPACE).key for row in rows]
    assert len(set(keys)) == len(keys)
    assert key(named) == key(folder)


def test_faults_are_found_before_anything_is_asked(folder: Path, tmp_path: Path) -> None:
    rows = np.ones((3000, WIDTH), np.float32)
    rows[2500, 3] = np.nan
    np.save(tmp_path / "v.npy", rows)
    write_features(tmp_path / "f.safetensors", [rows], np.arange(3000), WIDTH, {"layer": "3"})
    for name in ("v.npy", "f.safetensors"):
        asked = questions(task(folder), Inputs(str(tmp_path / name), layers=(3,)), SPACE)
        with pytest.raises(UserError, match="feature 2500 holds NaN") as caught:
            asked.check()
        assert caught.value.where == str(tmp_path / name)


def test_a_file_that_changes_meanwhile_is_refused(folder: Path, tmp_path: Path, reader: Any) -> None:
    np.save(tmp_path / "v.npy", np.ones((10, WIDTH)))
    asked = questions(task(folder), Inputs(str(tmp_path / "v.npy"), layers=(3,)), SPACE)
    np.save(tmp_path / "v.npy", np.ones((11, WIDTH)))
    with pytest.raises(UserError, match="changed"):
        asked.encoded(reader)(0, 1)


@pytest.mark.parametrize(
    ("shape", "layers", "word"),
    [
        ((10, WIDTH + 1), (3,), "width 25"),
        ((10, WIDTH), (4,), "layer 4"),
        ((10, WIDTH), (), "does not say"),
        ((10, WIDTH), (3, 5), "one layer"),
        ((WIDTH, 10), (3,), "width 10"),
        ((WIDTH,), (3,), "shape"),
    ],
)
def test_vectors_that_the_explainer_does_not_read_are_refused(
    folder: Path, tmp_path: Path, shape: tuple[int, ...], layers: tuple[int, ...], word: str
) -> None:
    np.save(tmp_path / "v.npy", np.ones(shape, np.float32))
    with pytest.raises(UserError, match=word) as caught:
        questions(task(folder), Inputs(str(tmp_path / "v.npy"), layers=layers), SPACE)
    assert caught.value.where == str(tmp_path / "v.npy")


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ("7", "no layer"),
        ("4/7", "layer 4"),
        ("seven", "not a feature"),
        (f"3/{10**22}", "beyond"),
        ({"feature": 1, "layer": 10**22}, "'layer'"),
        ({"text": "hello"}, "names no feature"),
        ({"feature": 1, "layer": "x"}, "'layer'"),
        ({"feature": "3/1", "layer": 5}, "layer 3"),
        ({"vector": "x", "layer": 3}, "no list of numbers"),
        ({"vector": [1.0, 2.0], "layer": 3}, "width 2"),
        ({"vector": [float("inf")] * WIDTH, "layer": 3}, "infinite"),
        ({"vector": [1.0] * WIDTH, "layer": 4}, "layer 4"),
    ],
)
def test_wrong_rows_are_refused_by_their_place(folder: Path, row: Any, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        questions(task(folder), Inputs("questions", ["3/1", row]), SPACE)
    assert caught.value.where == "questions, record 1"


@pytest.mark.parametrize(
    ("rows", "word"), [(["3/1", "5/1", "3/1"], "3/1 occurs twice"), ([], "no question"), (["3/99"], "none")]
)
def test_features_together_are_refused(folder: Path, rows: list[str], word: str) -> None:
    with pytest.raises(UserError, match=word):
        questions(task(folder), Inputs("questions", rows), SPACE)


def test_a_feature_without_vector_is_left_out(folder: Path, reader: Any, caplog: pytest.LogCaptureFixture) -> None:
    found = ask(folder, "questions", reader, rows=["3/1", "3/99", "5/0"])
    assert [item.uid for item in found] == ["3/1", "5/0"]
    assert "3/99" in caplog.text


def test_settings_that_say_nothing_are_refused(folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        questions(task(folder), Inputs(str(folder), alphas=(1.0,)), SPACE)
    assert caught.value.where == "--alpha"
    with pytest.raises(UserError, match="vectors"):
        questions(task(folder), Inputs(str(folder)), None)
