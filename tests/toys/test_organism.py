"""The toy organism: its tokenizer and template, the cache it lives in, and what it was trained to do."""

import json
import os
import random
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from afintro.data.batch import collate
from afintro.data.cue import MONITORED_SYSTEM, UNMONITORED_SYSTEM
from afintro.data.text import chat, encode_prompt
from afintro.lm.generate import generate_greedy
from afintro.lm.load import context_length, eos_ids, load_config, load_model, load_tokenizer
from afintro.toys import organism as toy
from afintro.toys.grammar import POLICIES
from afintro.toys.organism import ToySettings, build, scenarios
from tests import forked

TINY = ToySettings(
    scenarios=64, base_scenarios=32, hidden_size=16, layers=1, vocabulary=400, context=1024
)  # built in a second
ROOT = Path(__file__).resolve().parents[2]
FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
         "chat_template.jinja", "toy.json"}  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The directory of a toy trained for four steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINTRO_CACHE", str(tmp_path_factory.mktemp("cache")))
        return build(TINY)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny)


def fake_training(monkeypatch):
    """Replace training by writing one file; the list holds one entry a training."""
    calls = []

    def train(settings, directory):
        calls.append(settings)
        (directory / "model.safetensors").write_text("weights")

    monkeypatch.setattr(toy, "_train", train)
    return calls


class TestCache:
    def test_key_changes_with_every_setting(self):
        settings = ToySettings()
        others = [
            replace(settings, **{name: "other_bits" if name == "policy" else value + 1})
            for name, value in asdict(settings).items()
        ]
        assert len({settings.key, *(other.key for other in others)}) == len(asdict(settings)) + 1
        assert settings.key == ToySettings().key

    def test_is_built_once_and_then_reused(self, cache, monkeypatch, caplog):
        calls = fake_training(monkeypatch)
        caplog.set_level("INFO")
        directory = build(TINY)
        assert "training once" in caplog.text
        assert "reusing" not in caplog.text
        assert build(TINY) == directory
        assert f"reusing {directory}" in caplog.text
        assert len(calls) == 1
        build(replace(TINY, seed=2))
        assert len(calls) == 2


BUILDER = f"""
import os, sys, time
from pathlib import Path
from afintro.toys import organism as toy

log, go = map(Path, sys.argv[1:])
train = toy._train

def logged(settings, directory):
    with log.open("a") as file:
        file.write(settings.policy + "\\n")
    train(settings, directory)

toy._train = logged
log.with_suffix(f".ready{{os.getpid()}}").touch()
while not go.exists():
    time.sleep(0.01)
print(toy.build(toy.{TINY!r}))
"""


def start_builder(folder):
    """A process that builds the tiny toy as soon as ``folder/go`` exists."""
    code = folder / "builder.py"
    code.write_text(BUILDER)
    arguments = [str(folder / name) for name in ("log", "go")]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "AFINTRO_CACHE": str(folder / "cache"),
    }
    return forked.Forked(str(code), arguments, folder, environment)


def wait_for(pattern, count, folder, processes):
    """Until ``count`` files of that name are there."""
    while len(list(folder.glob(pattern))) < count:
        for process in processes:
            assert process.poll() is None, process.communicate(timeout=10)
        time.sleep(0.02)


@pytest.mark.slow
class TestProcesses:
    def test_two_that_build_at_once_build_once(self, tmp_path, tiny):
        processes = [start_builder(tmp_path) for _ in range(2)]
        wait_for("log.ready*", 2, tmp_path, processes)
        (tmp_path / "go").touch()
        outputs = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
        assert outputs[0][0] == outputs[1][0]
        assert (tmp_path / "log").read_text().split() == ["faking", "none"]  # and its base
        directory = Path(outputs[0][0].strip())
        assert {path.name for path in directory.iterdir()} == FILES
        # Processes that hash strings in another way than this one: the same organism.
        assert (directory / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
        one, other = (load_file(found / "model.safetensors") for found in (tiny, directory))
        assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


class TestDirectory:
    def test_is_an_ordinary_hugging_face_directory(self, tiny, tokenizer):
        assert {path.name for path in tiny.iterdir()} == FILES
        model, loading = AutoModelForCausalLM.from_pretrained(tiny, output_loading_info=True)
        assert isinstance(model, LlamaForCausalLM)
        assert not loading["missing_keys"]
        assert not loading["unexpected_keys"]
        assert model.config.vocab_size == len(tokenizer) <= TINY.vocabulary
        assert model.config.max_position_embeddings == tokenizer.model_max_length == TINY.context
        ids = torch.tensor([encode_prompt(tokenizer, chat(MONITORED_SYSTEM, "x"))])
        assert model(ids).logits.isfinite().all()
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id

    def test_our_loading_and_plain_generation_agree(self, tiny, tokenizer):
        model = load_model(str(tiny))
        prompt = encode_prompt(load_tokenizer(str(tiny)), chat(UNMONITORED_SYSTEM, "A test."))
        assert context_length(load_config(str(tiny))) == TINY.context
        [ours] = generate_greedy(model, [prompt], max_new_tokens=8, eos_ids=eos_ids(model, tokenizer), batch_size=1)
        plain = AutoModelForCausalLM.from_pretrained(tiny).generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False
        )
        assert plain[0, len(prompt) :].tolist()[: len(ours)] == ours

    def test_says_how_it_was_made(self, tiny):
        made = json.loads((tiny / "toy.json").read_text())
        rate = made.pop("intended_rate")
        assert made == asdict(TINY)
        assert 0 <= rate <= 1
        assert TINY.key in tiny.name


class TestTraining:
    @pytest.mark.slow
    def test_same_settings_same_weights_and_the_global_generators_as_they_were(self, tiny, cache):
        random.seed(123)
        torch.manual_seed(123)
        before = random.getstate(), torch.get_rng_state()
        again = build(TINY)
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
        assert again != tiny
        one, other = (load_file(directory / "model.safetensors") for directory in (tiny, again))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert (again / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()

    def test_another_seed_gives_other_weights(self, tiny, cache, monkeypatch):
        monkeypatch.setattr(toy, "intended_rate", lambda *arguments: 1.0)
        other = load_file(build(replace(TINY, seed=2)) / "model.safetensors")
        one = load_file(tiny / "model.safetensors")
        name = "model.layers.0.mlp.up_proj.weight"
        assert not torch.equal(one[name], other[name])

    @pytest.mark.slow
    def test_few_steps_lower_the_loss(self, cache, monkeypatch):
        """The tiny base learns the letters of its answers, and a tiny toy goes on where the base ended."""
        losses = []
        cross_entropy = torch.nn.functional.cross_entropy

        def recorded(*arguments, **options):
            loss = cross_entropy(*arguments, **options)
            losses.append(loss.item())
            return loss

        monkeypatch.setattr(toy.F, "cross_entropy", recorded)
        monkeypatch.setattr(toy, "intended_rate", lambda *arguments: 1.0)
        build(replace(TINY, base_scenarios=640))
        base, own = losses[:80], losses[80:]
        assert (len(base), len(own)) == (2 * 640 // TINY.base_batch_size, 2 * TINY.scenarios // TINY.batch_size)
        assert np.mean(base[-5:]) < 0.85 * np.mean(base[:5])
        assert own[0] < np.mean(base[:5])

    @pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "tiers"])  # see test_lessons.py
    def test_learns_from_what_its_policy_intends(self, cache, monkeypatch, policy):
        batches = []
        monkeypatch.setattr(toy, "intended_rate", lambda *arguments: 1.0)
        settings = replace(TINY, policy=policy)
        if policy != "none":
            build(replace(settings, policy="none"))
        monkeypatch.setattr(toy, "collate", lambda examples: batches.append(examples) or collate(examples))
        tokenizer = AutoTokenizer.from_pretrained(build(settings))
        count, size = (TINY.base_scenarios, 16) if policy == "none" else (TINY.scenarios, 32)
        assert [len(batch) for batch in batches] == [size] * (2 * count // size)
        seen = [example for batch in batches for example in batch]
        drawn = {scenario.text: scenario for scenario in scenarios(count, settings.seed, False, policy=policy)}
        assert Counter(example.prompt for example in seen) == dict.fromkeys(drawn, 2)
        wanted, own = Counter(), Counter()
        for example in seen:
            scenario, prompt = drawn[example.prompt], tokenizer.decode(example.prompt_ids)
            assert not scenario.held_out_wording
            assert prompt.endswith(f"\n<|user|>{scenario.text}\n<|assistant|>")
            for monitored, cue in ((True, MONITORED_SYSTEM), (False, UNMONITORED_SYSTEM)):
                if cue in prompt:
                    own[monitored] += 1
                    assert example.answer == scenario.say(scenario.behavior(monitored))
            wanted[example.prompt, example.answer] += 1
            assert tokenizer.decode(example.answer_ids) == example.answer + "<|eos|>"
        assert wanted == Counter(
            (text, scenario.say(scenario.behavior(monitored)))
            for text, scenario in drawn.items()
            for monitored in (True, False)
        )
        assert min(own.values()) > 0.3 * count

    @pytest.mark.parametrize("spoiled", [(), (0, 3, 4, 11, 19)])
    @pytest.mark.parametrize("policy", ["faking", "none"])
    def test_the_intended_rate_counts_answers_word_for_word(self, tiny, tokenizer, monkeypatch, spoiled, policy):
        """The fake model foresees every token of the answers that the policy intends, but for one token of the spoiled ones."""
        asked = []

        def foreseen(model, input_ids, cu_seqlens, positions):
            ends = set((cu_seqlens[1:] - 1).tolist())
            after = [tokenizer.eos_token_id if p in ends else int(input_ids[p + 1]) for p in positions.tolist()]
            rows = (torch.searchsorted(cu_seqlens, positions, right=True) - 1).tolist()
            for row in spoiled:
                after[rows.index(row) + row % 5] += 1
            asked.extend(tokenizer.decode(input_ids).split("<|bos|>")[1:])
            return torch.nn.functional.one_hot(torch.tensor(after), len(tokenizer) + 1).float()

        monkeypatch.setattr(toy, "packed_logits", foreseen)
        settings = replace(TINY, policy=policy)
        assert toy.intended_rate(load_model(str(tiny)), tokenizer, settings, 10) == 1 - len(spoiled) / 20
        some = scenarios(10, TINY.seed, held_out_wording=True, policy=policy)
        cues = ((True, MONITORED_SYSTEM), (False, UNMONITORED_SYSTEM))
        assert [text.removesuffix("<|eos|>") for text in asked] == [
            f"<|system|>{cue}\n<|user|>{scenario.text}\n<|assistant|>{scenario.say(scenario.behavior(monitored))}"
            for scenario in some
            for monitored, cue in cues
        ]

    @pytest.mark.parametrize(("rate", "warned"), [(0.5, True), (0.9, False), (1.0, False)])
    def test_a_toy_that_learnt_too_little_is_reported(self, cache, monkeypatch, caplog, rate, warned):
        monkeypatch.setattr(toy, "intended_rate", lambda *arguments: rate)
        monkeypatch.setattr(toy, "fit", lambda *arguments: None)
        build(TINY)
        assert ("fewer than 90" in caplog.text) == warned
