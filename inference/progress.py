"""What the engine tells of a job that runs, and what it counts of one that is done.

Letters: n images, U subjects, c h w latent.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A job after one of its steps."""

    step: int  # steps that are done, 1 to `of`
    of: int
    latents: Tensor  # (n, c, h, w), after the step
    masks: Tensor | None  # (n, U, h, w) in [0, 1], at the masks' own grid; None where no mask is used


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The work of a job."""

    forwards: int  # UNet forwards of single images: one for each image, branch and step
    seconds: float  # from its first step's start to its last image
    queue_seconds: float  # from `submit` to its first step's start
