"""Descriptions of features from exports of Neuronpedia."""

import gzip
import json

import pytest

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.neuronpedia import from_neuronpedia


def row(index, description, layer="20-gemmascope-res-16k", model="gemma-2-2b", **more):
    return {
        "modelId": model,
        "layer": layer,
        "index": index,
        "description": description,
        "explanationModelName": "x",
        **more,
    }


ROWS = [
    row("0", " references to dogs"),
    row("12", "legal terms"),
    row("0", "dog walking"),
    row("0", "references to dogs"),
    row(13, None),
    row(14, "legal terms"),
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(entry) + "\n" for entry in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["all.jsonl", "batch-0.jsonl.gz", "all.json"])
def test_the_first_explanation_is_the_label_and_all_are_kept(tmp_path, name):
    described, unlabeled = from_neuronpedia(write(tmp_path / name, ROWS))
    assert described == {
        "20/0": {
            "chosen_label": "references to dogs", "cluster_id": "references to dogs", "category": "20-gemmascope-res-16k",
            "all_labels": ["references to dogs", "dog walking"],
        },
        "20/12": {
            "chosen_label": "legal terms", "cluster_id": "legal terms", "category": "20-gemmascope-res-16k",
            "all_labels": ["legal terms"],
        },
        "20/14": {
            "chosen_label": "legal terms", "cluster_id": "legal terms", "category": "20-gemmascope-res-16k",
            "all_labels": ["legal terms"],
        },
    }  # fmt: skip
    assert unlabeled == ["20/13"]


def test_batches_in_the_order_of_their_numbers(tmp_path):
    for number in (0, 2, 10):
        write(tmp_path / "export" / f"batch-{number}.jsonl.gz", [row(0, f"of batch {number}"), row(number, "own")])
    (tmp_path / "export" / "notes.txt").write_text("no batch")
    described, _ = from_neuronpedia(tmp_path / "export")
    assert described["20/0"]["all_labels"] == ["of batch 0", "own", "of batch 2", "of batch 10"]
    assert list(described) == ["20/0", "20/2", "20/10"]


def test_layers_of_one_autoencoder(tmp_path):
    rows = [row(0, "a", layer="3-res-jb"), row(0, "b", layer="11-res-jb")]
    described, _ = from_neuronpedia(write(tmp_path / "f.jsonl", rows))
    assert {feature: entry["chosen_label"] for feature, entry in described.items()} == {"3/0": "a", "11/0": "b"}


class TestSeveralAutoencoders:
    ROWS = (
        row(0, "res"),
        row(0, "att", layer="20-gemmascope-att-16k"),
        row(0, "other layer", layer="21-gemmascope-res-16k"),
        row(0, "other model", model="gemma-2-9b"),
        row(0, "neuron", layer="20"),
    )

    @pytest.mark.parametrize(
        ("source", "found"),
        [
            ("20-gemmascope-att-16k", {"20/0": "att"}),
            ("gemmascope-att-16k", {"20/0": "att"}),
            ("gemma-2-2b/20-gemmascope-res-16k", {"20/0": "res"}),
            ("gemma-2-2b/gemmascope-res-16k", {"20/0": "res", "21/0": "other layer"}),
            ("21-gemmascope-res-16k", {"21/0": "other layer"}),
            ("neurons", {"20/0": "neuron"}),
        ],
    )
    def test_the_source_chooses(self, tmp_path, source, found):
        described, _ = from_neuronpedia(write(tmp_path / "f.jsonl", self.ROWS), source)
        assert {feature: entry["chosen_label"] for feature, entry in described.items()} == found

    @pytest.mark.parametrize(
        ("source", "word"),
        [(None, "gemma-2-2b/gemmascope-att-16k"), ("20-gemmascope-res-16k", "gemma-2-9b/"), ("9-x", "holds nothing")],
    )
    def test_numbers_of_several_are_never_mixed(self, tmp_path, source, word):
        with pytest.raises(UserError) as error:
            from_neuronpedia(write(tmp_path / "f.jsonl", self.ROWS), source)
        assert error.value.where == str(tmp_path / "f.jsonl")
        assert word in error.value.what


@pytest.mark.parametrize(
    ("entry", "where", "word"),
    [
        ("a", "record 1", "not an object"),
        ({"layer": "20-x", "index": 1, "description": "a"}, "record 1", "modelId"),
        (
            {"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "index": 1, "maxActApprox": 3.0},
            "record 1",
            "no description",
        ),
        (row(1, "a", layer="res-jb"), "record 1", "'res-jb'"),
        (row(1, "a", layer=20), "record 1", "20"),
        (row("x", "a"), "record 1, index", "not a feature"),
        (row(-1, "a"), "record 1, index", "not a feature"),
        (row(1, 5), "record 1, description", "int"),
    ],
)
def test_wrong_rows(tmp_path, entry, where, word):
    with pytest.raises(UserError) as error:
        from_neuronpedia(write(tmp_path / "f.jsonl", [ROWS[0], entry]))
    assert where in error.value.where
    assert word in error.value.what


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:40], lambda raw: raw[:60] + b"\0\0\0" + raw[63:], lambda raw: b"plain text", None]
)
def test_damaged_batches(tmp_path, damage):
    path = write(tmp_path / "batch-0.jsonl.gz", ROWS)
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(UserError) as error:
        from_neuronpedia(path)
    assert str(path) in error.value.where


def test_malformed_lines_empty_files_and_folders(tmp_path):
    path = tmp_path / "batch-0.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode() + b"\n{"))
    with pytest.raises(UserError, match="line 2: is malformed"):
        from_neuronpedia(path)
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="is empty"):
        from_neuronpedia(path)
    path.unlink()
    with pytest.raises(UserError, match="holds no file"):
        from_neuronpedia(tmp_path)
