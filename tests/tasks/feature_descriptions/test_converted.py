"""What other tools' pickles become: features by their columns, explanations as descriptions, all else by its places."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.converted import convert
from afintro.tasks.feature_descriptions.descriptions import read_descriptions
from afintro.tasks.feature_descriptions.features import FeatureFile
from afintro.tasks.feature_descriptions.records import FeatureTable
from afintro.tasks.feature_descriptions.sae import find_decoder

COLUMNS = torch.arange(1, 13, dtype=torch.float32).reshape(3, 4)  # [width, features]
LABELED = {"chosen_label": "dogs", "all_labels": ["cats", "dogs"], "all_label_scores": {"dogs": 0.4, "cats": None}}


def put(folder, name, content):
    (folder / name).write_bytes(pickle.dumps(content))
    return folder / name


class TestFeatures:
    @pytest.mark.parametrize(
        "content",
        [
            COLUMNS,
            {"weights": COLUMNS},
            COLUMNS.numpy().astype(np.float64),
            {"weights": COLUMNS.bfloat16(), "bias": torch.ones(4)},
        ],
    )
    def test_a_column_is_a_feature(self, tmp_path, content):
        written, said = convert(put(tmp_path, "layer_7.pkl", content), tmp_path / "out" / "layer_7")
        assert written == [tmp_path / "out" / "layer_7.safetensors"]
        assert "4 features of layer 7, width 3" in said
        file = FeatureFile(written[0])
        assert (file.layer, file.width, file.indices.tolist()) == (7, 3, [0, 1, 2, 3])
        np.testing.assert_array_equal(file.rows([0, 2]), [[1, 5, 9], [3, 7, 11]])

    def test_our_own_file_for_other_tools(self, tmp_path):
        content = {"activations": COLUMNS.numpy(), "feature_indices": np.array([9, 2, 30, 4])}
        (written,), _ = convert(put(tmp_path, "layer_7.pkl", content), tmp_path / "out")
        file = FeatureFile(written)
        assert file.indices.tolist() == [2, 4, 9, 30]
        np.testing.assert_array_equal(file.rows([0, 3]), [[2, 6, 10], [3, 7, 11]])

    def test_columns_of_zeros_are_left_out(self, tmp_path):
        content = COLUMNS.clone()
        content[:, 1] = 0
        (written,), said = convert(put(tmp_path, "layer_0.pkl", content), tmp_path / "out")
        assert FeatureFile(written).indices.tolist() == [0, 2, 3]
        assert "1 of zeros" in said

    def test_the_layer_may_be_said(self, tmp_path):
        (written,), _ = convert(put(tmp_path, "mine.pkl", COLUMNS), tmp_path / "mine", layer=5)
        assert written == tmp_path / "layer_5.safetensors"
        with pytest.raises(UserError, match="layer 7") as error:
            convert(put(tmp_path, "layer_7.pkl", COLUMNS), tmp_path / "x", layer=5)
        assert error.value.where == str(tmp_path / "layer_7.pkl")

    @pytest.mark.parametrize(
        ("content", "word"),
        [
            ([1, 2], "0 matrices"),
            ({"encoder": COLUMNS, "decoder": COLUMNS}, "2 matrices"),
            ({"W_dec": COLUMNS}, "W_dec"),
            ({"decoder.weight": COLUMNS}, "decoder.weight"),
            (torch.ones(3), "0 matrices"),
            (torch.zeros(3, 4), "zeros alone"),
            (torch.full((3, 4), torch.nan), "NaN"),
            (COLUMNS.to(torch.complex64), "complex64"),
            (torch.ones(3, 0), "[3, 0]"),
            ({"activations": COLUMNS.numpy(), "feature_indices": np.arange(3)}, "[3] features"),
            ({"activations": COLUMNS.numpy(), "feature_indices": np.array([1, 1, 2, 3])}, "twice"),
            ({"activations": COLUMNS.numpy(), "feature_indices": np.array([-1, 1, 2, 3])}, "below 0"),
            ({"activations": COLUMNS.numpy(), "feature_indices": np.arange(4.0)}, "float64"),
        ],
    )
    def test_wrong(self, tmp_path, content, word):
        path = put(tmp_path, "layer_7.pkl", content)
        with pytest.raises(UserError) as error:
            convert(path, tmp_path / "out" / "layer_7")
        assert error.value.where == str(path)
        assert word in error.value.what
        assert not (tmp_path / "out").exists()


class TestExplanations:
    def test_descriptions(self, tmp_path):
        content = [
            ((7, 0), LABELED),
            ((7, np.int64(3)), {"chosen_label": " cats ", "all_labels": []}),
            ((8, 0), {"chosen_label": "", "all_labels": ["dogs"]}),
            ((7, 0), {"chosen_label": "wolves"}),
        ]
        (written,), said = convert(put(tmp_path, "train.pkl", content), tmp_path / "train")
        assert "2 described features, 1 without a label" in said
        assert read_descriptions(written) == {
            "7/0": {
                "chosen_label": "dogs",
                "cluster_id": "dogs",
                "all_labels": ["dogs", "cats", "wolves"],
                "category": "layer 7",
            },
            "7/3": {"chosen_label": "cats", "cluster_id": "cats", "all_labels": ["cats"], "category": "layer 7"},
        }

    def test_features_and_explanations_fit_together(self, tmp_path):
        (features,), _ = convert(put(tmp_path, "layer_7.pkl", {"weights": COLUMNS}), tmp_path / "layer_7")
        (described,), _ = convert(
            put(tmp_path, "train.pkl", [((7, 2), LABELED), ((7, 99), LABELED)]), tmp_path / "train"
        )
        table = FeatureTable(str(described), [FeatureFile(features)])
        assert table.feature(0).uid == "7/2"
        np.testing.assert_array_equal(table.vectors(np.array([0])), [[3, 7, 11]])
        assert table.without_vector == (1, ["7/99"])

    @pytest.mark.parametrize(
        "label",
        [{"chosen_label": 3}, {"chosen_label": "a", "all_labels": [3]}, {"chosen_label": "a", "all_labels": "a"}],
    )
    def test_wrong_labels(self, tmp_path, label):
        with pytest.raises(UserError) as error:
            convert(put(tmp_path, "train.pkl", [((7, 0), LABELED), ((7, 1), label)]), tmp_path / "train")
        assert "record 1" in error.value.where

    def test_wrong_features(self, tmp_path):
        with pytest.raises(UserError, match="not a feature"):
            convert(put(tmp_path, "train.pkl", [(("x", 0), LABELED)]), tmp_path / "train")
        with pytest.raises(UserError, match="no feature has a label"):
            convert(put(tmp_path, "train.pkl", [((1, 0), LABELED | {"chosen_label": ""})]), tmp_path / "train")


class TestAnythingElse:
    def test_an_array(self, tmp_path):
        (written,), _ = convert(put(tmp_path, "a.pkl", np.arange(6.0).reshape(2, 3)), tmp_path / "a")
        assert written.name == "a.npy"
        np.testing.assert_array_equal(np.load(written), np.arange(6.0).reshape(2, 3))

    def test_a_tensor(self, tmp_path):
        torch.save(COLUMNS.T, tmp_path / "layer_3.pt")  # torch's files are taken as they are, whatever their name
        (written,), _ = convert(tmp_path / "layer_3.pt", tmp_path / "a")
        assert torch.equal(load_file(written)["tensor"], COLUMNS.T)

    def test_tensors_with_names(self, tmp_path):
        (written,), _ = convert(
            put(tmp_path, "a.pkl", {"W_dec": COLUMNS, "b": np.arange(2, dtype=">i4")}), tmp_path / "a"
        )
        found = load_file(written)
        assert torch.equal(found["W_dec"], COLUMNS)
        assert found["b"].tolist() == [0, 1]

    def test_tensors_and_what_is_beside_them(self, tmp_path):
        content = {"layers": [COLUMNS, {"x": COLUMNS[0]}], (40, 7): "c", "s": {3, 1}, "nan": float("nan")}
        (tensors, rest), _ = convert(put(tmp_path, "a.pkl", content), tmp_path / "a")
        assert sorted(load_file(tensors)) == ["layers.0", "layers.1.x"]
        assert json.loads(rest.read_text()) == {
            "layers": [{"tensor": "layers.0"}, {"x": {"tensor": "layers.1.x"}}], "40/7": "c", "s": [1, 3], "nan": None,
        }  # fmt: skip

    def test_no_tensor_at_all(self, tmp_path):
        (written,), _ = convert(put(tmp_path, "a.pkl", {"a": [1, "b"]}), tmp_path / "a")
        assert json.loads(written.read_text()) == {"a": [1, "b"]}

    @pytest.mark.parametrize("content", [{1: "a", "1": "b"}, {2.5: "a"}, {"a": {"b": COLUMNS}, "a.b": COLUMNS}])
    def test_names_that_are_none(self, tmp_path, content):
        with pytest.raises(UserError) as error:
            convert(put(tmp_path, "a.pkl", content), tmp_path / "out" / "a")
        assert error.value.where == str(tmp_path / "a.pkl")
        assert not (tmp_path / "out").exists()


def test_readers_of_data_send_pickles_here(tmp_path):
    features = put(tmp_path, "layer_7.pkl", COLUMNS)
    for read in (FeatureFile, find_decoder, lambda path: FeatureTable(str(path), [])):
        with pytest.raises(UserError) as error:
            read(features)
        assert error.value.where == str(features)
        assert "convert_pickles" in error.value.remedy
