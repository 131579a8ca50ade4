"""Several processes: they train what one process trains on as many examples a step, and say what it says. Real ones, gloo."""

import json
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from afintro.data.cache import cache_directory
from afintro.data.loader import PackedRows, RankRows, by_number
from afintro.errors import UserError
from afintro.explainer.checkpoint import read_checkpoint, resolve_checkpoint
from benchmarks.architectures.families import SIZE, WRAPPERS
from tests.conftest import TRAINER, Workspace, save_small_model, write_records
from tests.generation.test_many_processes import children, gone

ROOT = Path(__file__).resolve().parents[1]
# What a process reads a step is half where there are two.
KINDS = {
    "one": ("--data.batch_size", "16"),
    "ddp": ("--config", str(ROOT / "configs" / "ddp.yaml"), "--trainer.devices", "2"),
    "fsdp": ("--config", str(ROOT / "configs" / "fsdp.yaml"), "--trainer.devices", "2"),
}
Fit = Callable[[str], Path]


class Failing(Callback):
    """Fails in the first process alone, whom the others then wait for."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            raise RuntimeError("the first process fails")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Workspace:
    """A folder for the whole module. 72 examples are nine rows of 8: the last step has half as many as the others."""
    folder = tmp_path_factory.mktemp("scale")
    write_records(folder / "train.json", 24, seed=3)
    write_records(folder / "validation.json", 7, seed=3, held_out_wording=True)
    config = folder / "small.yaml"
    config.write_text(
        f"""
model:
  name: {small_model}
  lora: {{r: 4, alpha: 8, target_modules: [all-linear, embed_tokens]}}
  learning_rate: 0.002
  schedule: constant
data:
  class_path: afintro.tasks.context_ablation.ContextAblation
  init_args: {{train_path: train.json, validation_path: validation.json, test_path: validation.json, batch_size: 8}}
{TRAINER}
  max_epochs: 1
  gradient_clip_val: 1.0
"""
    )
    return Workspace(folder, config, small_model)


def command(place: Workspace, what: str, kind: str, *more: str) -> Path:
    """Run it in one process or two; its run folder."""
    before = place.runs()
    done = place.run(what, "--config", str(place.config), *KINDS[kind], *more)
    assert done.returncode == 0, done.stderr
    [new] = [run for run in place.runs() if run not in before]
    return new


@pytest.fixture(scope="module")
def fitted(place: Workspace) -> Fit:
    """Run folder of one epoch of training of each kind."""
    found: dict[str, Path] = {}

    def fit(kind: str) -> Path:
        if kind not in found:
            found[kind] = command(place, "fit", kind)
        return found[kind]

    return fit


def last(run: Path) -> Path:
    return resolve_checkpoint(str(run / "checkpoints" / "last.ckpt"), run, "")


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def assert_same_training(one: Path, other: Path) -> None:
    """Adapter and both moments of the optimizer, which a single wrong gradient would change."""
    first, second = read_checkpoint(last(one)), read_checkpoint(last(other))
    assert first["global_step"] == second["global_step"]
    assert set(first["state_dict"]) == set(second["state_dict"])
    for name, tensor in first["state_dict"].items():
        assert type(second["state_dict"][name]) is torch.Tensor
        torch.testing.assert_close(second["state_dict"][name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    [mine], [others] = first["optimizer_states"], second["optimizer_states"]
    assert mine["param_groups"] == others["param_groups"]
    assert set(mine["state"]) == set(others["state"])
    for index, state in mine["state"].items():
        for moment in ("exp_avg", "exp_avg_sq"):
            found = others["state"][index][moment]
            torch.testing.assert_close(found, state[moment], rtol=1e-2, atol=1e-4 * float(state[moment].abs().max()))


@pytest.mark.parametrize("count", [2, 3, 15, 16, 17, 18, 31, 32, 40, 72, 1000])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_of_all_processes_has_the_examples_of_one_with_larger_rows(count: int, processes: int) -> None:
    order = np.random.default_rng(0).permutation(count).astype(np.int32)
    rows, whole = by_number(order, 8, processes), by_number(order, 8 * processes)
    if count % (8 * processes) == 1 and processes == 2:
        return  # one example for two processes: another row is halved for the second, see EpochRows
    assert len(rows) == len(whole) * processes
    for step in range(len(whole)):
        together = [rows[step * processes + rank] for rank in range(processes)]
        assert all(len(row) for row in together)
        assert np.concatenate(together).tolist() == whole[step].tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_every_process_evaluates_equally_many_rows_and_together_all(count: int) -> None:
    rows = PackedRows([], by_number(np.arange(count, dtype=np.int32), 1))
    shares = [list(RankRows(rows, rank, 3)) for rank in range(3)]
    assert {len(share) for share in shares} == {len(RankRows(rows, 0, 3))}
    assert {row for share in shares for row in share} == set(range(count))
    assert list(RankRows(rows)) == list(range(count))


def test_wrong_input_can_be_sent_to_another_process() -> None:
    error = UserError("is wrong", where="here", remedy="mend it")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_two_processes_train_as_one_on_twice_the_batch(fitted: Fit, kind: str) -> None:
    one, two = fitted("one"), fitted(kind)
    assert_same_training(one, two)
    stored = read_checkpoint(last(two))
    assert "afintro_identity" in stored
    assert all("lora" in name for name in stored["state_dict"])
    rows = [(run / "metrics.csv").read_text().splitlines() for run in (one, two)]
    losses = [[row.split(",")[rows[0][0].split(",").index("val/loss")] for row in own[1:]] for own in rows]
    assert [float(a) for a in losses[0] if a] == pytest.approx([float(b) for b in losses[1] if b], rel=1e-3)


@pytest.mark.long
def test_a_language_model_in_a_wrapper_trains_in_two_processes(place: Workspace) -> None:
    """An adapter on a vision tower would get no gradient, with which the processes stop."""
    tokenizer = AutoTokenizer.from_pretrained(place.model)
    text, settings = WRAPPERS["gemma3"]
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 2048, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model("gemma3", text_config={**SIZE, **text, **sizes}, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(place.path / "wrapper")
    tokenizer.save_pretrained(place.path / "wrapper")
    run = command(place, "fit", "ddp", "--model.name", str(place.path / "wrapper"))
    trained = read_checkpoint(last(run))["state_dict"]
    assert len(trained) == 2 + 2 * 7 * 3
    assert all("language_model" in name for name in trained)


@pytest.fixture(scope="module")
def whole(place: Workspace) -> Path:
    """Run folder of two epochs in one process."""
    return command(place, "fit", "one", "--trainer.max_epochs", "2")


@pytest.mark.long
@pytest.mark.parametrize(("trained", "asked"), [("one", "ddp"), ("ddp", "fsdp"), ("fsdp", "one")])
def test_a_checkpoint_says_the_same_wherever_it_is_loaded(
    place: Workspace, fitted: Fit, trained: str, asked: str
) -> None:
    """Seven records of three questions: two processes have an odd number of rows to share, and one does rows again."""
    checkpoint = ("--ckpt_path", str(last(fitted(trained))), "--data.batch_size", "4")
    alone = command(place, "validate", "one", *checkpoint)
    together = command(place, "validate", asked, *checkpoint)
    assert (alone / "predictions.jsonl").read_bytes() == (together / "predictions.jsonl").read_bytes()
    for part in ("n", "metrics", "baselines", "warnings"):
        assert summary(alone)[part] == summary(together)[part], part


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_training_goes_on_in_two_processes_where_one_stopped_and_back(
    place: Workspace, fitted: Fit, whole: Path, kind: str
) -> None:
    resumed = command(place, "fit", kind, "--trainer.max_epochs", "2", "--ckpt_path", str(last(fitted("one"))))
    assert_same_training(whole, resumed)
    back = command(place, "fit", "one", "--trainer.max_epochs", "2", "--ckpt_path", str(last(fitted(kind))))
    assert_same_training(whole, back)


@pytest.mark.long
def test_predictions_of_two_processes_stand_in_the_order_of_the_file(place: Workspace, fitted: Fit) -> None:
    checkpoint = ("--ckpt_path", str(last(fitted("one"))), "--data.batch_size", "2")
    alone, together = (command(place, "predict", kind, *checkpoint) for kind in ("one", "ddp"))
    rows = (together / "predictions.jsonl").read_text().splitlines()
    assert len({json.loads(row)["uid"] for row in rows}) == len(rows) == 7
    assert (alone / "predictions.jsonl").read_text().splitlines() == rows


@pytest.mark.long
def test_predict_with_sharded_weights_is_refused(place: Workspace, fitted: Fit) -> None:
    done = place.run("predict", "--config", str(place.config), *KINDS["fsdp"], "--ckpt_path", str(last(fitted("one"))))
    assert done.returncode == 2
    assert "trainer.strategy: shards the weights" in done.stderr


@pytest.mark.long
def test_the_comparison_is_trained_by_two_processes_too(place: Workspace, tmp_path: Path) -> None:
    other = save_small_model(tmp_path / "other", seed=7)
    runs = [command(place, "fit", kind, "--other_base", str(other)) for kind in ("one", "ddp")]
    adapters = [run / "other_base" / "adapter_model.safetensors" for run in runs]
    assert adapters[1].stat().st_size == adapters[0].stat().st_size
    assert "other_base" in summary(runs[1])["baselines"]
    before = len(place.runs())
    done = place.run("fit", "--config", str(place.config), *KINDS["fsdp"], "--other_base", str(other))
    assert done.returncode == 2
    assert "other_base cannot be trained so" in done.stderr
    assert len(place.runs()) == before


@pytest.mark.long
@pytest.mark.parametrize("task", ["context_ablation", "feature_descriptions", "steering", "introspection"])
def test_the_embedded_default_of_every_task_runs_in_two_processes(tmp_path: Path, task: str) -> None:
    """The first process alone makes the files; the second names them too. The toys are those of this machine's cache."""
    place = Workspace(tmp_path, ROOT / "configs" / f"{task}.yaml", tmp_path)
    overlays = [part for name in ("debug", "ddp") for part in ("--config", str(ROOT / "configs" / f"{name}.yaml"))]
    few = ("--trainer.devices", "2", "--trainer.accelerator", "cpu", "--text_only", "false", "--vector_only", "false")
    cache_directory().mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").symlink_to(cache_directory().resolve(), target_is_directory=True)
    # In a new interpreter: a forked one would wait at its end for the workers that tokenized.
    done = place.run_as_a_user("fit", "--config", str(place.config), *overlays, *few)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "lightning_logs" / task / "version_0"
    found = summary(run)
    assert found["n"] == len((run / "predictions.jsonl").read_text().splitlines())
    assert str(found["data"]["path"]).startswith(str(tmp_path)) == (task != "introspection")  # which draws its items


def is_second(pid: int) -> bool:
    """Tell by its environment: a process that is about to become another program has the command line of its parent."""
    try:
        return b"LOCAL_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it lived a moment
        return False


@pytest.mark.long
@pytest.mark.parametrize("victim", ["first", "second"])
def test_no_process_outlives_another(place: Workspace, victim: str) -> None:
    """SIGKILL of the second, and in the first an error that only it has."""
    settings = ["--trainer.max_epochs", "500"]
    if victim == "first":
        settings += ["--trainer.limit_val_batches", "0", "--trainer.callbacks", "tests.test_scale_out.Failing"]
    process = place.start("fit", "--config", str(place.config), *KINDS["ddp"], *settings)
    started: list[int] = []
    while process.poll() is None and not started:
        time.sleep(0.05)
        started = [pid for pid in children(process) if is_second(pid)]
    if victim == "second":
        time.sleep(8)
        os.kill(started[0], signal.SIGKILL)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert victim == "second" or "the first process fails" in errors
    deadline = time.monotonic() + 10
    while not all(gone(pid) for pid in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(gone(pid) for pid in started)
