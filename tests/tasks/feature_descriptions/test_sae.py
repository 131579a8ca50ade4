"""Decoder rows from the layouts in which autoencoders are published: row i is row i of the file's own decoder."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.sae import decoder_rows, find_decoder

DECODER = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
SQUARE = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
LINEAR = DECODER.T.contiguous()
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


def rows(path, indices=range(10), **options):
    return np.concatenate(list(decoder_rows(find_decoder(path), np.array(indices), **options)))


def sizes(path):
    decoder = find_decoder(path)
    return decoder.features, decoder.width, decoder.layer


def save(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif path.suffix in (".pt", ".pth"):
        torch.save(tensors, path)
    else:
        save_file(tensors, path)


LINEARS = {"encoder.weight": torch.ones(10, 4), "decoder.weight": LINEAR}
BIASES = {"encoder.bias": torch.ones(10)}
GEMMA_SCOPE = {"b_dec": torch.ones(4), "b_enc": torch.ones(10), "threshold": torch.ones(10)}
PUBLISHED = {  # who writes it: (file, tensors, file beside it, its content, layer)
    "Gemma Scope": (
        "layer_20/width_16k/average_l0_71/params.npz",
        {"W_dec": DECODER, "W_enc": torch.ones(4, 10), **GEMMA_SCOPE}, None, {}, 20,
    ),
    "Gemma Scope 2": (
        "resid_post/layer_40_width_16k_l0_medium/params.safetensors",
        {"w_dec": DECODER, "w_enc": torch.ones(4, 10), **GEMMA_SCOPE}, "config.json",
        {"hf_hook_point_in": "model.layers.40.output", "hf_hook_point_out": "model.layers.40.output", "width": 10}, 40,
    ),
    "Gemma Scope 2, transcoder": (
        "transcoder/layer_7_width_16k_l0_small_affine/params.safetensors",
        {"w_dec": DECODER, "w_enc": torch.ones(4, 10), "affine_skip_connection": torch.ones(4, 4), **GEMMA_SCOPE}, "config.json",
        {"hf_hook_point_in": "model.layers.7.pre_feedforward_layernorm.output", "width": 10,
         "hf_hook_point_out": "model.layers.7.post_feedforward_layernorm.output"}, 7,
    ),
    "Llama Scope": (
        "Llama3_1-8B-Base-L19R-8x/checkpoints/final.safetensors", {**LINEARS, **BIASES, "decoder.bias": torch.ones(4)},
        "../hyperparams.json", {"hook_point_in": "blocks.19.hook_resid_post", "d_model": 4, "d_sae": 10}, 19,
    ),
    "Llama Scope, R1": (
        "L15R/sae_weights.safetensors", {**LINEARS, **BIASES, "decoder.bias": torch.ones(4)},
        "config.json", {"hook_point_in": "blocks.15.hook_resid_post", "d_model": 4, "expansion_factor": 2.5}, 15,
    ),
    "OpenMOSS": (
        "mine/sae_weights.safetensors", {"W_D": DECODER, "W_E": torch.ones(4, 10), "b_E": torch.ones(10), "b_D": torch.ones(4)},
        "config.json", {"hook_point_in": "blocks.3.ln2", "hook_point_out": "blocks.5.hook_mlp_out", "d_model": 4}, 5,
    ),
    "sparsify": (
        "layers.19/sae.safetensors", {"W_dec": DECODER, "encoder.weight": torch.ones(10, 4), **BIASES, "b_dec": torch.ones(4)},
        "cfg.json", {"d_in": 4, "num_latents": 0, "expansion_factor": 2.5, "k": 2}, 19,
    ),
    "sparsify, transcoder": (
        "layers.19.mlp/sae.safetensors", {"W_dec": DECODER, "encoder.weight": torch.ones(10, 4), "W_skip": torch.ones(4, 4)},
        "cfg.json", {"d_in": 4, "num_latents": 10, "transcode": True}, 19,
    ),
    "Goodfire": (
        "Llama-3.1-8B-Instruct-SAE-l19.pth",
        {"decoder_linear.weight": LINEAR, "encoder_linear.weight": torch.ones(10, 4), "decoder_linear.bias": torch.ones(4)},
        None, {}, 19,
    ),
    "dictionary_learning": (
        "resid_post_layer_12/trainer_0/ae.pt", {**LINEARS, **BIASES, "bias": torch.ones(4)}, "config.json",
        {"trainer": {"dict_class": "AutoEncoder", "activation_dim": 4, "dict_size": 10, "layer": 12, "submodule_name": None}}, 12,
    ),
    "dictionary_learning, gated": (
        "ae.pt", {**LINEARS, "decoder_bias": torch.ones(4), "r_mag": torch.ones(10), "gate_bias": torch.ones(10)}, "config.json",
        {"trainer": {"activation_dim": 4, "dict_size": 10, "layer": 3, "submodule_name": "resid_post_layer_3"}}, 3,
    ),
    "dictionary_learning, matryoshka": (
        "ae.pt", {"W_dec": DECODER, **OTHERS, "k": torch.tensor(2), "group_sizes": torch.tensor([4, 6])}, "config.json",
        {"trainer": {"activation_dim": 4, "dict_size": 10, "layer": 3}}, 3,
    ),
    "dictionary_learning, in training": (
        "layer_2/trainer_0/checkpoints/ae_500.pt", {**LINEARS, **BIASES}, "../config.json", {"trainer": {"layer": 4}}, 4,
    ),
    "SAELens 2": (
        "a/sae_weights.safetensors", {"W_dec": DECODER, **OTHERS}, "cfg.json",
        {**CONFIG, "hook_point": "blocks.{layer}.hook_resid_pre", "hook_point_layer": 8}, 8,
    ),
    "SAELens 3 to 5": (
        "a/sae_weights.safetensors", {"W_dec": DECODER, **OTHERS}, "cfg.json",
        {**CONFIG, "hook_name": "blocks.8.hook_resid_pre", "hook_layer": 8}, 8,
    ),
    "SAELens 5, transcoder": (
        "a/sae_weights.safetensors", {"W_dec": DECODER, **OTHERS, "W_enc": torch.ones(6, 10)}, "cfg.json",
        {"d_in": 6, "d_out": 4, "d_sae": 10, "hook_name": "blocks.5.ln2.hook_normalized", "hook_layer": 5,
         "hook_name_out": "blocks.8.hook_mlp_out", "hook_layer_out": 8}, 8,
    ),
    "SAELens 6": (
        "a/sae_weights.safetensors", {"W_dec": DECODER, **OTHERS}, "cfg.json",
        {**CONFIG, "metadata": {"sae_lens_version": "6.18.0", "hook_name": "blocks.19.hook_resid_post"}}, 19,
    ),
    "SAELens 6, transcoder": (
        "layer_5/sae_weights.safetensors", {"W_dec": DECODER, **OTHERS, "W_enc": torch.ones(6, 10)}, "cfg.json",
        {"d_in": 6, "d_out": 4, "d_sae": 10, "architecture": "skip_transcoder",
         "metadata": {"hook_name": "blocks.5.ln2.hook_normalized", "hook_name_out": "blocks.8.hook_mlp_out"}}, 8,
    ),
    "circuit-tracer": (
        "layer_6.safetensors", {"W_dec": DECODER, "W_enc": torch.ones(10, 4), "b_enc": torch.ones(10), "b_dec": torch.ones(4)},
        None, {}, 6,
    ),
    "temporal autoencoders": (
        "layer_12/temporal/latest_ckpt.safetensors", {"D": DECODER, "E": torch.ones(4, 10), "b": torch.ones(4)}, None, {}, 12,
    ),
}  # fmt: skip


class TestPublished:
    @pytest.mark.parametrize("who", PUBLISHED)
    def test_rows_and_layer_of_the_file_and_of_its_folder(self, tmp_path, who):
        name, tensors, beside, config, layer = PUBLISHED[who]
        file = tmp_path / "repository" / name
        save(file, tensors)
        if beside:
            (file.parent / beside).write_text(json.dumps(config))
        for path in (file, tmp_path / "repository"):
            assert sizes(path) == (10, 4, layer)
            np.testing.assert_array_equal(rows(path, [0, 3, 9]), DECODER[[0, 3, 9]])
        with pytest.raises(UserError, match=f"belongs to layer {layer}") as error:
            find_decoder(file, layer + 1)
        assert error.value.where == str(file)

    def test_where_the_decoder_writes(self, tmp_path):
        hooks = {"hook_name": "blocks.5.ln2.hook_normalized", "hook_name_out": "blocks.8.hook_mlp_out"}
        assert find_decoder(saelens(tmp_path / "a", CONFIG | hooks)).hook == "blocks.8.hook_mlp_out"
        assert find_decoder(saelens(tmp_path / "b", CONFIG)).hook == ""


class TestLayouts:
    @pytest.mark.parametrize(
        "tensors",
        [
            {"W_dec": DECODER, **OTHERS},
            {"decoder.weight": LINEAR, "encoder.weight": torch.ones(10, 4)},
            {"vectors": DECODER, "bias": torch.zeros(10)},
            {"ae.decoder.weight": LINEAR, "ae.encoder.weight": torch.ones(10, 4)},
        ],
    )
    def test_one_file(self, tmp_path, tensors):
        save_file(tensors, tmp_path / "weights.safetensors")
        assert sizes(tmp_path / "weights.safetensors") == (10, 4, None)
        np.testing.assert_array_equal(rows(tmp_path / "weights.safetensors"), DECODER)

    @pytest.mark.parametrize(
        ("tensors", "config"),
        [
            ({"W_dec": LINEAR, "b_enc": torch.ones(10)}, {}),
            ({"W_dec": LINEAR, "b_dec": torch.ones(4)}, {}),
            ({"decoder.weight": DECODER, "encoder.bias": torch.ones(10)}, {}),
            ({"decoder.weight": DECODER}, {"d_in": 4, "d_sae": 10}),
            ({"W_dec": LINEAR}, {"d_sae": 10}),
            ({"vectors": LINEAR}, {"d_model": 4}),
        ],
    )
    def test_sizes_beside_the_decoder_outweigh_its_name(self, tmp_path, tensors, config):
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "f.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config | {"seed": 0}))
        assert sizes(tmp_path / "f.safetensors") == (10, 4, None)
        np.testing.assert_array_equal(rows(tmp_path / "f.safetensors"), DECODER)

    def test_square_decoders_follow_their_names(self, tmp_path):
        for name, decoder in {"W_dec": SQUARE, "decoder.weight": SQUARE.T.contiguous()}.items():
            save_file({name: decoder, "b_enc": torch.ones(4), "b_dec": torch.ones(4)}, tmp_path / "f.safetensors")
            np.testing.assert_array_equal(rows(tmp_path / "f.safetensors", range(4)), SQUARE)
        save_file({"vectors": SQUARE}, tmp_path / "f.safetensors")
        with pytest.raises(UserError, match="a row or a column"):
            find_decoder(tmp_path / "f.safetensors")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_types(self, tmp_path, dtype, suffix):
        save(tmp_path / f"f{suffix}", {"W_dec": DECODER.to(dtype)})
        found = rows(tmp_path / f"f{suffix}", [1, 2])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, DECODER.to(dtype).float()[1:3])

    @pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
    @pytest.mark.parametrize("name", ["W_dec", "decoder.weight"])
    def test_blocks(self, tmp_path, name, suffix):
        """A block of features of which none is wanted is left out."""
        save(tmp_path / f"f{suffix}", {name: DECODER if name == "W_dec" else LINEAR})
        decoder = find_decoder(tmp_path / f"f{suffix}")
        blocks = list(decoder_rows(decoder, np.array([1, 2, 3, 9]), block_features=3))
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
        assert find_decoder(saelens(tmp_path / "sae", CONFIG | more)).layer == layer


class TestWrong:
    @pytest.mark.parametrize(
        ("config", "what"),
        [
            ({"d_in": 4, "d_sae": 12}, "cfg.json: d_sae is 12, but the decoder has 10"),
            ({"d_in": 5, "d_sae": 10}, "cfg.json: d_in is 5, but the decoder has 4"),
            ({"d_in": 10, "d_sae": 4}, "cfg.json: d_sae is 4, but the decoder has 10"),
            ({"d_in": 4}, "cfg.json: d_sae is None"),
            ({"d_in": 4, "d_out": 6, "d_sae": 10}, "cfg.json: d_out is 6, but the decoder has 4"),
            ({**CONFIG, "hook_layer": 3, "hook_name": "blocks.4.hook_mlp_out"}, "cfg.json: names several layers"),
            ([4, 10], "cfg.json: "),
        ],
    )
    def test_config(self, tmp_path, config, what):
        with pytest.raises(UserError, match=re.escape(what)):
            find_decoder(saelens(tmp_path / "sae", config))

    def test_files_missing_or_not_what_they_should_be(self, folder, tmp_path):
        with pytest.raises(UserError, match="absent: does not exist"):
            find_decoder(tmp_path / "absent")
        (folder / "cfg.json").write_text("{")
        with pytest.raises(UserError, match=r"cfg.json, line 1: "):
            find_decoder(folder)
        (folder / "cfg.json").unlink()
        with pytest.raises(UserError, match=r"cfg.json: "):
            find_decoder(folder)
        (folder / "cfg.json").write_text(json.dumps(CONFIG))
        (folder / "sae_weights.safetensors").write_bytes(b"no tensors")
        with pytest.raises(UserError, match=r"sae_weights.safetensors: is not a safetensors file"):
            find_decoder(folder)
        (folder / "sae_weights.safetensors").unlink()
        with pytest.raises(UserError, match=r"sae: holds no weights"):
            find_decoder(folder)

    @pytest.mark.parametrize(
        ("tensors", "what"),
        [
            ({"vectors": DECODER, "feature_indices": torch.arange(10)}, "extracted already"),
            ({"a": DECODER, "b": DECODER.clone()}, "2 tensors of two dimensions: a, b"),
            ({"a": torch.ones(3)}, "0 tensors of two dimensions"),
            ({"W_dec": torch.ones(0, 4)}, "'W_dec' has the shape [0, 4]"),
            ({"W_dec": DECODER, "decoder.weight": LINEAR}, "has several decoders"),
            ({"layers.0.W_dec": DECODER, "layers.1.W_dec": DECODER.clone()}, "has several decoders"),
            ({"W_dec": torch.ones(10, 3, 4)}, "'W_dec' has the shape [10, 3, 4]"),
            (
                {"decoder.weight": torch.ones(3, 10, 4), "encoder.weight": torch.ones(3, 4, 10)},
                "writes to several places",
            ),
            ({"W_dec": DECODER.long()}, "holds I64"),
            ({"W_dec": DECODER, "b_enc": torch.ones(9)}, "other tensors are of 9 features"),
            ({"W_dec": DECODER, "b_enc": torch.ones(10), "b_dec": torch.ones(10)}, "of width 10"),
        ],
    )
    def test_no_decoder(self, tmp_path, tensors, what):
        save_file(tensors, tmp_path / "f")
        with pytest.raises(UserError, match=re.escape(what)):
            find_decoder(tmp_path / "f")

    @pytest.mark.parametrize("name", ["f.safetensors", "f.pt", "f.npz", "f.npy"])
    def test_complex_numbers(self, tmp_path, name):
        decoder = DECODER.to(torch.complex64)
        if name.endswith("npy"):
            np.save(tmp_path / name, decoder.numpy())
        else:
            save(tmp_path / name, {"W_dec": decoder})
        with pytest.raises(UserError, match=r"(?i)complex|C64") as error:
            find_decoder(tmp_path / name)
        assert error.value.where == str(tmp_path / name)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e39])
    def test_not_finite(self, tmp_path, bad):
        decoder = DECODER.double()
        decoder[6, 1] = bad
        save_file({"W_dec": decoder}, tmp_path / "f")
        assert len(rows(tmp_path / "f", [5, 7])) == 2
        with pytest.raises(UserError, match="f: vector of feature 6 holds "):
            rows(tmp_path / "f", [5, 6, 7])

    @pytest.mark.parametrize("indices", [[0, 10], [-1, 0]])
    def test_no_such_feature(self, folder, indices):
        with pytest.raises(IndexError):
            rows(folder, indices)
