"""Trained weights that are sharded over the workers by FSDP2: each has a part of them, of their gradients, moments and
average. What is frozen is whole on each.

All workers have to call these functions alike: they exchange the parts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, workers: int, device: torch.device) -> None:
    """Leave each worker its part of the parameters that require gradients; they are equal on all workers before."""
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    fully_shard(
        model, mesh=init_device_mesh(device.type, (workers,)), reshard_after_forward=False, ignored_params=frozen
    )


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """A context in which a model has all of its weights on each worker, for forwards without a backward."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def whole(tensor: torch.Tensor, keep: bool) -> torch.Tensor:
    """The tensor of which this may be a part. Gathered ones are in host memory, where there is room for many: of a worker that
    does not `keep` them nothing is left there.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    gathered = tensor.full_tensor()
    return gathered.cpu() if keep else gathered.new_empty(0)


def fill(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a whole value into a tensor that may be a part."""
    if isinstance(tensor, DTensor):
        # src_data_rank=None: each worker has the value already
        value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(value)
