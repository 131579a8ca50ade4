"""Direction files of other projects: layers under numbers and names, hidden states, several concepts, control vectors."""

import importlib.util
import json
import logging
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from afintro.errors import UserError
from afintro.tasks.steering.control_vectors import write_gguf
from afintro.tasks.steering.direction_files import read_direction, read_directions
from afintro.tasks.steering.directions import Direction, write_direction

needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="an optional library")


def row(number: float, width: int = 4) -> torch.Tensor:
    """A vector that tells its number, exact in every dtype."""
    return torch.tensor([number, -2.0, 0.5] + [1.0] * (width - 3))


def numbers_of(direction: Direction) -> dict[int, float]:
    """By layer, the number of the vector."""
    return {layer: float(vector[0]) for layer, vector in direction.vectors.items()}


def saved(path: Any, content: Any) -> str:
    if path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


def refusal(call: Any, *words: str) -> UserError:
    with pytest.raises(UserError) as refused:
        call()
    assert all(word in str(refused.value) for word in words), str(refused.value)
    return refused.value


# Rows of a matrix


@pytest.mark.parametrize("suffix", ["npy", "pt", "safetensors"])
@pytest.mark.parametrize(("rows", "first"), [(3, 0), (4, -1)])
def test_row_0_is_the_embedding_where_there_is_one_row_more_than_layers(tmp_path, suffix, rows, first):
    """Row i + 1 of the hidden states is the output of layer i; the row of the embedding may be zero."""
    matrix = torch.stack([row(number) for number in range(rows)])
    if first == -1:
        matrix[0] = 0.0
    content = {"pt": matrix, "npy": matrix.numpy(), "safetensors": {"vectors": matrix}}[suffix]
    path = saved(tmp_path / f"v.{suffix}", content)
    assert numbers_of(read_direction(path, depth=3)) == {layer: layer - first for layer in range(3)}


@pytest.mark.parametrize("rows", [2, 5])
def test_a_matrix_of_other_rows_than_layers_is_refused(tmp_path, rows):
    path = saved(tmp_path / "v.pt", torch.stack([row(number) for number in range(rows)]))
    refused = refusal(lambda: read_direction(path, depth=3), f"{rows} rows", "3 layers", "first_layer")
    assert refused.where == path


@pytest.mark.parametrize(("first", "layers"), [(-1, [0, 1]), (0, [0, 1, 2]), (5, [5, 6, 7])])
def test_the_sidecar_says_which_layer_row_0_is(tmp_path, first, layers):
    path = saved(tmp_path / "v.pt", torch.stack([row(number) for number in range(3)]))
    (tmp_path / "v.json").write_text(json.dumps({"first_layer": first}))
    for depth in (None, 40):
        assert numbers_of(read_direction(path, depth=depth)) == {layer: layer - first for layer in layers}
    save_file({"v": torch.stack([row(1), row(2), row(3)])}, tmp_path / "w.safetensors", metadata={"first_layer": "7"})
    assert list(read_direction(str(tmp_path / "w.safetensors"), depth=40).vectors) == [7, 8, 9]


@pytest.mark.parametrize("first", [-2, "x", True, 1.5])
def test_a_wrong_first_layer(tmp_path, first):
    path = saved(tmp_path / "v.pt", torch.stack([row(1), row(2)]))
    (tmp_path / "v.json").write_text(json.dumps({"first_layer": first}))
    assert refusal(lambda: read_direction(path, depth=2), "first_layer").where == path


def test_rows_of_a_model_that_nobody_knows_are_layers_with_a_warning(tmp_path, caplog):
    saved(tmp_path / "v.npy", np.stack([row(1).numpy(), row(2).numpy()]))
    with caplog.at_level(logging.WARNING):
        [direction] = read_directions(tmp_path).values()
    assert numbers_of(direction) == {0: 1, 1: 2}
    assert "first_layer" in caplog.text
    assert "v.npy" in caplog.text


# Layers and names in dicts


@pytest.mark.parametrize(
    ("content", "layers"),
    [
        ({5: row(5), 11: row(11)}, {5: 5, 11: 11}),
        ({"5": row(5)[None], "11": row(11)}, {5: 5, 11: 11}),
        ({"model.layers.5": row(5), "model.layers.11": row(11)}, {5: 5, 11: 11}),
        ({"blocks.5.hook_resid_post": row(5), "blocks.6.hook_resid_post": row(6)}, {5: 5, 6: 6}),
        ({"model.layers.5.output": row(5)}, {5: 5}),
        ({"layer": 12, "vector": row(1)}, {12: 1}),
        ({"layer": torch.tensor(12), "direction": row(1), "model": "m", "accuracy": 0.9, "texts": ["a"]}, {12: 1}),
        ({"layer": "12", "vector": row(1)[None]}, {12: 1}),
        ({"layers": [6, 5], "vectors": torch.stack([row(6), row(5)])}, {5: 5, 6: 6}),
        ({"layers": torch.tensor([5]), "v": row(5)}, {5: 5}),
        ({"directions": {5: row(5), 6: row(6)}, "model": "m"}, {5: 5, 6: 6}),
        ({12: {"vector": row(1), "accuracy": 0.9}, 13: {"vector": row(2)}}, {12: 1, 13: 2}),
    ],
)
def test_one_direction(tmp_path, content, layers):
    direction = read_direction(saved(tmp_path / "v.pt", content))
    assert numbers_of(direction) == layers
    assert direction.everywhere is None


def test_layer_and_vector_as_safetensors(tmp_path):
    path = saved(tmp_path / "v.safetensors", {"layer": torch.tensor(12), "vector": row(1)})
    direction = read_direction(path)
    assert (direction.name, numbers_of(direction)) == ("v", {12: 1})


NAMED = {  # the same two directions, as people write them
    "vectors": {"joy": row(1), "anger": row(2)},
    "layer beside": {"layer": 3, "joy": row(1), "anger": row(2)},
    "layers within": {"joy": {3: row(1)}, "anger": {3: row(2)}},
    "layer within": {"joy": {"layer": 3, "vector": row(1)}, "anger": {"layer": 3, "vector": row(2)}},
    "names within layers": {3: {"joy": row(1), "anger": row(2)}},
    "flat": {"joy.layer_3": row(1), "anger.layer_3": row(2)},
    "flat under the model": {"joy.model.layers.3": row(1), "anger.model.layers.3": row(2)},
}


@pytest.mark.parametrize("form", NAMED)
def test_named_directions(tmp_path, form):
    path = saved(tmp_path / "v.pt", NAMED[form])
    for name, number in (("joy", 1), ("anger", 2)):
        direction = read_direction(f"{path}::{name}")
        assert direction.name == name
        assert (direction.at(3) == row(number).numpy()).all()
        assert list(direction.vectors) == ([] if form == "vectors" else [3])
        assert read_direction(f"{path}::{name}", "mine").name == "mine"
    refused = refusal(lambda: read_direction(path), "anger, joy", f"{path}::anger")
    assert refused.where == path
    refusal(lambda: read_direction(f"{path}::fear"), "'fear'", "anger, joy")
    assert {name: float(d.at(3)[0]) for name, d in read_directions(tmp_path).items()} == {"joy": 1, "anger": 2}


def test_named_tensors_of_a_safetensors_file(tmp_path):
    path = saved(tmp_path / "v.safetensors", {"joy": row(1), "anger": row(2)})
    assert read_direction(f"{path}::joy").at(9)[0] == 1
    refusal(lambda: read_direction(path), "anger, joy")


def test_a_name_with_rows_of_hidden_states(tmp_path):
    path = saved(tmp_path / "v.pt", {name: torch.stack([row(n + k) for n in range(4)]) for k, name in enumerate("ab")})
    assert numbers_of(read_direction(f"{path}::b", depth=3)) == {0: 2, 1: 3, 2: 4}
    refused = refusal(lambda: read_direction(f"{path}::b", depth=7), "4 rows")
    assert "'b'" in refused.where


def test_only_what_was_chosen_is_checked(tmp_path):
    path = saved(tmp_path / "v.pt", {"joy": row(1), "anger": row(2) * 0})
    assert read_direction(f"{path}::joy").at(0)[0] == 1
    refusal(lambda: read_directions(tmp_path), "zero", "'anger'")


def test_a_file_of_one_name_needs_no_choice(tmp_path):
    direction = read_direction(saved(tmp_path / "v.pt", {"joy": {3: row(1), 4: row(2)}}))
    assert (direction.name, numbers_of(direction)) == ("joy", {3: 1, 4: 2})


def test_a_file_without_names_has_none_to_choose(tmp_path):
    path = saved(tmp_path / "v.pt", {3: row(1)})
    refusal(lambda: read_direction(f"{path}::joy"), "'joy'", "alone")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"layer": -1, "vector": row(1)}, ["'layer'", "-1"]),
        ({"layer": "middle", "vector": row(1)}, ["'layer'", "middle"]),
        ({"layer": 1.5, "vector": row(1)}, ["'layer'", "1.5"]),
        ({"layer": True, "vector": row(1)}, ["'layer'", "True"]),
        ({"layers": [1, 2], "vectors": row(1)}, ["[1, 2]"]),
        ({"layers": [1, 1], "vectors": torch.stack([row(1), row(2)])}, ["[1, 1]"]),
        ({5: row(5), 6: [1.0, 2.0]}, ["entry 6", "list"]),
        ({5: row(5), "6": None}, ["entry '6'"]),
        ({"joy": {}, "anger": {3: row(1)}}, ["holds no tensor", "'joy'"]),
        ({"joy": 1}, ["holds no tensor"]),
        ({"joy": {3: row(1)}, "anger": row(2)}, ["'joy'", "'anger'"]),
        ({3: {4: row(1)}}, ["entry '3'"]),
        ({"3": row(1), "joy.3": row(2)}, ["without a name"]),
        ({"blocks.5.hook_resid_pre": row(5)}, ["'blocks.5.hook_resid_pre'", "within"]),
        ({"model.layers.12.self_attn.o_proj": row(5)}, ["o_proj", "within"]),
        ({"layer_5.mlp": row(5), "layer_6.mlp": row(6)}, ["'layer_5.mlp'", "within"]),
        ({"blocks.5.hook_resid_post": row(5), "blocks.5": row(6)}, ["two names"]),
        ({"joy": row(1), "anger": row(2) * float("nan")}, ["NaN", "'anger'"]),
        ({"joy": row(1), "anger": row(2) * 0}, ["zero", "'anger'"]),
        ({"joy": row(1), "anger": row(2).to(torch.complex64)}, ["complex64", "'anger'"]),
        ({"anger": {1: row(1), 2: row(2, width=5)}, "b": {1: row(1)}}, ["5 numbers", "'anger'"]),
    ],
)
def test_refused(tmp_path, content, words):
    path = saved(tmp_path / "v.pt", content)
    chosen = f"{path}::anger" if "anger" in content else path
    assert refusal(lambda: read_direction(chosen), *words).where.startswith(path)


# Control vectors of llama.cpp and repeng


def control_vector(
    path: Any, tensors: dict[str, np.ndarray], hint: str | None = "llama", arch: str = "controlvector"
) -> str:
    """Write a GGUF file as repeng's ``export_gguf`` does."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, arch)
    if hint:
        writer.add_string(f"{arch}.model_hint", hint)
    writer.add_uint32(f"{arch}.layer_count", len(tensors))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@needs_gguf
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_control_vector_counts_layers_from_0(tmp_path, dtype):
    """repeng names a vector by the index of the decoder layer, and llama.cpp adds it to that layer's output."""
    tensors = {f"direction.{layer}": row(layer).numpy().astype(dtype) for layer in (9, 1, 2)}
    direction = read_direction(control_vector(tmp_path / "v.gguf", tensors, hint="mistral"))
    assert numbers_of(direction) == {1: 1, 2: 2, 9: 9}
    assert (direction.name, direction.metadata) == ("v", {"model_type": "mistral"})
    direction.check(4, 10, "x")
    refusal(lambda: direction.check(4, 9, "x"), "layer 9 of a model with 9 layers")
    assert read_direction(control_vector(tmp_path / "w.gguf", tensors, hint=None)).metadata == {}


@needs_gguf
def test_what_is_written_as_gguf_is_read_back_equal(tmp_path):
    vectors = {layer: np.random.default_rng(layer).normal(size=8).astype(np.float32) for layer in (1, 2, 7)}
    direction = Direction("deceit", vectors, None, {"name": "deceit", "model_type": "llama", "best_layer": 2})
    write_direction(tmp_path / "v.safetensors", direction)
    assert write_gguf(tmp_path / "v.gguf", direction) == []
    found = read_direction(str(tmp_path / "v.gguf"))
    assert (found.name, found.metadata) == (direction.name, direction.metadata)
    assert list(found.vectors) == [1, 2, 7]
    assert all(np.array_equal(found.at(layer), vector) for layer, vector in vectors.items())
    assert list(read_directions(tmp_path)) == ["deceit"], "a copy beside it is no second direction"
    (tmp_path / "v.safetensors").unlink()
    assert list(read_directions(tmp_path)) == ["deceit"]


@needs_gguf
def test_a_gguf_file_of_other_content(tmp_path):
    model = control_vector(tmp_path / "m.gguf", {"token_embd.weight": np.ones((2, 4), np.float32)}, arch="llama")
    assert refusal(lambda: read_direction(model), "direction.<layer>").where == model
    whole = control_vector(tmp_path / "v.gguf", {"direction.1": row(1).numpy()})
    content = (tmp_path / "v.gguf").read_bytes()
    for size in (0, 3, 40, len(content) // 2, len(content) - 20):
        (tmp_path / "v.gguf").write_bytes(content[:size])
        assert refusal(lambda: read_direction(whole), "GGUF").where == whole
    for name, tensor in (("direction.x", row(1)), ("direction.1", row(1) * float("inf")), ("direction.1", row(1) * 0)):
        written = control_vector(tmp_path / "w.gguf", {name: tensor.numpy()})
        assert refusal(partial(read_direction, written)).where == written


def test_gguf_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "v.gguf").write_bytes(b"GGUF")
    assert refusal(lambda: read_direction(str(tmp_path / "v.gguf")), "pip install gguf").where == str(
        tmp_path / "v.gguf"
    )
