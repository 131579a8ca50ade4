"""The optimizer of an explainer's adapter, and how its learning rate changes over the steps."""

import math
from collections.abc import Iterable

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from afintro.explainer.settings import ExplainerSettings


def make_optimizer(
    parameters: Iterable[nn.Parameter], settings: ExplainerSettings, total_steps: int
) -> OptimizerLRScheduler:
    """Return AdamW on the parameters that are trained, with a learning rate that changes at every step.

    Args:
        parameters: All parameters of the module; those that need no gradient are left out.
        settings: Learning rate, weight decay, warm-up and schedule.
        total_steps: Number of optimizer steps of the training, at least 1.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    # Plain numbers: a checkpoint keeps them, and is read without the types of ranges that the command line makes.
    rate, decay = float(settings.learning_rate), float(settings.weight_decay)
    optimizer = torch.optim.AdamW(trained, rate, weight_decay=decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, settings, total_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def rate_factor(step: int, settings: ExplainerSettings, total_steps: int) -> float:
    """Return the learning rate at an optimizer step as a share of its peak.

    Args:
        step: Number of the step, counted from 0.
        settings: The explainer's settings, of which warm-up and schedule are used.
        total_steps: Number of steps of the whole training.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = min(1.0, (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps))
    factors = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return factors[settings.schedule]
