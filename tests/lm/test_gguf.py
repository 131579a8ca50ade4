"""A GGUF file is a model: the right tokens and logits, a fingerprint of the file, and refusals that name the file."""

import importlib.util
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from afintro.data.text import encode_prompt
from afintro.errors import UserError
from afintro.lm import gguf
from afintro.lm.dtypes import resolve_dtype
from afintro.lm.generate import generate_greedy
from afintro.lm.load import context_length, eos_ids, fingerprint, load_config, load_model, load_tokenizer

try:
    from gguf import RopeScalingType
except ImportError:  # the tests that need it are left out
    RopeScalingType = None
from tests.lm.tiny_gguf import WORDS, tiny_llama, write_tiny_gguf

LOADERS = pytest.mark.parametrize("load", [load_model, load_tokenizer, load_config, fingerprint])
needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs gguf: make setup-real")
CHAT = [{"role": "user", "content": "ab, ba!"}]


@pytest.fixture(scope="module")
def llama():
    return tiny_llama()


@pytest.fixture(scope="module")
def path(tmp_path_factory, llama):
    return str(write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama))


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(4, 40)[None]).logits


@needs_gguf
class TestRight:
    def test_weights_and_what_can_be_done_with_them(self, llama, path, tmp_path):
        model = load_model(path)
        torch.testing.assert_close(logits(model), logits(llama), rtol=0, atol=1e-5)
        assert (model.dtype, model.training) == (torch.float32, False)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        model.save_pretrained(tmp_path)  # transformers refuses that of a model that it dequantized
        torch.testing.assert_close(logits(load_model(str(tmp_path))), logits(llama), rtol=0, atol=1e-5)

    def test_tokenizer_template_and_configuration(self, path):
        tokenizer, config = load_tokenizer(path), load_config(path)
        word = [WORDS.index(piece) for piece in ("ab", ",", "Ġ", "b", "a", "!")]
        prompt = encode_prompt(tokenizer, CHAT)
        assert prompt[0] == 1
        assert prompt.count(1) == 2
        assert any(prompt[at : at + len(word)] == word for at in range(len(prompt)))
        assert tokenizer.decode(prompt) == "<|im_start|>user\nab, ba!<|im_end|>\n<|im_start|>assistant"
        assert (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<slot>")) == (2, 3)
        assert (context_length(config), config.num_hidden_layers, config.hidden_size) == (256, 2, 64)

    def test_greedy_tokens_are_those_of_transformers(self, llama, path):
        model, tokenizer = load_model(path), load_tokenizer(path)
        prompt = encode_prompt(tokenizer, CHAT)
        [found] = generate_greedy(model, [prompt], max_new_tokens=12, eos_ids=eos_ids(model, tokenizer), batch_size=1)
        expected = llama.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
        assert found == expected[: len(found)]
        assert len(found) > 3

    @pytest.mark.parametrize(
        ("kind", "own"), [(None, "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16")]
    )
    def test_own_dtype(self, llama, tmp_path, kind, own):
        file = str(write_tiny_gguf(tmp_path / "Upper.GGUF", llama, kind))
        assert resolve_dtype("auto", file, None, "cuda") == own
        assert resolve_dtype("auto", file, None, "cpu") == "float32"
        rounding = {None: 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 2**-7}[kind]  # relative to the largest of a block
        for (name, read), (same, weights) in zip(
            load_model(file).state_dict().items(), llama.state_dict().items(), strict=True
        ):
            assert name == same
            assert (read - weights).abs().max() <= rounding * weights.abs().max()

    @pytest.mark.parametrize(("kind", "own"), [(None, "float16"), ("Q8_0", "bfloat16"), ("BF16", "bfloat16")])
    def test_own_dtype_of_matrices_of_two_kinds(self, llama, tmp_path, kind, own):
        """Files of a few bits often keep a matrix in float16."""
        more = {"output.weight": np.zeros((32, 32), np.float16)}
        file = str(write_tiny_gguf(tmp_path / "two.gguf", llama, kind, more=more))
        assert resolve_dtype("auto", file, None, "cuda") == own

    def test_fingerprint_sees_every_byte_and_not_the_place(self, llama, path, tmp_path):
        moved = write_tiny_gguf(tmp_path / "other.gguf", llama)
        assert fingerprint(str(moved)) == fingerprint(path)
        content = bytearray(moved.read_bytes())
        seen = {fingerprint(path)}
        for place in (0.3, 0.5, 0.999):
            changed = bytearray(content)
            changed[int(place * len(content))] ^= 1
            moved.write_bytes(changed)
            seen.add(fingerprint(str(moved)))
        assert len(seen) == 4

    def test_a_configuration_that_a_caller_changes_is_read_anew(self, path):
        load_config(path).num_hidden_layers = 7
        assert load_config(path).num_hidden_layers == 2


class TestRefused:
    @LOADERS
    def test_no_file(self, tmp_path, load):
        with pytest.raises(UserError, match="does not exist") as error:
            load(str(tmp_path / "no.gguf"))
        assert "no.gguf" in error.value.where

    @LOADERS
    def test_no_library(self, tmp_path, monkeypatch, load):
        (tmp_path / "a.gguf").write_bytes(b"GGUF")
        monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="gguf library") as error:
            load(str(tmp_path / "a.gguf"))
        assert "setup-real" in error.value.remedy

    @needs_gguf
    @LOADERS
    def test_another_kind_of_file(self, tmp_path, load):
        (tmp_path / "a.gguf").write_bytes(b"PK\3\4" * 100)
        with pytest.raises(UserError, match="does not begin"):
            load(str(tmp_path / "a.gguf"))

    @needs_gguf
    @pytest.mark.parametrize("load", [load_model, load_config])
    def test_an_architecture_that_transformers_does_not_read(self, llama, tmp_path, load):
        file = write_tiny_gguf(tmp_path / "a.gguf", llama, architecture="rwkv7")
        with pytest.raises(UserError, match="cannot dequantize") as error:
            load(str(file))
        assert "safetensors" in error.value.remedy

    @needs_gguf
    def test_damaged_files(self, path, tmp_path):
        """Cut anywhere, a file gives an error that names it, and never a model."""
        content, file = Path(path).read_bytes(), tmp_path / "cut.gguf"
        drawn = random.Random(0)
        for cut in [5, 30, len(content) - 1, *(drawn.randrange(30, len(content)) for _ in range(5))]:
            file.write_bytes(content[:cut])
            with pytest.raises(UserError) as error:
                load_model(str(file))
            assert "cut.gguf" in error.value.where

    @needs_gguf
    @pytest.mark.parametrize(
        ("more", "settings", "named"),
        [
            ({"rope_freqs.weight": np.array([1, 1, 8, 8], np.float32)}, None, "rope_freqs.weight"),
            ({"rope_factors_long.weight": np.full(4, 2, np.float32)}, None, "rope_factors_long.weight"),
            (None, lambda writer: writer.add_rope_scaling_type(RopeScalingType.YARN), "llama.rope.scaling.type"),
            (None, lambda writer: writer.add_sliding_window(32), "llama.attention.sliding_window"),
            (None, lambda writer: writer.add_attn_logit_softcapping(50.0), "llama.attn_logit_softcapping"),
        ],
        ids=["llama3", "longrope", "yarn", "window", "softcap"],
    )
    def test_what_transformers_would_drop_without_a_word(self, llama, tmp_path, more, settings, named):
        settings = {} if settings is None else {"settings": settings}
        file = write_tiny_gguf(tmp_path / "a.gguf", llama, more=more, **settings)
        for load in (load_config, load_model):
            with pytest.raises(UserError, match=named) as error:
                load(str(file))
            assert "safetensors" in error.value.remedy

    @needs_gguf
    def test_weights_that_no_part_of_the_model_takes(self, llama, tmp_path):
        more = {
            "blk.0.attn_q.bias": np.ones(64, np.float32)
        }  # of a Llama with biases, which the configuration does not say
        with pytest.raises(UserError, match="weights"):
            load_model(str(write_tiny_gguf(tmp_path / "a.gguf", llama, more=more)))

    @needs_gguf
    def test_settings_that_change_nothing_are_no_reason(self, llama, tmp_path):
        def settings(writer):
            writer.add_sliding_window(256)  # the whole context
            writer.add_rope_scaling_type(RopeScalingType.NONE)

        more = {"rope_freqs.weight": np.ones(8, np.float32)}
        file = write_tiny_gguf(tmp_path / "a.gguf", llama, more=more, settings=settings)
        torch.testing.assert_close(logits(load_model(str(file))), logits(llama), rtol=0, atol=1e-5)

    @needs_gguf
    def test_weights_that_are_missing(self, tmp_path):
        small, file = tiny_llama(num_hidden_layers=1), tmp_path / "a.gguf"
        small.config.num_hidden_layers = 2  # the second layer is announced and not there
        with pytest.raises(UserError, match=r"missing.*layers\.1"):
            load_model(str(write_tiny_gguf(file, small)))


def test_nothing_of_the_library_is_imported_for_other_models(model_directories, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert load_model(model_directories["llama"]).dtype == torch.float32
