"""Which file of a path holds the weights of an autoencoder, and what its neighbors say of it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.sae_config import about, config_file, layer_of_path
from afintro.tasks.feature_descriptions.sae_files import weights_file


def put(folder, name, config=None):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"W_dec": torch.ones(4, 3)}, file)
    if config is not None:
        (file.parent / "cfg.json").write_text(json.dumps(config))
    return file


class TestFolders:
    def test_the_weights_at_the_top_come_before_those_below(self, tmp_path):
        file = put(tmp_path, "sae_weights.safetensors")
        put(tmp_path, "checkpoints/500/sae_weights.safetensors")
        assert weights_file(tmp_path, None) == file

    def test_files_beside_the_weights_are_none(self, tmp_path):
        put(tmp_path, "sparsity.safetensors")
        file = put(tmp_path, "mine.safetensors")
        assert weights_file(tmp_path, None) == file
        known = put(tmp_path, "layers.3/sae.safetensors")
        assert weights_file(tmp_path, None) == known

    def test_the_layer_chooses(self, tmp_path):
        for layer in (3, 12):
            put(tmp_path, f"layers.{layer}/sae.safetensors", {"d_in": 3})
        named = put(tmp_path, "other/sae.safetensors", {"hook_name": "blocks.5.hook_resid_post"})
        assert weights_file(tmp_path, 12) == tmp_path / "layers.12/sae.safetensors"
        assert weights_file(tmp_path, 5) == named

    def test_several_are_refused_by_name(self, tmp_path):
        for name in ("layers.3", "layers.12", "layers.12.mlp"):
            put(tmp_path, f"{name}/sae.safetensors", {})
            (tmp_path / name / "cfg.json").write_text('{"d_in": 3}')
        for layer, named, absent in (
            (None, "layers.3/sae", "none of"),
            (7, "none of layer 7", "of layer 12:"),
            (12, "layers.12.mlp", "layers.3/"),
        ):
            with pytest.raises(UserError) as error:
                weights_file(tmp_path, layer)
            assert named in error.value.what
            assert absent not in error.value.what
            assert error.value.where == str(tmp_path)

    def test_no_weights(self, tmp_path):
        (tmp_path / "notes.txt").write_text("")
        for path in (tmp_path, tmp_path / "absent"):
            with pytest.raises(UserError) as error:
                weights_file(path, 3)
            assert error.value.where == str(path)


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("layer_20/width_16k/average_l0_71/params.npz", 20),
        ("resid_post/layer_40_width_16k_l0_medium/params.safetensors", 40),
        ("embedding/width_4k/average_l0_6/params.npz", None),
        ("layers.19.mlp/sae.safetensors", 19),
        ("gpt_neox.layers.3/sae.safetensors", 3),
        ("transformer.h.5/sae.safetensors", 5),
        ("embed_tokens/sae.safetensors", None),
        ("blocks.8.hook_resid_pre/sae_weights.safetensors", 8),
        ("Llama3_1-8B-Base-L19R-8x/checkpoints/final.safetensors", 19),
        ("Llama3_1-8B-Base-L0M-32x/checkpoints/final.safetensors", 0),
        ("Llama-3.1-8B-Instruct-SAE-l19.pth", 19),
        ("DeepSeek-R1-Distill-Llama-8B-SAE-l15.pt", 15),
        ("resid_post_layer_12/trainer_3/checkpoints/ae_100.pt", 12),
        ("layer_3/layer_5/params.npz", 5),
        ("layer_3_to_layer_5/params.npz", None),
        ("layer_9/a/b/c/params.npz", None),  # too far away to be of this file
        ("Llama-3.1-8B/sae_10.pt", None),
        ("multilayer_4/params.npz", None),
    ],
)  # fmt: skip
def test_layer_of_path(path, layer):
    assert layer_of_path(Path("/somewhere") / path) == layer


class TestNeighbors:
    def test_which_file_describes_the_weights(self, tmp_path):
        file = put(tmp_path, "run/checkpoints/final.safetensors")
        assert config_file(file) is None
        (tmp_path / "config.json").write_text("{}")
        assert config_file(file) is None
        (tmp_path / "run" / "hyperparams.json").write_text("{}")
        assert config_file(file) == tmp_path / "run" / "hyperparams.json"
        (tmp_path / "run" / "checkpoints" / "config.json").write_text("{}")
        assert config_file(file) == tmp_path / "run" / "checkpoints" / "config.json"

    def test_the_file_outweighs_the_path(self, tmp_path):
        assert about(put(tmp_path, "layer_3/a.safetensors", {"hook_layer": 7})).layer == 7
        assert about(put(tmp_path, "layer_4/a.safetensors", {"hook_name": "hook_embed"})).layer is None
        assert about(put(tmp_path, "layer_5/a.safetensors", {"d_in": 3})).layer == 5

    @pytest.mark.parametrize(
        ("config", "features", "width"),
        [
            ({"d_sae": 10, "d_in": 4}, ("d_sae", 10), ("d_in", 4)),
            ({"d_sae": 10, "d_in": 4, "d_out": 6}, ("d_sae", 10), ("d_out", 6)),
            ({"num_latents": 10, "expansion_factor": 7, "d_in": 4}, ("num_latents", 10), ("d_in", 4)),
            ({"num_latents": 0, "expansion_factor": 2.5, "d_in": 4}, ("d_in * expansion_factor", 10), ("d_in", 4)),
            ({"trainer": {"dict_size": 10, "activation_dim": 4}}, ("dict_size", 10), ("activation_dim", 4)),
            ({"hf_hook_point_in": "model.layers.3.output", "width": 10}, ("width", 10), None),
            ({"width": 10, "d_in": True}, None, None),
        ],
    )
    def test_sizes(self, tmp_path, config, features, width):
        known = about(put(tmp_path, "a.safetensors", config))
        assert (known.features, known.width) == (features, width)
