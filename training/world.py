"""A worker's place among the workers of a run. Imports torch and no model: the driver and Ray's controller load it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class World:
    """This worker's rank among the data-parallel workers. Without a process group there is one worker."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def asynchronous(self) -> bool:
        """Whether the device computes beside the host, which waits where it reads a value."""
        return self.device.type != "cpu"

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over the workers."""
        if self.size > 1:
            dist.all_reduce(values)
        return values
