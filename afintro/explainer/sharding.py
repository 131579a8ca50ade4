"""Weights cut into one piece for each process (FSDP2), for explainers that one device does not hold."""

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
    keeps its dtype and the adapter keeps its own.

    Args:
        model: The base with its adapter, the same in every process, on the processor.
        injector: The injector, sharded as a whole; None for a task without vectors.
        mesh: The processes, in one dimension.
    """
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)  # the rest: embeddings, the last norm, the vocabulary matrix
    if injector is not None:
        fully_shard(injector, mesh=mesh)


def pieced(value: Tensor, like: Tensor) -> Tensor:
    """Cut a tensor that every process holds whole in the same way as another one is cut.

    Args:
        value: The whole tensor, the same in every process.
        like: The tensor that says how to cut; if it is not sharded, ``value`` is returned unchanged.
    """
    if not isinstance(like, DTensor):
        return value
    value = value.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


class Sharded(ModelParallelStrategy):
    """FSDP2 over all processes, with the same adapter-only checkpoints that a single process writes.

    A machine needs host memory for one copy of the base, because its processes load the base in turn. For device memory
    see :func:`shard`.

    Args:
        timeout: How long a process waits for the others before it gives up.
    """

    def __init__(self, timeout: timedelta = timedelta(hours=2)) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=timeout)

    def setup_environment(self) -> None:
        """Set up one dimension: all processes hold pieces of the same weights, and each has its own examples."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_processes * self.num_nodes, 1
        super().setup_environment()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run the block in the processes of a machine one after another, with the same random numbers."""
        for _ in range(self.local_rank):
            self.barrier()
        reset_seed()
        yield
        for _ in range(self.local_rank, self.num_processes):
            self.barrier()

    # Checkpoints. Lightning's own would gather the frozen base too, and number the optimizer's states by its parameters.

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning restore the optimizer, by :meth:`load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return nothing: ``on_save_checkpoint`` puts the adapter into the checkpoint."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state of the optimizer, as a single process would have it."""
        sharded = optimizer.state_dict()
        state = {i: {name: whole(value) for name, value in moments.items()} for i, moments in sharded["state"].items()}
        return {**sharded, "state": state}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file, and put nothing into the model yet."""
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load into every process its pieces of the weights that the checkpoint holds."""
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        for name, value in checkpoint["state_dict"].items():
            parameters[name].copy_(pieced(value, parameters[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load into every process its pieces of the optimizer's moments."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                i: {n: pieced(v, parameters[i]) if v.shape == parameters[i].shape else v for n, v in moments.items()}
                for i, moments in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})
            _optimizer_to_device(optimizer, self.root_device)
