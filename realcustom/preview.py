"""Previews of latents: a linear map from a latent cell to one colour, fitted to the VAE by least squares, or a small decoder.

A preview by the map costs one small matrix product, so it can be made of every step. It shows colours and shapes, no detail.
A decoder such as TAESD shows detail too, and costs a small part of the VAE's decoder.

Letters: B pictures, c h w latent, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor
from torch.nn import functional

from realcustom.base import Base, encode_pixels
from realcustom.errors import UsageError
from realcustom.loading import load_refusals

PICTURES = 12  # that the map is fitted to
CELLS = 16  # their side, in latent cells
GRIDS = (1, 2, 4, 8)  # colours a side of a fitted picture: from a single colour to many shapes


class Preview(Protocol):
    """Makes pictures of latents that are not denoised yet."""

    def images(self, latents: Tensor) -> list[Image.Image]:
        """RGB pictures of the latents (B, c, h, w), at the size of the final images."""
        ...


def make_preview(base: Base, decoder: str | None = None) -> Preview:
    """The linear map of the base, or the decoder of this name. Raises as `DecodedPreview.load`."""
    linear = LatentPreview.fit(base)
    return linear if decoder is None else DecodedPreview.load(decoder, base, linear.deviation)


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentPreview:
    """The map, and how large the latents of pictures are."""

    weights: Tensor  # (c + 1, 3), float32 on the CPU; the last row is the constant
    deviation: float  # standard deviation of the fitted pictures' latents
    factor: int  # pixels per latent cell and side

    @classmethod
    def fit(cls, base: Base, seed: int = 0) -> LatentPreview:
        """Encode random smooth pictures with the base's VAE, and fit their cells' mean colours to the latents."""
        factor = base.vae_scale_factor
        pixel_values = _smooth_pictures(CELLS * factor, torch.Generator().manual_seed(seed))  # (B, 3, H, W)
        latents = encode_pixels(base, pixel_values.to(base.device)).float().cpu()  # (B, c, h, w)
        colours = functional.avg_pool2d(pixel_values, factor)  # (B, 3, h, w)
        cells, wanted = _with_constant(latents), colours.movedim(1, -1).flatten(0, 2)
        # in float64 and with a little ridge: a VAE may leave a channel unused
        gram = cells.double().T @ cells.double()
        ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        weights = torch.linalg.solve(gram + ridge, cells.double().T @ wanted.double()).float()
        return cls(weights=weights, deviation=float(latents.std()), factor=factor)

    def pixel_values(self, latents: Tensor) -> Tensor:
        """(B, c, h, w) of any dtype and device -> (B, 3, h, w) in [-1, 1], one pixel for each latent cell.

        Latents that still hold much noise, as those of a scheduler with sigmas do, are first scaled down to the
        deviation of pictures: they would be black and white alone.
        """
        latents = _scaled_down(latents.float().cpu(), self.deviation)
        colours = _with_constant(latents) @ self.weights  # (B * h * w, 3)
        picture: Tensor = colours.unflatten(0, (len(latents), *latents.shape[2:])).movedim(-1, 1)  # (B, 3, h, w)
        return picture.clamp(-1, 1)

    def images(self, latents: Tensor) -> list[Image.Image]:
        """See `Preview`."""
        size = (latents.shape[3] * self.factor, latents.shape[2] * self.factor)
        return [one.resize(size, Image.Resampling.BILINEAR) for one in _pictures(self.pixel_values(latents))]


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedPreview:
    """Pictures by a small decoder of the base's latents."""

    decoder: AutoencoderTiny
    deviation: float  # as `LatentPreview.deviation`

    @classmethod
    def load(cls, model: str, base: Base, deviation: float) -> DecodedPreview:
        """Load an AutoencoderTiny from a folder or the hub. Raises UsageError if it cannot be loaded or does not fit the base."""
        with load_refusals("preview decoder", model):
            decoder = AutoencoderTiny.from_pretrained(model, dtype=base.dtype)
        factor, channels = 2 ** (len(decoder.config.decoder_block_out_channels) - 1), decoder.config.latent_channels
        if (factor, channels) != (base.vae_scale_factor, base.latent_channels):
            raise UsageError(
                f"the preview decoder {model} reads latents of {channels} channels at 1/{factor} of the pixels' size; those of "
                f"{base.identity} have {base.latent_channels} channels at 1/{base.vae_scale_factor}"
            )
        return cls(decoder=decoder.to(base.device).requires_grad_(False).eval(), deviation=deviation)

    @torch.no_grad()
    def images(self, latents: Tensor) -> list[Image.Image]:
        """See `Preview`."""
        decoder = self.decoder
        latents = _scaled_down(latents.float(), self.deviation) / decoder.config.scaling_factor
        decoded = decoder.decode(latents.to(decoder.device, decoder.dtype), return_dict=False)[0]  # (B, 3, H, W)
        return _pictures(decoded.clamp(-1, 1).float().cpu())


def _scaled_down(latents: Tensor, deviation: float) -> Tensor:
    """Latents (B, c, h, w), each picture's of at most this standard deviation."""
    own = latents.flatten(1).std(1).clamp(min=deviation)  # (B,)
    return latents * (deviation / own)[:, None, None, None]


def _pictures(pixel_values: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] as pictures."""
    bytes_ = ((pixel_values + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(one.movedim(0, -1).numpy()) for one in bytes_]


def _with_constant(latents: Tensor) -> Tensor:
    """(B, c, h, w) -> (B * h * w, c + 1), the last column 1."""
    cells = latents.movedim(1, -1).flatten(0, 2)
    return torch.cat([cells, torch.ones(len(cells), 1)], 1)


def _smooth_pictures(side: int, generator: torch.Generator) -> Tensor:
    """(PICTURES, 3, side, side) in [-1, 1]: random colours on grids, interpolated."""
    pictures = []
    for i in range(PICTURES):
        cells = GRIDS[i % len(GRIDS)]
        colours = torch.rand(1, 3, cells, cells, generator=generator) * 2 - 1
        pictures.append(functional.interpolate(colours, (side, side), mode="bilinear"))
    return torch.cat(pictures)
