"""Checks before the first step: a run that would fail in hour three fails in minute one."""

import logging
import shutil
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer

from afintro.callbacks.explainer_of import explainer_of
from afintro.errors import UserError
from afintro.explainer.checkpoint import trainable_state
from afintro.explainer.module import ExplainerModule
from afintro.tasks.base import TaskData

log = logging.getLogger(__name__)

# Adapter, its two AdamW moments, and the copy that an atomic write needs.
CHECKPOINT_COPIES = 4


class Preflight(Callback):
    """Runs the longest batch forward and backward, and looks at disk and memory, before ``fit`` takes a step.

    Raises:
        UserError: The loss is not finite and positive, or there is too little room for checkpoints.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run all checks, and log one line for each."""
        module = explainer_of(pl_module)
        for split, examples in module.data.examples.items():
            log.info("preflight: %s: %d examples, schema and length checked", split, len(examples))
        if not module.data.heldout:
            log.info("preflight: no held-out file is configured (data.heldout), so none was compared")
        self._check_disk(trainer, module)
        self._run_longest_batch(trainer, module, module.data)

    def _check_disk(self, trainer: Trainer, module: ExplainerModule) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in trainable_state(module).values())
        keep = sum(max(1, getattr(callback, "save_top_k", 1)) + 1 for callback in trainer.checkpoint_callbacks)
        needed = size * CHECKPOINT_COPIES * keep
        folder = Path(trainer.default_root_dir)
        free = shutil.disk_usage(folder if folder.is_dir() else ".").free
        if free < needed:
            raise UserError(
                f"has {free / 1e9:.1f} GB free, but checkpoints need {needed / 1e9:.1f} GB",
                where=str(folder),
                remedy="free some room, or keep fewer checkpoints (save_top_k)",
            )
        log.info("preflight: %.2f GB for checkpoints, %.1f GB free", needed / 1e9, free / 1e9)

    def _run_longest_batch(self, trainer: Trainer, module: ExplainerModule, data: TaskData) -> None:
        batch = data.longest_batch().to(module.device)
        devices = [module.device] if module.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), trainer.precision_plugin.forward_context():
            loss = module.loss(batch)
        value = float(loss.detach())
        if not (value > 0 and value < float("inf")):
            raise UserError(
                f"have a loss of {value} as one batch, the longest of the training",
                where=f"items {batch.examples[0].uid} to {batch.examples[-1].uid}",
                remedy="check the weights, model.dtype and trainer.precision, and that answers are not empty",
            )
        loss.backward()
        module.on_after_backward()
        module.zero_grad(set_to_none=True)
        log.info("preflight: longest batch (%d tokens) forward and backward, loss %.3f", len(batch.input_ids), value)
        if devices:
            used = torch.cuda.max_memory_allocated()
            total = torch.cuda.get_device_properties(module.device).total_memory
            log.info("preflight: %.1f of %.1f GB accelerator memory at the longest batch", used / 1e9, total / 1e9)
