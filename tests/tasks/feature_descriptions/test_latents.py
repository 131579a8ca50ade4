"""Descriptions of features one by one."""

import json

import pytest

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.latents import from_latents

ROWS = [
    {"latent_id": 0, "description": " Detects refusal. ", "coherence": 4},
    {"latent_id": 7, "description": "Detects threats.", "reasoning": "Threatens."},
    {"latent_id": 8, "description": ""},
    {"latent_id": 9, "description": "Detects refusal."},
]


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows))
    return path


def labels(described):
    return {feature: (entry["chosen_label"], entry["cluster_id"]) for feature, entry in described.items()}


@pytest.mark.parametrize(
    ("name", "prefix"), [("layer_40.jsonl", "40/"), ("mine_layer3.json", "3/"), ("latents.jsonl", "")]
)
def test_the_name_may_say_the_layer(tmp_path, name, prefix):
    described, unlabeled = from_latents(write(tmp_path / name, ROWS))
    assert labels(described) == {
        f"{prefix}0": ("Detects refusal.", "Detects refusal."),
        f"{prefix}7": ("Threatens.", "Threatens."),
        f"{prefix}9": ("Detects refusal.", "Detects refusal."),
    }
    assert described[f"{prefix}7"]["all_labels"] == ["Threatens.", "Detects threats."]
    assert unlabeled == [f"{prefix}8"]
    assert {entry["category"] for entry in described.values()} == {"unclustered"}


def test_rows_may_say_the_layer(tmp_path):
    rows = [{"latent_id": 1, "layer": 5, "description": "a"}, {"latent_id": "6/1", "description": "b"}]
    assert labels(from_latents(write(tmp_path / "layer_40.jsonl", rows))[0]) == {"5/1": ("a", "a"), "6/1": ("b", "b")}


def test_a_folder_of_layers(tmp_path):
    for layer in (4, 12):
        write(tmp_path / "all" / f"layer_{layer}.jsonl", ROWS[:1])
    assert list(from_latents(tmp_path / "all")[0]) == ["12/0", "4/0"]


@pytest.mark.parametrize("prefix", ["", "40/"])
def test_clusters_of_the_features(tmp_path, prefix):
    clusters = write(tmp_path / "assignments.json", {f"{prefix}0": 3, f"{prefix}7": -1, f"{prefix}99": 3})
    described, _ = from_latents(write(tmp_path / "layer_40.jsonl", ROWS), clusters)
    assert labels(described) == {
        "40/0": ("Detects refusal.", "3"),
        "40/7": ("Threatens.", "Threatens."),
        "40/9": ("Detects refusal.", "Detects refusal."),
    }
    assert {feature: entry.get("category") for feature, entry in described.items()} == {
        "40/0": None, "40/7": "unclustered", "40/9": "unclustered",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "where", "word"),
    [
        ([*ROWS, ROWS[0]], "record 4", "listed in layer_40.jsonl, record 0"),
        ([{"description": "a"}], "record 0", "latent_id"),
        ([{"latent_id": -1, "description": "a"}], "record 0", "not a feature"),
        ([{"latent_id": 1, "layer": "x", "description": "a"}], "record 0", "not a feature"),
        ([{"latent_id": 1, "description": 3}], "record 0, description", "int"),
        ([{"latent_id": 1, "description": ""}], "layer_40.jsonl", "no feature has a label"),
        (["a"], "record 0", "not an object"),
    ],
)
def test_wrong(tmp_path, rows, where, word):
    with pytest.raises(UserError) as error:
        from_latents(write(tmp_path / "layer_40.jsonl", rows))
    assert where in error.value.where
    assert word in error.value.what


def test_assignments_of_other_features_and_an_empty_folder(tmp_path):
    with pytest.raises(UserError) as error:
        from_latents(
            write(tmp_path / "layer_40.jsonl", ROWS), write(tmp_path / "assignments.json", {"41/0": 1, "5": 2})
        )
    assert error.value.where == str(tmp_path / "assignments.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        from_latents(tmp_path / "empty")
    assert error.value.where == str(tmp_path / "empty")
