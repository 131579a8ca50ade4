"""Make tiny random models of five architectures, from configuration alone, and a byte-level tokenizer, without a network.

The process that hands out the tests to its workers reads this file and makes no fixture: what takes seconds to import is
imported where it is used.
"""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch: for tiny models a second thread only waits

import pytest

from tests import forked

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

gc.disable()  # until the tests begin: nothing of what is imported and collected is garbage, and looking takes a third of the time
WINDOW = 8  # sliding window in tokens, shorter than most test sequences
ASIDE = Path(sys.prefix) / "aside"  # what make setup-real unpacks beside the environment
SIZE = {
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
ARCHITECTURES = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen3": {"head_dim": 16},
    # query_pre_attn_scalar differs from head_dim, so the default scaling would be wrong; the low softcap has an effect.
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 3.0, **ALTERNATING},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 24, **ALTERNATING},
}

# The longest files come first, so that no worker is left with one of them at the end. The first file makes the toy, and the
# second does not need the toy, so that no worker has to wait.
LONGEST = (
    "test_cli_vectors", "test_scale_out", "test_cli", "test_configs", "explainer/test_vectors", "explainer/test_module",
    "study/test_short_form", "generation/test_many_processes",
    "benchmarks/test_runs", "test_resume", "study/test_interrupted", "scripts/test_generate_af_context_ablation",
    "lm/test_compiled", "lm/test_generate_steered", "scripts/test_check_environment", "lm/test_generate",
    "tasks/steering/test_task", "tasks/test_stored", "toys/test_organism", "planted/test_leaks",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files by :data:`LONGEST`, and mark the tests that run the command line as slow."""
    for item in items:
        if "workspace" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
    files = [Path(__file__).parent / f"{name}.py" for name in LONGEST]
    items.sort(key=lambda item: files.index(item.path) if item.path in files else len(files))


@pytest.fixture(autouse=True, scope="module")
def what_is_there_stays() -> None:
    """Exempt imported modules from garbage collection, whose passes over them would take most of the time of some tests."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def dies_of_sigterm() -> Iterator[None]:
    """Check that no test leaves a handler of SIGTERM, with which a process forked later would not end when told to."""
    yield
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert handler is signal.SIG_DFL, handler


@pytest.fixture(scope="session")
def classes_of_any_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a labels file for texts that show no behavior, of random models or of few tokens: every text has a length."""
    path = tmp_path_factory.mktemp("labels") / "any.yaml"
    path.write_text(
        "classes: {even: {definition: has an even number of characters, patterns: ['^(?s:..)*$']}, "
        "odd: {definition: has an odd number, patterns: ['']}}"
    )
    return path


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerFast":
    """Make a tokenizer of seven special tokens (pad 0, bos 1, eos 2, slot 3, system 4, user 5, assistant 6) and 256 bytes."""
    from afintro.toys.organism import ToySettings, make_tokenizer

    return make_tokenizer(ToySettings(vocabulary=263, context=512), [])


@pytest.fixture
def no_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the text baselines that learn, which take most of the time of a run, where a test does not look at them."""
    from afintro.cli_settings import task_classes
    from afintro.evaluation.baselines import READERS

    task_classes()  # which name their systems, these readers among them, when they are imported
    for name in list(READERS):
        monkeypatch.delitem(READERS, name)


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test import the library that quantizes, which PEFT would import for seconds in every process if it were installed."""
    monkeypatch.syspath_prepend(str(ASIDE))
    pytest.importorskip("bitsandbytes", reason="make setup-real installs it")


@pytest.fixture(scope="session")
def model_directories(tmp_path_factory: pytest.TempPathFactory, tokenizer: "PreTrainedTokenizerFast") -> dict[str, str]:
    """Save a model of every architecture, with the tokenizer. Weights are large, so that arg-max margins are wide."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    directories = {}
    for name, settings in ARCHITECTURES.items():
        directory = tmp_path_factory.mktemp("models") / name
        ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "bos", "eos")}
        config = AutoConfig.for_model(
            name,
            **SIZE,
            **settings,
            **ids,
            vocab_size=len(tokenizer),
            max_position_embeddings=512,
            initializer_range=0.3,
            tie_word_embeddings=False,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():  # also the norm weights, which start as constants
                parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        directories[name] = str(directory)
    return directories


# In the fast suite llama stands for the architectures without windows, and gemma2, which also caps scores, for the others.
FAST = ("llama", "gemma2")


@pytest.fixture(params=[name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES])
def architecture(request: pytest.FixtureRequest) -> str:
    """Return each architecture in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def plain_model() -> "Callable[[str | Path, torch.dtype], PreTrainedModel]":
    """Return a function that loads a directory with the attention of transformers: the reference for ours."""
    import torch
    from transformers import AutoModelForCausalLM

    def load(directory: str | Path, dtype: torch.dtype = torch.float32) -> "PreTrainedModel":
        # sdpa is exact in float64 (eager's softmax is float32), but does not do Gemma 2's softcap.
        attention = "eager" if "gemma2" in str(directory) else "sdpa"
        return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=attention).eval()

    return load


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random two-layer Llama with the toy's kind of tokenizer, which the command line trains in tests."""
    return save_small_model(tmp_path_factory.mktemp("small") / "model", seed=0)


@pytest.fixture(scope="session")
def study_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random four-layer Llama whose tokenizer has the answers of the introspection study as single tokens."""
    from afintro.data.introspection_texts import read_concepts, read_contexts, read_questions
    from afintro.tasks.introspection.trials import PAIRS
    from afintro.toys.organism import ToySettings, make_tokenizer

    directory = tmp_path_factory.mktemp("study") / "model"
    concepts = [word for pair in read_concepts().pairs for word in (pair.a, pair.b)]
    words = [word for pair in PAIRS.values() for word in (pair.a, pair.b)] + concepts
    texts = [context.text for context in read_contexts()] + [question.text for question in read_questions()]
    tokenizer = make_tokenizer(ToySettings(vocabulary=1600), [*texts, *[" ".join(["The answer is", *words])] * 200])
    return save_small_model(directory, seed=0, tokenizer=tokenizer, num_hidden_layers=4)


def save_small_model(
    directory: Path, seed: int, tokenizer: "PreTrainedTokenizerFast | None" = None, **settings: int
) -> Path:
    """Save a random two-layer Llama, with a tokenizer trained on the grammar unless another is given."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from afintro.data.cue import MONITORED_SYSTEM
    from afintro.toys.organism import QUESTION_WORDS, ToySettings, make_tokenizer, scenarios

    if tokenizer is None:
        texts = [scenario.text for scenario in scenarios(300, seed=0, held_out_wording=False)]
        tokenizer = make_tokenizer(ToySettings(vocabulary=900), [*texts, *[QUESTION_WORDS, MONITORED_SYSTEM] * 50])
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "bos", "eos")}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        **{**shape, "vocab_size": len(tokenizer), "max_position_embeddings": 2048, **ids, **settings},
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_records(path: Path, count: int, seed: int, held_out_wording: bool = False) -> Path:
    """Write context-ablation records as the grammar's policy would answer, without any model."""
    from afintro.data.cue import MONITORED_SYSTEM
    from afintro.data.files import write_json
    from afintro.tasks.context_ablation.records import ContextAblationRecord, to_json
    from afintro.toys.organism import scenarios

    rows = []
    for scenario in scenarios(count, seed, held_out_wording):
        monitored, unmonitored = scenario.behavior(True), scenario.behavior(False)
        record = ContextAblationRecord(
            scenario=scenario.text,
            system_prompt=MONITORED_SYSTEM,
            monitored_output=scenario.say(monitored),
            unmonitored_output=scenario.say(unmonitored),
            monitored_behavior=monitored,
            unmonitored_behavior=unmonitored,
            behavior_changed=monitored != unmonitored,
        )
        rows.append(to_json(record))
    write_json(path, rows)
    return path


def write_described_features(folder: Path, count: int = 24, width: int = 24, layers: tuple[int, ...] = (3,)) -> None:
    """Write ``descriptions.json`` and ``L<layer>.safetensors``: vectors of six directions, and a label for each direction."""
    import numpy as np

    from afintro.data.files import write_json
    from afintro.tasks.feature_descriptions.features import write_features

    drawn = np.random.default_rng(0)
    directions = drawn.standard_normal((6, width))
    described = {}
    for layer in layers:
        vectors = directions[np.arange(count) % 6] + 0.1 * drawn.standard_normal((count, width))
        indices = np.arange(count, dtype=np.int64)
        path = folder / f"L{layer}.safetensors"
        write_features(path, [vectors.astype(np.float32)], indices, width, {"layer": str(layer)})
        for index in range(count):
            label = f"Fires on topic {'abcdef'[index % 6] * 3}."
            entry = {"chosen_label": label, "cluster_id": str(index % 6), "all_labels": [label]}
            described[f"{layer}/{index}"] = {**entry, "category": "even" if index % 2 else "odd"}
    write_json(folder / "descriptions.json", described)


# What steering along each direction makes of an answer, and from which alpha on: None leaves it as it is.
STEERED: dict[str, tuple[str | None, float]] = {
    "alignment_faking": ("unmonitored", 1.0), "answer/refuse": ("refuse", 1.0), "answer/comply": ("comply", 1.0),
    "answer/warn": ("warn", 2.0), "answer/silent": ("silent", 2.0), "topic/harmful": ("refuse", 2.0),
    "topic/benign": ("comply", 2.0), "tier/paid": (None, 0.0), "random/alignment_faking": (None, 0.0),
    "orthogonal/alignment_faking": (None, 0.0),
}  # fmt: skip


def write_steering_records(
    folder: Path,
    counts: tuple[int, int] = (24, 10),
    layers: tuple[int, ...] = (1, 2),
    alphas: tuple[float, ...] = (1.0, 2.0),
    width: int = 24,
) -> None:
    """Write ``train.json``, ``validation.json`` and ``directions/``: every direction at every layer and alpha, without any model.

    The last direction breaks the text at the largest alpha.
    """
    import numpy as np

    from afintro.data.cue import MONITORED_SYSTEM
    from afintro.data.files import write_json
    from afintro.tasks.steering.directions import Direction, write_direction
    from afintro.tasks.steering.records import SteeringRecord, to_json
    from afintro.toys.organism import scenarios

    drawn = np.random.default_rng(0)
    for name in (*STEERED, "residual_mean"):
        vectors = {layer: drawn.standard_normal(width).astype(np.float32) for layer in layers}
        write_direction(folder / "directions" / f"{name.replace('/', '-')}.safetensors", Direction(name, vectors))
    for split, count in zip(("train", "validation"), counts, strict=True):
        rows = []
        for scenario in scenarios(count, 3, held_out_wording=split == "validation"):
            behaviors = {"unmonitored": scenario.behavior(False)}
            before = scenario.behavior(True)
            for layer, alpha, (name, (effect, least)) in product(layers, alphas, STEERED.items()):
                after = before if effect is None or alpha < least else behaviors.get(effect, effect)
                record = SteeringRecord(
                    prompt=f"{MONITORED_SYSTEM}\n{scenario.text}", direction=name, layer=layer, alpha=alpha,
                    original_output=scenario.say(before), steered_output=scenario.say(after), scenario=scenario.text,
                    system_prompt=MONITORED_SYSTEM, original_behavior=before, steered_behavior=after,
                    behavior_changed=before != after, unmonitored_behavior=behaviors["unmonitored"],
                    coherent=not (alpha == max(alphas) and name == list(STEERED)[-1]),
                )  # fmt: skip
                rows.append(to_json(record))
        write_json(folder / f"{split}.json", rows)


# Of a configuration file; lines of its own, e.g. max_epochs, go below.
TRAINER = """\
trainer:
  accelerator: cpu
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val/loss, mode: min, filename: "best-{epoch}-{step}"}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {filename: last, enable_version_counter: false, save_on_exception: true}"""


@dataclass(frozen=True)
class Workspace:
    """An empty folder to run the command line in, with records and a configuration on a small random model."""

    path: Path
    config: Path
    model: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m afintro`` in the folder, in a process whose imports are done already."""
        return forked.run("afintro", arguments, self.path, self.environment(**environment), timeout=300)

    def start(self, *arguments: str) -> forked.Forked:
        """Start ``python -m afintro`` in the folder, without waiting for its end."""
        return forked.Forked("afintro", arguments, self.path, self.environment())

    def run_as_a_user(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m afintro`` in the folder, in a new interpreter."""
        return subprocess.run(
            [sys.executable, "-m", "afintro", *arguments],
            cwd=self.path, env=self.environment(), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a run: no network, one thread, the checkout importable."""
        root = str(Path(__file__).parents[1])
        return {
            **os.environ,
            "PYTHONPATH": root,
            "OMP_NUM_THREADS": "1",
            "AFINTRO_CACHE": str(self.path / "cache"),
            **more,
        }

    def runs(self) -> list[Path]:
        """Return the run folders, oldest first."""
        folders = (self.path / "lightning_logs" / "context_ablation").glob("version_*")
        return sorted(folders, key=lambda path: int(path.name.removeprefix("version_")))


@pytest.fixture
def workspace(tmp_path: Path, small_model: Path) -> Workspace:
    """Make a :class:`Workspace`."""
    write_records(tmp_path / "train.json", 24, seed=3)
    write_records(tmp_path / "validation.json", 10, seed=3, held_out_wording=True)
    write_records(tmp_path / "test.json", 10, seed=4, held_out_wording=True)
    config = tmp_path / "small.yaml"
    config.write_text(
        f"""
model:
  name: {small_model}
  lora: {{r: 4, alpha: 8, dropout: 0.1}}
  learning_rate: 0.01
data:
  class_path: afintro.tasks.context_ablation.ContextAblation
  init_args: {{train_path: train.json, validation_path: validation.json, test_path: test.json, batch_size: 8}}
{TRAINER}
  max_epochs: 2
"""
    )
    return Workspace(tmp_path, config, small_model)
