"""CPU cores of this process, torch's number of threads, and what says that memory ran out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """A context in which torch computes with `count` CPU threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error means that a device's memory was too small, or the host's for a tensor."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size  # type: ignore[import-untyped]

    known = isinstance(error, Exception) and should_reduce_batch_size(error)
    return known or isinstance(error, torch.OutOfMemoryError)
