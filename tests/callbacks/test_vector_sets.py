"""Several test sets of the tasks with vectors: other scenarios of the same directions, other texts for the same features."""

import json
from pathlib import Path

import pytest

from tests.conftest import TRAINER, write_steering_records
from tests.test_cli_vectors import command, with_features, working_in

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("no_readers")]


def test_activations_of_several_sets_of_texts(tmp_path: Path, small_model: Path) -> None:
    with with_features(tmp_path, small_model, 32, text_only="false") as workspace:
        config = ("--config", str(workspace.config))
        command("fit", *config, "--trainer.max_epochs", "1")
        rows = json.loads((tmp_path / "firings.json").read_text())["samples"]
        kept = rows[::2]
        (tmp_path / "other.json").write_text(json.dumps({"samples": kept}))
        sets = {"benchmark": "firings.json", "organisms": "other.json"}
        printed = command("test", *config, "--ckpt_path", "best", "--data.activations", json.dumps(sets))
        assert "by test set" in printed
        run = tmp_path / "lightning_logs" / "feature_descriptions" / "version_1"
        table = json.loads((run / "sets.json").read_text())
        drops = table["sets"]["organisms"]["drop"]
        assert drops["judge/rouge_l"]["value"] == 0
        assert drops["functional_auroc"]["pairing"] in ("paired", "partly paired")
        described = {name: json.loads((run / name / "summary.json").read_text())["data"]["firings"] for name in sets}
        assert described == sets


def test_steering_on_several_sets(tmp_path: Path, small_model: Path) -> None:
    write_steering_records(tmp_path, (12, 6))
    rows = json.loads((tmp_path / "validation.json").read_text())
    for row in rows:
        row |= {"category": "ab"[int(row["scenario_id"][0], 16) % 2], "source": ["x"]}
    (tmp_path / "validation.json").write_text(json.dumps(rows))
    (tmp_path / "part.json").write_text(json.dumps(rows[: len(rows) // 2]))
    config = tmp_path / "small.yaml"
    config.write_text(
        f"""
model: {{name: {small_model}, lora: {{r: 4, alpha: 8, dropout: 0.0}}, slot_token: "<|slot|>"}}
data:
  class_path: afintro.tasks.steering.SteeringPrediction
  init_args:
    {{train_path: train.json, validation_path: validation.json, unseen_fraction: 0.4, pairs: 1, batch_size: 16}}
{TRAINER}
  max_epochs: 1
"""
    )
    with working_in(tmp_path):
        command("fit", "--config", str(config))
        sets = json.dumps({"whole": "validation.json", "part": "part.json"})
        command("test", "--config", str(config), "--ckpt_path", "best", "--data.test_paths", sets)
    run = tmp_path / "lightning_logs" / "steering" / "version_1"
    drops = json.loads((run / "sets.json").read_text())["sets"]["part"]["drop"]
    assert drops["twin_accuracy"]["shared"] > 0
    assert drops["twin_accuracy"]["ci_low"] is not None
    assert drops["calibration_error"]["shared"] > 0
    first = json.loads((run / "whole" / "predictions.jsonl").read_text().splitlines()[0])
    assert first["category"] in "ab"
    assert "source" not in first
