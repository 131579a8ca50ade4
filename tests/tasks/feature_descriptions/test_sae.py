"""Decoder rows from the layouts in which autoencoders are published."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.sae import decoder_file, decoder_rows, decoder_width

DECODER = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
OTHERS = {"W_enc": torch.ones(4, 10), "b_enc": torch.zeros(10), "b_dec": torch.zeros(4)}
CONFIG = {"d_in": 4, "d_sae": 10}


@pytest.fixture
def folder(tmp_path):
    """A SAELens folder of 10 features, width 4."""
    return saelens(tmp_path / "sae", CONFIG)


def saelens(folder, config, **tensors):
    folder.mkdir()
    save_file({"W_dec": DECODER, **OTHERS, **tensors}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def rows(path, indices):
    return np.concatenate(list(decoder_rows(path, np.array(indices))))


class TestLayouts:
    def test_saelens(self, folder):
        assert decoder_width(folder) == (10, 4, None)
        assert decoder_file(folder) == folder / "sae_weights.safetensors"
        np.testing.assert_array_equal(rows(folder, [0, 3, 9]), DECODER[[0, 3, 9]])

    @pytest.mark.parametrize(
        "tensors",
        [
            {"W_dec": DECODER, **OTHERS},
            {"decoder.weight": DECODER.T.contiguous(), "encoder.weight": torch.ones(10, 4)},
            {"vectors": DECODER, "bias": torch.zeros(10)},
        ],
    )
    def test_one_file(self, tmp_path, tensors):
        save_file(tensors, tmp_path / "weights.safetensors")
        assert decoder_file(tmp_path / "weights.safetensors") == tmp_path / "weights.safetensors"
        assert decoder_width(tmp_path / "weights.safetensors") == (10, 4, None)
        np.testing.assert_array_equal(rows(tmp_path / "weights.safetensors", range(10)), DECODER)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_types(self, tmp_path, dtype):
        save_file({"W_dec": DECODER.to(dtype)}, tmp_path / "f")
        found = rows(tmp_path / "f", [1, 2])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, DECODER.to(dtype).float()[1:3])

    @pytest.mark.parametrize("name", ["W_dec", "decoder.weight"])
    def test_blocks(self, tmp_path, name):
        """A block of features of which none is wanted is left out."""
        save_file({name: DECODER if name == "W_dec" else DECODER.T.contiguous()}, tmp_path / "f")
        blocks = list(decoder_rows(tmp_path / "f", np.array([1, 2, 3, 9]), block_features=3))
        assert [len(block) for block in blocks] == [2, 1, 1]
        np.testing.assert_array_equal(np.concatenate(blocks), DECODER[[1, 2, 3, 9]])

    @pytest.mark.parametrize(
        ("more", "layer"),
        [
            ({"hook_layer": 40}, 40),
            ({"hook_name": "blocks.40.hook_resid_post"}, 40),
            ({"hook_name": "model.layers.7"}, 7),
            ({"metadata": {"hook_name": "blocks.12.hook_resid_post"}}, 12),
            ({"hook_layer": 0, "hook_name": None}, 0),
            ({"hook_name": "hook_embed"}, None),
            ({"metadata": None}, None),
        ],
    )
    def test_layer(self, tmp_path, more, layer):
        assert decoder_width(saelens(tmp_path / "sae", CONFIG | more))[2] == layer


class TestWrong:
    @pytest.mark.parametrize(
        ("config", "what"),
        [
            ({"d_in": 4, "d_sae": 12}, "cfg.json: d_sae is 12, but the decoder has 10"),
            ({"d_in": 5, "d_sae": 10}, "cfg.json: d_in is 5, but the decoder has 4"),
            ({"d_in": 10, "d_sae": 4}, "cfg.json: d_sae is 4, but the decoder has 10"),
            ({"d_in": 4}, "cfg.json: d_sae is None"),
            ([4, 10], "cfg.json: "),
        ],
    )
    def test_config(self, tmp_path, config, what):
        with pytest.raises(UserError, match=re.escape(what)):
            decoder_width(saelens(tmp_path / "sae", config))

    def test_files_missing_or_not_what_they_should_be(self, folder, tmp_path):
        with pytest.raises(UserError, match="absent: does not exist"):
            decoder_width(tmp_path / "absent")
        (folder / "cfg.json").write_text("{")
        with pytest.raises(UserError, match=r"cfg.json, line 1: "):
            decoder_width(folder)
        (folder / "cfg.json").unlink()
        with pytest.raises(UserError, match=r"cfg.json: "):
            decoder_width(folder)
        (folder / "sae_weights.safetensors").write_bytes(b"no tensors")
        with pytest.raises(UserError, match=r"sae_weights.safetensors: is not a safetensors file"):
            decoder_width(folder)
        (folder / "sae_weights.safetensors").unlink()
        with pytest.raises(UserError, match=r"sae_weights.safetensors: does not exist"):
            decoder_width(folder)

    @pytest.mark.parametrize(
        ("tensors", "what"),
        [
            ({"a": DECODER, "b": DECODER.clone()}, "2 tensors of two dimensions: a, b"),
            ({"a": torch.ones(3)}, "0 tensors of two dimensions"),
            ({"W_dec": torch.ones(0, 4)}, "'W_dec' has the shape [0, 4]"),
        ],
    )
    def test_no_decoder(self, tmp_path, tensors, what):
        save_file(tensors, tmp_path / "f")
        with pytest.raises(UserError, match=re.escape(what)):
            decoder_width(tmp_path / "f")

    def test_not_finite(self, tmp_path):
        decoder = DECODER.clone()
        decoder[6, 1] = torch.nan
        save_file({"W_dec": decoder}, tmp_path / "f")
        assert len(rows(tmp_path / "f", [5, 7])) == 2
        with pytest.raises(UserError, match="f: vector of feature 6 holds NaN"):
            rows(tmp_path / "f", [5, 6, 7])

    @pytest.mark.parametrize("indices", [[0, 10], [-1, 0]])
    def test_no_such_feature(self, folder, indices):
        with pytest.raises(IndexError):
            rows(folder, indices)
