"""Checks before the first step: a run that would fail in hour three fails in minute one."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from afintro.errors import UserError
from afintro.explainer.checkpoint import trainable_state

log = logging.getLogger(__name__)

# Adapter, its two AdamW moments, and the copy that an atomic write needs.
CHECKPOINT_COPIES = 4


class Preflight(Callback):
    """Runs the longest batch forward and backward, and looks at disk and memory, before ``fit`` takes a step.

    Raises:
        UserError: A loss that is not finite and positive, or too little room for checkpoints.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line for each check."""
        data: Any = getattr(trainer, "datamodule", None)
        if data is None:
            return
        for split, examples in data.examples.items():
            log.info("preflight: %s: %d examples, schema and length checked", split, len(examples))
        if not data.heldout:
            log.info("preflight: no held-out file is configured (data.heldout), so none was compared")
        self._disk(trainer, pl_module)
        self._longest_batch(trainer, pl_module, data)

    def _disk(self, trainer: Trainer, pl_module: LightningModule) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in trainable_state(pl_module).values())
        keep = sum(max(1, getattr(callback, "save_top_k", 1)) + 1 for callback in trainer.checkpoint_callbacks)
        needed = size * CHECKPOINT_COPIES * keep
        folder = Path(trainer.default_root_dir)
        free = shutil.disk_usage(folder if folder.is_dir() else ".").free
        if free < needed:
            raise UserError(
                f"{free / 1e9:.1f} GB free, checkpoints need {needed / 1e9:.1f} GB",
                where=str(folder),
                remedy="free some room, or keep fewer checkpoints (save_top_k)",
            )
        log.info("preflight: %.2f GB for checkpoints, %.1f GB free", needed / 1e9, free / 1e9)

    def _longest_batch(self, trainer: Trainer, pl_module: Any, data: Any) -> None:
        batch = data.longest_batch().to(pl_module.device)
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), trainer.precision_plugin.forward_context():
            loss = pl_module.loss(batch)
        value = float(loss.detach())
        if not (value > 0 and value < float("inf")):
            raise UserError(
                f"the loss of the longest batch is {value}",
                where=f"items {batch.examples[0].uid} to {batch.examples[-1].uid}",
                remedy="check the weights, model.dtype and trainer.precision, and that answers are not empty",
            )
        loss.backward()
        pl_module.on_after_backward()
        pl_module.zero_grad(set_to_none=True)
        log.info("preflight: longest batch (%d tokens) forward and backward, loss %.3f", len(batch.input_ids), value)
        if devices:
            used, total = (
                torch.cuda.max_memory_allocated(),
                torch.cuda.get_device_properties(pl_module.device).total_memory,
            )
            log.info("preflight: %.1f of %.1f GB accelerator memory at the longest batch", used / 1e9, total / 1e9)
