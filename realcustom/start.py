"""Where a call starts: noise, or a picture with noise on it (img2img), or a picture whose masked part is drawn anew (inpainting).

All as diffusers' pipelines do it, draws of the generator included.

Letters: P prompts, B rows, c h w latent, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from realcustom.arguments import latent_size
from realcustom.base import Base, sample_latents
from realcustom.errors import UsageError
from realcustom.image_inputs import ImageInputs, each_row, read_pictures
from realcustom.sampling import SamplingParams
from realcustom.schedule import Generators, cut_schedule


@dataclass(frozen=True, kw_only=True)
class Blend:
    """Keeps a picture outside a mask, for UNets that know nothing of masks."""

    mask: Tensor  # (B, 1, h, w): 1 where it is drawn anew
    source: Tensor  # (B, c, h, w), the picture's latents
    noise: Tensor  # (B, c, h, w), standard normal

    def after(self, latents: Tensor, scheduler: Any, following: Tensor | None) -> Tensor:
        """Latents after a step with the picture outside the mask, at the noise of the next timestep; None = it was the last."""
        source = self.source
        if following is not None:
            source = scheduler.add_noise(source, self.noise, following.reshape(1))
        return (1 - self.mask) * source + self.mask * latents


@dataclass(frozen=True, kw_only=True)
class Start:
    """The first latents, and the schedule from there."""

    latents: Tensor  # (B, c, h, w), at the first timestep's noise
    timesteps: Tensor  # (N,), those that are run
    steps: int  # what they are called in diffusers: N, or fewer for schedulers that evaluate a step more than once
    blend: Blend | None = None
    channels: Tensor | None = None  # (B, 1 + c, h, w): mask and masked picture, which an inpainting UNet reads as well


def make_start(
    base: Base,
    images: ImageInputs,
    sampling: SamplingParams,
    scheduler: Any,
    *,
    prompts: int,
    steps: int,
    generators: Generators,
    latents: Tensor | None,
) -> Start:
    """The start of a call.

    Args:
        scheduler: with its whole schedule of `steps` steps set.
        prompts: P.
        latents: (B, c, h, w), standard normal; None = drawn.
    Raises:
        UsageError: a size, a picture or the given latents do not fit.
    """
    rows = prompts * sampling.n
    size = latent_size(sampling.height, sampling.width, base.resolution, base.vae_scale_factor)
    if images.image is None:
        noise = _noise(base, (rows, *size), generators, latents)
        return Start(latents=noise * scheduler.init_noise_sigma, timesteps=scheduler.timesteps, steps=steps)
    strength = images.strength_on(base)
    timesteps, steps = cut_schedule(scheduler, steps, strength)
    height, width = (side * base.vae_scale_factor for side in size)
    pixels = read_pictures(images.image, "image", prompts, (height, width), signed=True)  # (1 or P, 3, H, W)
    mask = None  # (1 or P, 1, H, W)
    if images.mask_image is not None:
        mask = read_pictures(images.mask_image, "mask_image", prompts, (height, width), channels=1, binary=True)
    anew = mask is not None and strength == 1  # the first latents are noise alone
    source = None if base.takes_mask and anew else _encoded(base, pixels, rows, generators)
    if source is not None and mask is not None:
        source = source.contiguous()  # as in diffusers: each layout has its own last bits
    noise = _noise(base, (rows, *size), generators, latents)
    if source is None or anew:
        first = noise * scheduler.init_noise_sigma
    else:
        first = scheduler.add_noise(source, noise, timesteps[:1].repeat(rows))
    start = Start(latents=first, timesteps=timesteps, steps=steps)
    if mask is None:
        return start
    # diffusers encodes it for every base, and draws
    around = _encoded(base, pixels * (mask < 0.5), rows, generators)
    drawn = each_row(F.interpolate(mask, size=size), rows).to(base.device, base.dtype)  # (B, 1, h, w)
    if source is None or base.takes_mask:
        return replace(start, channels=torch.cat([drawn, around], 1))
    return replace(start, blend=Blend(mask=drawn, source=source, noise=noise))


def _encoded(base: Base, pixels: Tensor, rows: int, generators: Generators) -> Tensor:
    """Pictures (1 or P, 3, H, W) in [-1, 1] as latents (B, c, h, w); with a generator for each row each row has its own draw."""
    if not isinstance(generators, list):
        return each_row(sample_latents(base, pixels, generators), rows)
    pixels = each_row(pixels, rows)
    return torch.cat(
        [sample_latents(base, pixels[row : row + 1], generator) for row, generator in enumerate(generators)]
    )


def _noise(base: Base, shape: tuple[int, int, int], generators: Generators, latents: Tensor | None) -> Tensor:
    """(B, c, h, w), standard normal: `latents`, or drawn as diffusers' pipelines do."""
    rows, height, width = shape
    wanted = (rows, base.latent_channels, height, width)
    if latents is None:
        noise: Tensor = randn_tensor(wanted, generator=generators, device=base.device, dtype=base.dtype)
        return noise
    if not isinstance(latents, Tensor):
        raise UsageError(f"latents are a tensor of shape {wanted}, got a {type(latents).__name__}")
    if tuple(latents.shape) != wanted:
        raise UsageError(f"latents must have shape {wanted}, got {tuple(latents.shape)}")
    return latents.to(base.device, base.dtype)
