"""The memory of a forward's activations, counted: on real tensors, or on fake ones that have none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from realcustom.model import RealCustomModel


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes, weights left out."""

    kept: int  # of the distinct tensors that the forward keeps until its backward
    again: int  # of the largest part that gradient checkpointing computes again, and keeps meanwhile; 0 without it

    @property
    def most(self) -> int:
        """At most so many at a time: the parts that come early in the backward have more of the others beside them."""
        return self.kept + self.again


def count_activations(model: RealCustomModel, forward: Callable[[], torch.Tensor]) -> Activations:
    """Run a forward of a model, with gradient checkpointing where it is on, and count. No backward is possible after it."""
    weights = {_storage(value) for value in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}  # by storage; held, so that none takes the place of another
    again = 0

    def keep(place: dict[int, torch.Tensor], tensor: torch.Tensor) -> None:
        if _storage(tensor) not in weights:
            place[_storage(tensor)] = tensor

    def checkpointed(function: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal again
        inside: dict[int, torch.Tensor] = {}
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                keep(kept, argument)
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: keep(inside, tensor), _gone):
            output = function(*arguments)
        again = max(
            again, sum(tensor.untyped_storage().nbytes() for place, tensor in inside.items() if place not in kept)
        )
        return output

    unet: Any = model.unet
    checkpointing = unet.is_gradient_checkpointing
    if checkpointing:
        unet.enable_gradient_checkpointing(checkpointed)
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: keep(kept, tensor), _gone):
            output = forward()
    finally:
        if checkpointing:
            unet.enable_gradient_checkpointing()
    assert output.requires_grad
    return Activations(kept=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), again=again)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _gone(_: None) -> torch.Tensor:
    raise AssertionError("what was saved for a backward was counted, not kept")
