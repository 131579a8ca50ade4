"""How a trained explainer is described: epochs, and the rule by which its training stopped."""

import json
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from afintro.explainer.comparisons import training_record, training_records


def test_the_rule_names_threshold_patience_epochs_and_what_is_kept(tmp_path: Path) -> None:
    callbacks = [
        EarlyStopping("val/selection", mode="max", patience=5, stopping_threshold=0.96),
        ModelCheckpoint(tmp_path, monitor="val/selection"),
        ModelCheckpoint(tmp_path, filename="last"),
    ]
    trainer = Trainer(max_epochs=12, callbacks=callbacks, logger=False, accelerator="cpu", default_root_dir=tmp_path)
    record = training_record(trainer)
    assert record["epochs"] == 0
    assert record["rule"] == (
        "at most 12 epochs, until val/selection is 0.96, at most 5 checks without a better val/selection, "
        "the best val/selection is kept"
    )


def test_a_trainer_without_rules(tmp_path: Path) -> None:
    trainer = Trainer(
        max_epochs=-1, logger=False, accelerator="cpu", enable_checkpointing=False, default_root_dir=tmp_path
    )
    assert training_record(trainer) == {"epochs": 0, "rule": ""}


def test_records_are_found_in_the_folder_of_the_run(tmp_path: Path) -> None:
    assert training_records(None) == {}
    assert training_records(tmp_path) == {}
    for name in (".", "other_bits"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "training.json").write_text(json.dumps({"epochs": len(name), "rule": "r"}))
    found = training_records(tmp_path)
    assert {name: record["epochs"] for name, record in found.items()} == {"explainer": 1, "other_bits": 10}
