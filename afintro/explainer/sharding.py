"""Weights in pieces, one a process (FSDP2), for explainers that one device does not hold."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.utilities.optimizer import _optimizer_to_device
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import ModelParallelStrategy
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from afintro.explainer.checkpoint import whole
from afintro.lm.interventions import decoder_layers


def shard(model: PeftModel, injector: nn.Module | None, mesh: DeviceMesh) -> None:
    """Cut every weight into as many pieces as there are processes, and keep this one's, on the mesh's device.

    A layer's weights are gathered when it runs and dropped after it, so a device holds its share of the base, one layer
    more, and the activations. Each layer moves to the device alone: the whole base never lies there. The frozen base
    keeps its dtype and the adapter its own.
    """
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)  # what is in no layer: embeddings, the last norm, the vocabulary matrix
    if injector is not None:
        fully_shard(injector, mesh=mesh)


def pieced(value: Tensor, like: Tensor) -> Tensor:
    """``value``, which every process has, cut as ``like`` is."""
    if not isinstance(like, DTensor):
        return value
    value = value.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


class Sharded(ModelParallelStrategy):
    """FSDP2 over all processes, with checkpoints of the adapter alone that are those of a single process.

    Host memory: one copy of the base on each machine, as its processes load it in turn. Device memory: see :func:`shard`.

    Args:
        timeout: How long a process waits for the others before it gives up.
    """

    def __init__(self, timeout: timedelta = timedelta(hours=2)) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=timeout)

    def setup_environment(self) -> None:
        """One dimension: all processes hold pieces of the same weights, and have their own examples."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_processes * self.num_nodes, 1
        super().setup_environment()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The processes of a machine run the block one after another, with the same random numbers."""
        for _ in range(self.local_rank):
            self.barrier()
        reset_seed()
        yield
        for _ in range(self.local_rank, self.num_processes):
            self.barrier()

    # Checkpoints. Lightning's would gather the frozen base too, and number the optimizer's states by it.

    @property
    def lightning_restore_optimizer(self) -> bool:
        """By :meth:`load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: ``on_save_checkpoint`` puts in the adapter."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state, as that of a single process."""
        found = optimizer.state_dict()
        state = {i: {name: whole(value) for name, value in own.items()} for i, own in found["state"].items()}
        return {**found, "state": state}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file; nothing is put into the model yet."""
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Every process takes its pieces of what the checkpoint holds."""
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        for name, value in checkpoint["state_dict"].items():
            parameters[name].copy_(pieced(value, parameters[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Likewise for the optimizer's moments."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                i: {n: pieced(v, parameters[i]) if v.shape == parameters[i].shape else v for n, v in own.items()}
                for i, own in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})
            _optimizer_to_device(optimizer, self.root_device)
