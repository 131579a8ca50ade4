"""States of one layer are transformers' own, and arrays made of them come from the cache until it is damaged."""

import json
import logging
import shutil
import threading
from itertools import product

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from afintro.errors import UserError
from afintro.lm.load import load_model, load_tokenizer
from afintro.tasks.introspection import layer_states
from afintro.tasks.introspection.layer_states import LayerStates, ids_hash, kept, shared_length

ROWS = [[7, 8, 9, 10, 11], [20], [12, 13, 14], [30, 31, 32, 33, 34, 35, 36], [20, 21]]


class TestRead:
    @pytest.mark.slow
    def test_are_transformers_hidden_states(self, model_directories, architecture, plain_model):
        """At every layer, with one text in a pass, with a few, and with all texts in one pass."""
        plain = plain_model(model_directories[architecture], torch.float64)
        with torch.no_grad():
            hidden = [plain(torch.tensor([row]), output_hidden_states=True).hidden_states for row in ROWS]
        for layer, tokens in product((-1, 0, 1), (1, 6, 8_192)):
            states = LayerStates(model_directories[architecture], layer=layer)
            found = dict(states.read(ROWS, tokens))
            assert sorted(found) == list(range(len(ROWS)))
            for index, row in enumerate(ROWS):
                assert found[index].dtype == np.float32
                assert found[index].shape == (len(row), states.width) == (len(row), 32)
                np.testing.assert_allclose(found[index], hidden[index][layer + 1][0], rtol=1e-3, atol=1e-4)

    def test_model_that_takes_no_packed_rows(self, tmp_path):
        settings = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 263}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon", **settings, initializer_range=0.3))
        model.save_pretrained(tmp_path / "model")
        found = dict(LayerStates(str(tmp_path / "model"), layer=1).read(ROWS))
        for index, row in enumerate(ROWS):
            with torch.no_grad():
                wanted = model.eval()(torch.tensor([row]), output_hidden_states=True).hidden_states[2][0]
            np.testing.assert_allclose(found[index], wanted, rtol=1e-3, atol=1e-4)

    def test_dtype_is_that_of_the_weights(self, model_directories, tmp_path):
        model = load_model(model_directories["llama"], dtype="bfloat16")
        model.save_pretrained(tmp_path / "model")
        states = LayerStates(str(tmp_path / "model"))
        assert (states.dtype, states.identity()["dtype"]) == ("bfloat16", "bfloat16")
        assert next(iter(states.read(ROWS)))[1].dtype == np.float32
        assert LayerStates(model_directories["llama"]).dtype == "float32"

    def test_overflow(self, model_directories, tmp_path):
        model = load_model(model_directories["llama"])
        model.get_decoder().layers[1].mlp.down_proj.weight.data.fill_(float("inf"))
        model.save_pretrained(tmp_path / "model")
        with pytest.raises(UserError, match="after layer 1 holds NaN or infinite"):
            list(LayerStates(str(tmp_path / "model"), layer=1).read(ROWS))


class TestLayer:
    def test_the_middle_one_by_default(self, model_directories, small_model):
        assert LayerStates(model_directories["llama"]).layer == 1  # of three
        assert LayerStates(str(small_model)).layer == 0  # of two, and nothing reads the last one's output

    @pytest.mark.parametrize("layer", [-2, 3])
    def test_beyond_the_model(self, model_directories, layer):
        with pytest.raises(UserError, match=rf"layer {layer} does not exist: the model has layers -1 to 2"):
            LayerStates(model_directories["llama"], layer=layer)

    def test_a_text_beyond_the_context(self, model_directories):
        states = LayerStates(model_directories["llama"])
        with pytest.raises(UserError, match=r"text 7: the text has 6.. tokens, the model's context is 512"):
            states.encode([{"role": "user", "content": "x" * 600}], "text 7")

    def test_equal_weights_have_one_identity(self, model_directories, tmp_path):
        copy = shutil.copytree(model_directories["llama"], tmp_path / "copy")
        identity = LayerStates(str(copy)).identity()
        assert identity == LayerStates(model_directories["llama"]).identity()
        assert json.loads(json.dumps(identity)) == identity
        others = [
            LayerStates(model_directories["llama"], layer=0).identity(),
            LayerStates(model_directories["mistral"]).identity(),
        ]
        assert identity not in others


@pytest.mark.parametrize(
    ("rows", "shared"),
    [([[1, 2, 3], [1, 2], [1, 2, 4]], 2), ([[1, 2], [2, 1]], 0), ([[1, 5], [1, 2], [1, 9]], 1), ([[4, 5]], 2), ([[], [1]], 0)],
)  # fmt: skip
def test_shared_length(rows, shared):
    assert shared_length(rows) == shared


def test_hash_of_ids_knows_order_and_boundaries():
    assert len({ids_hash(rows) for rows in ([[1], [2]], [[2], [1]], [[1, 2]], [[12]], [[1, 2], []])}) == 5
    assert ids_hash([(1, 2)]) == ids_hash([[1, 2]])


class TestKept:
    @pytest.fixture
    def made(self, monkeypatch, tmp_path):
        monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path))
        return []

    def make(self, made, value=1.0):
        def build():
            made.append(value)
            return {"rows": np.full((2, 3), value, np.float32).T, "places": np.arange(4).reshape(2, 2)}

        return build

    def test_is_made_once(self, made, tmp_path):
        first = kept({"kind": "swap", "seed": 1}, self.make(made))
        second = kept({"seed": 1, "kind": "swap"}, self.make(made))
        other = kept({"kind": "swap", "seed": 2}, self.make(made, 2.0))
        assert made == [1.0, 2.0]
        for name in ("rows", "places"):
            np.testing.assert_array_equal(first[name], second[name])
            assert first[name].dtype == second[name].dtype
        assert other["rows"][0, 0] == 2
        folders = [path for path in (tmp_path / "study_vectors").iterdir() if path.is_dir()]
        assert len(folders) == 2
        assert all(path.name.startswith("swap-") for path in folders)
        assert sorted(path.name for path in folders[0].iterdir()) == ["vectors.json", "vectors.safetensors"]

    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / "vectors.json").unlink(),
            lambda folder: (folder / "vectors.json").write_text("{"),
            lambda folder: (folder / "vectors.json").write_text("[]"),
            lambda folder: replace_text(folder / "vectors.json", '"seed": 1', '"seed": 2'),
            lambda folder: (folder / "vectors.json").write_bytes(b"\xff\xfe"),
            lambda folder: (folder / "vectors.safetensors").unlink(),
            lambda folder: (folder / "vectors.safetensors").write_bytes(b"\x00" * 9),
            lambda folder: flip_last_byte(folder / "vectors.safetensors"),
        ],
    )
    def test_damage_is_made_good(self, made, tmp_path, caplog, damage):
        first = kept({"kind": "swap", "seed": 1}, self.make(made))
        damage(next(path for path in (tmp_path / "study_vectors").iterdir() if path.is_dir()))
        with caplog.at_level(logging.WARNING):
            second = kept({"kind": "swap", "seed": 1}, self.make(made))
        assert made == [1.0, 1.0]
        assert "is damaged" in caplog.text
        np.testing.assert_array_equal(first["rows"], second["rows"])
        kept({"kind": "swap", "seed": 1}, self.make(made))
        assert len(made) == 2

    def test_threads_that_find_damage_at_once_mend_it_once(self, made, tmp_path, monkeypatch):
        kept({"kind": "swap"}, self.make(made))
        read, barrier, own = layer_states._read, threading.Barrier(4), threading.local()

        def at_once(*arguments):
            """Nobody goes on before all have found the damage."""
            try:
                return read(*arguments)
            finally:
                if not hasattr(own, "asked"):
                    own.asked = True
                    barrier.wait(timeout=30)

        monkeypatch.setattr(layer_states, "_read", at_once)
        next((tmp_path / "study_vectors").glob("swap-*/vectors.json")).unlink()
        threads = [threading.Thread(target=kept, args=({"kind": "swap"}, self.make(made))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 2

    def test_what_fails_leaves_nothing(self, made, tmp_path):
        def fail():
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            kept({"kind": "swap"}, fail)
        assert not [path for path in (tmp_path / "study_vectors").iterdir() if path.is_dir()]
        kept({"kind": "swap"}, self.make(made))
        assert made == [1.0]


def replace_text(path, old, new):
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_texts_are_read_with_the_chat_template_of_the_trials(model_directories):
    """Its date and its settings are those that the explainer asks with."""
    tokenizer = load_tokenizer(model_directories["llama"])
    tokenizer.chat_template = "5 March {{ messages[0].content }}"
    turns = [{"role": "user", "content": "text <|eos|>"}]
    given, loaded = (
        LayerStates(model_directories["llama"], tokenizer=each).encode(turns, "a") for each in (tokenizer, None)
    )
    assert tokenizer.decode(given) == "5 March text <|eos|>"
    assert tokenizer.decode(loaded) == "<|bos|><|user|>text <|eos|>\n"
    assert tokenizer.eos_token_id not in {*given, *loaded}
