"""The study's vectors: concepts that are planted are found, swaps are states of their contexts, and splits share none."""

import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from afintro.data.introspection_texts import read_concepts, read_contexts
from afintro.data.introspection_texts.items import ConceptPair, Concepts, Context
from afintro.data.introspection_texts.splits import split_texts
from afintro.data.text import encode_text, render
from afintro.errors import UserError
from afintro.tasks.introspection import layer_states
from afintro.tasks.introspection.concept_vectors import concept_vectors, split_pairs, swap_vectors
from afintro.tasks.introspection.trials import turns
from afintro.tasks.introspection.vectors import SPLITS, assert_disjoint_vectors
from afintro.toys.organism import ToySettings, make_tokenizer

ALL = read_concepts()
WORDS = [word for pair in ALL.pairs for word in (pair.a, pair.b)]
FEW = Concepts(ALL.pairs[:6], ALL.templates[:8])


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "study_vectors"


@pytest.fixture
def loads(monkeypatch):
    """How often a model was loaded."""
    found = []
    load = layer_states.load_model

    def counted(*arguments):
        found.append(arguments)
        return load(*arguments)

    monkeypatch.setattr(layer_states, "load_model", counted)
    return found


def vectors(splits):
    """All vectors of all splits by name."""
    return {name: found.of(name) for found in splits.values() for name in found.names}


def same(one, other, atol=1e-6):
    one, other = vectors(one), vectors(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=atol, rtol=0)


class TestPairs:
    def test_no_concept_is_parted_from_its_partner(self):
        for seed in range(20):
            parts = split_pairs(ALL.pairs, seed)
            assert {split: len(pairs) for split, pairs in parts.items()} == {"train": 8, "validation": 3, "test": 3}
            assert sorted(pair.id for pairs in parts.values() for pair in pairs) == sorted(
                pair.id for pair in ALL.pairs
            )

    def test_order_and_ids_do_not_matter_and_the_seed_does(self):
        def words(parts):
            return {split: {(pair.a, pair.b) for pair in pairs} for split, pairs in parts.items()}

        found = words(split_pairs(ALL.pairs, 0))
        assert words(split_pairs(ALL.pairs[::-1], 0)) == found
        assert words(split_pairs([replace(pair, id=f"{i}") for i, pair in enumerate(ALL.pairs)], 0)) == found
        assert words(split_pairs(ALL.pairs, 1)) != found

    @pytest.mark.parametrize("count", [5, 6, 8, 10])
    def test_two_pairs_at_least_are_held_out_for_each(self, count):
        parts = split_pairs(ALL.pairs[:count], 0)
        assert [len(parts[split]) for split in SPLITS] == [count - 4, 2, 2]

    @pytest.mark.parametrize("count", [1, 4])
    def test_too_few(self, count):
        with pytest.raises(UserError, match="too few for three splits"):
            split_pairs(ALL.pairs[:count], 0)


def by_hand(model, tokenizer, concepts, layer):
    """Centered concept vectors from transformers' hidden states, one text a pass, in float64."""
    leading = [tokenizer.bos_token_id, *encode_text(tokenizer, "<|user|>")]

    def mean(text):
        ids = leading + encode_text(tokenizer, text + "\n")
        with torch.no_grad():
            return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0, 2:].mean(0).numpy()

    found = {}
    for pair in concepts.pairs:
        for word in (pair.a, pair.b):
            texts = [(t.concept.replace("{concept}", word), t.neutral) for t in concepts.templates]
            found[word] = np.mean([mean(about) - mean(neutral) for about, neutral in texts], axis=0)
    raw = np.stack(list(found.values()))
    return {word: (row - raw.mean(0)) / np.linalg.norm(row - raw.mean(0)) for word, row in found.items()}, raw


class TestConcepts:
    @pytest.mark.slow
    @pytest.mark.parametrize("layer", [None, -1])
    def test_equal_those_of_transformers(self, model_directories, plain_model, tokenizer, layer):
        """Of one architecture: states of every architecture are compared in test_layer_states."""
        directory = model_directories["llama"]
        found = concept_vectors(directory, None, FEW, 0, layer)
        wanted, raw = by_hand(plain_model(directory, torch.float64), tokenizer, FEW, 1 if layer is None else layer)
        got = vectors(found)
        assert {f"concept/{word}" for word in wanted} == set(got)
        for word, vector in wanted.items():
            np.testing.assert_allclose(got[f"concept/{word}"], vector, atol=2e-4, rtol=0)
        unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        cosines = [unit[i] @ unit[j] for i in range(12) for j in range(i)]
        before = found["train"].facts["before"]
        assert before["mean_cosine"] == pytest.approx(np.mean(cosines), abs=1e-4)
        assert before["mean_absolute_cosine"] == pytest.approx(np.mean(np.abs(cosines)), abs=1e-4)
        powers = np.linalg.eigvalsh(unit @ unit.T)
        assert before["participation_ratio"] == pytest.approx(powers.sum() ** 2 / (powers**2).sum(), rel=1e-4)

    def test_sides(self, model_directories):
        found = concept_vectors(model_directories["llama"], None, ALL, 3)
        assert_disjoint_vectors(**found)
        assert [len(found[split].names) for split in SPLITS] == [16, 6, 6]
        for split, pairs in split_pairs(ALL.pairs, 3).items():
            assert found[split].names == tuple(f"concept/{word}" for pair in pairs for word in (pair.a, pair.b))
            for pair in pairs:
                for word in (pair.a, pair.b):
                    assert found[split].concept(f"concept/{word}") == word
                    assert found[split].partner(f"concept/{word}") == (pair.a, pair.b)
        assert found["train"].facts["layer"] == 1
        assert found["train"].facts["concepts"] == 28

    def test_order_does_not_matter(self, model_directories):
        one = concept_vectors(model_directories["llama"], None, FEW, 0)
        other = concept_vectors(model_directories["llama"], None, Concepts(FEW.pairs[::-1], FEW.templates[::-1]), 0)
        same(one, other, atol=1e-5)
        for split in SPLITS:
            assert set(one[split].names) == set(other[split].names)

    def test_another_seed_takes_no_model(self, model_directories, loads):
        one, other = (concept_vectors(model_directories["llama"], None, FEW, seed) for seed in (0, 1))
        assert len(loads) == 1
        same(one, other, atol=0)
        assert one["test"].names != other["test"].names

    @pytest.mark.parametrize(
        ("concepts", "message"),
        [
            (Concepts(ALL.pairs, ALL.templates[:7]), "only 7 templates are different"),
            (
                Concepts(ALL.pairs, [*ALL.templates[:7], replace(ALL.templates[0], id="x")]),
                "only 7 templates are different",
            ),
            (Concepts([*ALL.pairs, ConceptPair("x", "sea", "lake")], ALL.templates), "'sea' occurs twice"),
            (Concepts(ALL.pairs[:4], ALL.templates), "too few for three splits"),
        ],
    )
    def test_refuses_before_the_model_loads(self, loads, concepts, message):
        with pytest.raises(UserError, match=message):
            concept_vectors("no/such/model", None, concepts, 0)
        assert not loads


@pytest.fixture(scope="module")
def words_tokenizer():
    texts = [template.about(word) for word in WORDS for template in ALL.templates] * 3
    neutral = [template.neutral for template in ALL.templates] * 60
    return make_tokenizer(ToySettings(vocabulary=1200, context=512), texts + neutral)


@pytest.fixture
def plant(tmp_path, words_tokenizer):
    """Saves a model whose residual stream is the embeddings, in which each concept word has a direction that is given."""

    def save(directions, common):
        hidden = directions.shape[1]
        config = LlamaConfig(
            hidden_size=hidden, intermediate_size=8, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
            vocab_size=len(words_tokenizer), max_position_embeddings=512, initializer_range=0.02,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlamaForCausalLM(config)
        for layer in model.model.layers:  # adds nothing
            layer.self_attn.o_proj.weight.data.zero_()
            layer.mlp.down_proj.weight.data.zero_()
        for word, direction in zip(WORDS, directions, strict=True):
            for text in (f" {word}", word):
                ids = encode_text(words_tokenizer, text)
                if len(ids) == 1:
                    model.model.embed_tokens.weight.data[ids[0]] = torch.tensor(common + direction).float()
        assert all(len(encode_text(words_tokenizer, f" {word}")) == 1 for word in WORDS)
        model.save_pretrained(tmp_path / "planted")
        words_tokenizer.save_pretrained(tmp_path / "planted")
        return str(tmp_path / "planted")

    return save


class TestPlanted:
    def test_directions_are_found_and_what_is_common_is_gone(self, plant, caplog):
        axes = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 29)))[0].T
        directions, common = 3 * axes[:28], 9 * axes[28]
        with caplog.at_level(logging.WARNING):
            found = concept_vectors(plant(directions, common), None, ALL, 0)
        got = vectors(found)
        for word, wanted in zip(WORDS, directions - directions.mean(0), strict=True):
            vector = got[f"concept/{word}"]
            assert vector @ wanted / np.linalg.norm(wanted) > 0.97
            assert abs(vector @ axes[28]) < 0.15
        before, after = found["train"].facts["before"], found["train"].facts["after"]
        assert before["mean_cosine"] > 0.8
        assert before["participation_ratio"] < 1.6
        assert after["mean_cosine"] == pytest.approx(-1 / 27, abs=0.01)  # of vectors that sum to zero
        assert after["mean_absolute_cosine"] < 0.1
        assert after["participation_ratio"] > 24
        assert not caplog.records

    def test_one_direction_is_warned_of_from_the_cache_too(self, plant, caplog, loads):
        axis = np.ones(32) / np.sqrt(32)
        directory = plant(np.linspace(-9, 9, 28)[:, None] * axis, 5 * np.eye(32)[0])
        for _ in range(2):
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                found = concept_vectors(directory, None, ALL, 0)
            assert found["test"].facts["after"]["mean_absolute_cosine"] > 0.9
            assert found["test"].facts["after"]["participation_ratio"] < 1.2
            assert "layer 1, are nearly one direction: mean absolute cosine 1.00" in caplog.text
        assert len(loads) == 1
        with pytest.raises(UserError, match="are one vector"):
            assert_disjoint_vectors(**found)

    def test_concepts_that_are_all_the_same_to_the_model(self, plant):
        directory = plant(np.zeros((28, 32)), np.zeros(32))
        templates = [replace(template, concept=f"{template.neutral} {{concept}}") for template in ALL.templates]
        with pytest.raises(UserError, match="centered concept vectors: vector 0 is zero"):
            # The embedding of every word is zero and that of its neighbors is its own.
            concept_vectors(directory, None, Concepts(ALL.pairs, templates), 0)


CONTEXTS = split_texts(read_contexts(), 0)


ENDINGS = {
    "train": ["ABCDEFGHIJ", "klmnopqrst"],
    "validation": ["0123456789", "uvwxyzUVWXYZ"],
    "test": ["KLMNOPQRST", "+-*/=<>()"],
}


def texts(each=8, longest=300):
    """A few short contexts of each split."""
    return {
        split: [context for context in getattr(CONTEXTS, split) if len(context.text) <= longest][:each]
        for split in SPLITS
    }


class TestSwaps:
    @pytest.mark.parametrize("layer", [None, 0])
    def test_are_the_states_at_their_places(self, model_directories, plain_model, tokenizer, layer):
        directory, chosen = model_directories["llama"], texts(4)
        found = swap_vectors(directory, None, chosen, 10, 0, layer)
        plain = plain_model(directory, torch.float64)
        for split in SPLITS:
            by_id = {context.id: context for context in chosen[split]}
            assert len(found[split].names) == 10
            for name in found[split].names:
                context, position = by_id[found[split].source(name)], found[split].notes[name]["position"]
                assert name == f"swap/{context.id}/{position}"
                ids = torch.tensor([encode_text(tokenizer, render(tokenizer, turns(context), answering=False))])
                with torch.no_grad():
                    states = plain(ids, output_hidden_states=True).hidden_states[2 if layer is None else 1][0]
                wanted = states[position] / states[position].norm()
                np.testing.assert_allclose(found[split].of(name), wanted, atol=2e-4, rtol=0)
            assert found[split].facts["layer"] == (1 if layer is None else 0)

    def test_sides_share_none(self, model_directories):
        chosen = texts()
        found = swap_vectors(model_directories["qwen3"], None, chosen, 40, 0)
        assert_disjoint_vectors(**found)
        for split in SPLITS:
            ids = {context.id for context in chosen[split]}
            per_context = [found[split].source(name) for name in found[split].names]
            assert set(per_context) == ids, "every context gives one before any gives many"
            assert max(map(per_context.count, ids)) <= 10

    def test_order_does_not_matter(self, model_directories, loads):
        chosen = texts()
        one = swap_vectors(model_directories["llama"], None, chosen, 12, 0)
        other = swap_vectors(
            model_directories["llama"], None, {split: chosen[split][::-1] for split in SPLITS[::-1]}, 12, 0
        )
        assert [one[split].names for split in SPLITS] == [other[split].names for split in SPLITS]
        same(one, other)
        assert len(loads) == 1

    def test_seed_and_count(self, model_directories):
        one, other, more = (
            swap_vectors(model_directories["llama"], None, texts(), count, seed)
            for count, seed in ((12, 0), (12, 1), (20, 0))
        )
        for split in SPLITS:
            assert len(set(one[split].names) & set(other[split].names)) < 4
        assert more["train"].names[:12] == one["train"].names

    def test_beginnings_that_contexts_share_are_no_places(self, model_directories, tokenizer):
        """Equal beginnings have equal states: a train vector would be a test vector too."""

        def context(name, ending):
            return Context(name, "x", "plain", False, "You are a helpful assistant.", "Say something, please.", ending)

        chosen = {
            split: [context(f"{split}{index}", f"Well, {index} {split} {ENDINGS[split][index]}") for index in range(2)]
            for split in SPLITS
        }
        found = swap_vectors(model_directories["llama"], None, chosen, 6, 0)
        assert_disjoint_vectors(**found)
        ids = {
            c.id: encode_text(tokenizer, render(tokenizer, turns(c), answering=False))
            for s in SPLITS
            for c in chosen[s]
        }
        for split in SPLITS:
            for name in found[split].names:
                source, position = found[split].source(name), found[split].notes[name]["position"]
                others = [other[: position + 1] for key, other in ids.items() if key != source]
                assert ids[source][: position + 1] not in others

    def test_too_few_different_states(self, plant):
        """Where the stream is the embeddings, there are no more states than tokens."""
        alike = Context("a", "x", "plain", False, "aaaaaaaa", "aaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaaaaa")
        chosen = {split: [replace(alike, id=split, system=f"{split}{'a' * 30}")] for split in SPLITS}
        with pytest.raises(
            UserError, match=r"swap vectors of train: the contexts have only \d+ different states in \d+"
        ):
            swap_vectors(plant(np.eye(28, 32), np.zeros(32)), None, chosen, 30, 0)

    def test_a_context_that_is_too_long(self, model_directories):
        chosen = texts(2)
        chosen["test"] = [replace(chosen["test"][0], id="long", user="x" * 600)]
        with pytest.raises(UserError, match="context long: the text has"):
            swap_vectors(model_directories["llama"], None, chosen, 4, 0)


class TestCache:
    """The second time takes no model, and whatever decides the vectors makes them anew."""

    def made(self, directory, kind, layer=None):
        if kind == "concept":
            return concept_vectors(directory, None, FEW, 0, layer)
        return swap_vectors(directory, None, texts(4), 6, 0, layer)

    @pytest.mark.parametrize("kind", ["concept", "swap"])
    def test_the_second_time_takes_no_model(self, model_directories, tmp_path, cache, loads, kind):
        directory = shutil.copytree(model_directories["llama"], tmp_path / "copy")
        first = self.made(model_directories["llama"], kind)
        assert len(loads) == 1
        same(first, self.made(str(directory), kind), atol=0)  # the same model elsewhere
        assert len(loads) == 1
        assert len([path for path in cache.iterdir() if path.is_dir()]) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["concept", "swap"])
    def test_what_decides_them(self, model_directories, tmp_path, loads, tokenizer, kind):
        llama = model_directories["llama"]
        colon, dash = (str(shutil.copytree(llama, tmp_path / name)) for name in ("colon", "dash"))
        for directory, mark in ((colon, ":"), (dash, "-")):  # which are one token each
            changed = make_tokenizer(ToySettings(vocabulary=263, context=512), [])
            changed.chat_template = changed.chat_template.replace("{{ message.role }}|>", "{{ message.role }}|>" + mark)
            changed.save_pretrained(directory)
        models = [
            (llama, None),
            (llama, 0),
            (llama, 2),
            (model_directories["mistral"], None),
            (colon, None),
            (dash, None),
        ]
        for wanted, (directory, layer) in enumerate(models, 1):
            self.made(directory, kind, layer)
            assert len(loads) == wanted
        self.made(llama, kind, 1)  # the middle one, by number
        assert len(loads) == 6
        if kind == "concept":
            concept_vectors(llama, None, Concepts(FEW.pairs, ALL.templates[1:9]), 0)
            concept_vectors(llama, None, Concepts(ALL.pairs[1:7], FEW.templates), 0)
        else:
            swap_vectors(llama, None, texts(5), 6, 0)
            swap_vectors(llama, None, texts(4), 6, 1)
        assert len(loads) == 8

    @pytest.mark.parametrize("kind", ["concept", "swap"])
    def test_damage_is_made_good(self, model_directories, cache, loads, kind):
        first = self.made(model_directories["llama"], kind)
        file = next(cache.glob("*/vectors.safetensors"))
        file.write_bytes(file.read_bytes()[:-4])
        same(first, self.made(model_directories["llama"], kind))
        assert len(loads) == 2
