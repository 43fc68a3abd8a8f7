"""Running models so that equal inputs give equal bytes: fixed threads, fp32, one batch shape, no randomness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from preprocessing.settings import ComputeSettings

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def prepare_torch(compute: ComputeSettings) -> torch.device:
    """Set torch up as the settings (and so the fingerprint) say; the device to run on.

    Raises ValueError where the device is not there.
    """
    torch.set_num_threads(compute.threads)
    device = torch.device(compute.device.value)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("compute.device=cuda, and this machine has no CUDA device that torch can use")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    return device


def frozen(model: M, device: torch.device) -> M:
    """The model in fp32 on `device`, for inference only."""
    return model.to(device=device, dtype=torch.float32).eval().requires_grad_(False)


def pad_batch(items: Sequence[T], size: int) -> list[T]:
    """`items` filled up to `size` with copies of the first, so that a model only ever sees one batch shape."""
    return [*items, *[items[0]] * (size - len(items))]
