"""A part of the rehearsal in a process of its own: its memory ends with it, and its peak is its own."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from typing import TypeVar

from realcustom.errors import UsageError

GIB = 2**30
P = TypeVar("P")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a part did."""

    name: str
    shapes: tuple[str, ...] = ()  # of what it made
    load_seconds: float | None = None  # of that, for models and everything else that comes once
    work_seconds: float | None = None
    images: int = 0  # that were worked on in `work_seconds`
    seconds: float = 0.0  # as the process saw it, without its start
    peak_bytes: int = 0  # resident memory of the process
    device_bytes: int = 0  # peak of torch's memory on the GPU; 0: there is none
    notes: tuple[str, ...] = field(default=())

    @property
    def images_per_second(self) -> float | None:
        """Without loading."""
        return self.images / self.work_seconds if self.images and self.work_seconds else None


def in_own_process(work: Callable[[P], Measured], plan: P) -> Measured:
    """`work(plan)` in a new process, with its time and peak memory.

    Raises UsageError where that process was ended, which mostly means that the memory did not suffice.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share the driver's memory
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(_measured, work, plan).result()
        except BrokenProcessPool as error:
            raise UsageError(
                f"rehearse: the process of '{work.__name__}' was ended, most likely because this machine's memory is too small "
                f"for it"
            ) from error


def _measured(work: Callable[[P], Measured], plan: P) -> Measured:
    import torch

    began = time.monotonic()
    result = work(plan)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return replace(
        result,
        seconds=seconds,
        peak_bytes=peak if sys.platform == "darwin" else peak * 1024,  # Linux counts in KiB
        device_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
    )
