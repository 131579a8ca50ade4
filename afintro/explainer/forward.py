"""The teacher-forced forward pass: loss and exactness of answers, and which of two answers is more probable."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from afintro.data.batch import Example, PackedBatch, collate
from afintro.lm.forward import packed_logits
from afintro.lm.spans import Located


def answer_losses(
    model: PeftModel, batch: PackedBatch, changes: Sequence[Located], detached: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run a packed batch and compare the logits at answer positions with the answers.

    Args:
        model: The base with its adapter.
        batch: B packed examples on the model's device.
        changes: Interventions of the pass, positions counted in the row.
        detached: ``[T]`` bool, the positions through whose keys and values no gradient flows; None for none of them.

    Returns:
        Mean negative log-likelihood over answer tokens ``[B]`` in nats, float32 (float64 for a float64 model), and whether
        every answer token is the arg-max ``[B]`` bool.
    """
    logits = packed_logits(model, batch.input_ids, batch.cu_seqlens, batch.answer_positions, changes, detached=detached)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    token_nll = F.cross_entropy(logits, batch.answer_ids, reduction="none")
    counts = torch.bincount(batch.answer_rows, minlength=len(batch))
    nll = token_nll.new_zeros(len(batch)).index_add(0, batch.answer_rows, token_nll) / counts
    return nll, batch.exact(logits)


def changed_probabilities(
    answer_nll: Callable[[PackedBatch], tuple[Tensor, Tensor]], examples: Sequence[Example], device: torch.device
) -> dict[str, float]:
    """Compare the two stems with which an answer may begin, "unchanged" and "changed".

    Args:
        answer_nll: Gives mean negative log-likelihood ``[B]`` and exactness ``[B]`` of a batch.
        examples: Examples; one without branches is left out.
        device: Where the model is.

    Returns:
        By uid, the probability of the "changed" stem as a share of the probability of both.
    """
    branching = [example for example in examples if example.branches is not None]
    if not branching:
        return {}
    stems = [replace(e, answer_ids=stem) for e in branching for stem in e.branches or ()]
    nll, _ = answer_nll(collate(stems).to(device))
    lengths = torch.tensor([len(stem.answer_ids) for stem in stems], device=nll.device)
    shares = -(nll * lengths).view(-1, 2)
    changed = shares.softmax(-1)[:, 1].tolist()
    return {example.uid: share for example, share in zip(branching, changed, strict=True)}
