"""Random numbers of a sample or a step, derived from a hash of its name, never from a process's state.

Neither the number of workers nor a resume changes any of it, and there is no generator state to save.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


def _seed(*key: object) -> int:
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # 63 bits: torch's seeds are signed


def uniform(*key: object) -> float:
    """A number in [0, 1) that belongs to `key`."""
    return (_seed(*key) >> 10) / 2**53


def training_influence_quantity(bounds: tuple[float, ...], seed: int, step: int) -> float:
    """gamma_num ~ U[low, high] of an optimizer step (eq. 10), drawn from (seed, step): equal on all workers."""
    low, high = bounds
    return low + (high - low) * uniform(seed, "influence_quantity", step)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The random choices of one sample in one epoch."""

    noise: torch.Tensor  # (C, h, w), fp32, CPU
    time: float  # in [0, 1): the timestep, before `train.timestep_shift`
    drop_text: float  # in [0, 1): below p_drop_text the caption is dropped
    drop_image: float
    multiview: float  # below p_multiview the reference is another view
    view: float  # which one


def draw_sample(seed: int, epoch: int | str, uid: str, latent_shape: tuple[int, ...]) -> Draw:
    """The draw that belongs to (seed, epoch, uid), with noise of `latent_shape` (C, h, w).

    The choices are made before the noise, so that they do not depend on the size of the latents.
    """
    generator = torch.Generator().manual_seed(_seed(seed, epoch, uid))
    time, drop_text, drop_image, multiview, view = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    noise = torch.randn(latent_shape, generator=generator)
    return Draw(noise=noise, time=time, drop_text=drop_text, drop_image=drop_image, multiview=multiview, view=view)
