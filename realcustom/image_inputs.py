"""The pictures that a call starts from or is guided by, as diffusers' pipelines take them.

Letters: P prompts, B rows, C channels, H W sides in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps
from torch import Tensor

from realcustom.arrays import to_pixels
from realcustom.base import Base
from realcustom.errors import UsageError
from realcustom.sampling import SamplingParams, is_number

Picture: TypeAlias = Image.Image | np.ndarray | Tensor  # as `arrays.to_picture` takes it
Pictures: TypeAlias = Picture | Sequence[Picture]  # one for all prompts, or one for each; also a batch in one array
# with several models one for each, or a list of one for each model for each prompt
ModelPictures: TypeAlias = Pictures | Sequence[Sequence[Picture]]
Shares: TypeAlias = float | Sequence[float]  # one for all models, or one for each


@dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """A call's pictures and how strongly they act; names, meanings and defaults are diffusers'."""

    image: Pictures | None = None  # what is redrawn
    mask_image: Pictures | None = None  # where, white; elsewhere `image` stays
    strength: float | None = None  # part of the schedule that is run; None = that of diffusers' pipeline
    control_image: ModelPictures | None = None  # what the ControlNets see
    controlnet_conditioning_scale: Shares = 1.0  # their weight
    control_guidance_start: Shares = 0.0  # shares of the steps between which they act
    control_guidance_end: Shares = 1.0
    guess_mode: bool = False  # they guide the rows with the prompt alone
    adapter_image: ModelPictures | None = None  # what the T2I-adapters see
    adapter_conditioning_scale: Shares = 1.0  # their weight

    def check(self, base: Base) -> None:
        """Raise UsageError where an argument lacks the one that it belongs to, or is out of range."""
        if self.image is None:
            for name in ("mask_image", "strength"):
                if getattr(self, name) is not None:
                    raise UsageError(f"{name} says how image is redrawn: give image as well")
        if base.takes_mask and (self.image is None or self.mask_image is None):
            raise UsageError(
                f"{base.identity} is an inpainting model: give image and mask_image, the picture and what of it is drawn anew"
            )
        if not isinstance(self.guess_mode, bool):
            raise UsageError(f"guess_mode is true or false, got {self.guess_mode!r}")
        if self.strength is not None and not (is_number(self.strength) and 0 <= self.strength <= 1):
            raise UsageError(f"strength is the part of the steps that are run, 0 to 1, got {self.strength!r}")

    def strength_on(self, base: Base) -> float:
        """The strength; None is what diffusers' pipeline for such a base and such pictures has."""
        if self.strength is not None:
            return self.strength
        if self.mask_image is not None:
            return 0.9999 if base.is_sdxl else 1.0
        return 0.3 if base.is_sdxl else 0.8

    def sized(self, base: Base, sampling: SamplingParams) -> SamplingParams:
        """With the size of the first picture where no size is given, as in diffusers; inpainting has the base's own."""
        given = [value for value in (self.image, self.control_image, self.adapter_image) if value is not None]
        if not given or self.mask_image is not None:
            return sampling
        height, width = _size(given[0])
        factor = base.vae_scale_factor
        return replace(
            sampling,
            height=sampling.height or height - height % factor,
            width=sampling.width or width - width % factor,
        )


def read_pictures(
    value: Any,
    name: str,
    prompts: int,
    size: tuple[int, int],
    *,
    channels: int = 3,
    signed: bool = False,
    binary: bool = False,
) -> Tensor:
    """Pictures as pixels (1 or P, C, H, W), resized as diffusers' image processor does.

    Args:
        prompts: P.
        size: (H, W).
        channels: 3, or 1 for grey.
        signed: in [-1, 1] in the place of [0, 1].
        binary: 0 below one half, else 1.
    Raises:
        UsageError: a value is no picture, or their number is neither 1 nor P.
    """
    found = [_upright(to_pixels(_marked(one) if binary else one, channels, name)) for one in _listed(value)]
    if len(found) not in (1, prompts):
        raise UsageError(f"{name} has {len(found)} pictures for {prompts} prompts; give one, or one for each")
    processor = VaeImageProcessor(
        vae_scale_factor=1,  # of the size, which is the latents' already
        do_normalize=signed,
        do_binarize=binary,
        do_convert_rgb=channels == 3,
        do_convert_grayscale=channels == 1,
    )
    height, width = size
    pixels = [processor.preprocess(one, height=height, width=width) for one in found]
    return (
        pixels[0] if len(pixels) == 1 else torch.cat(pixels)
    ).float()  # one keeps its memory layout, as in diffusers


def each_row(tensor: Tensor, rows: int) -> Tensor:
    """(1 or P, ...) as (B, ...) of the same memory layout: each prompt's rows are beside each other."""
    if len(tensor) == rows:
        return tensor
    return torch.cat([one for one in tensor.split(1) for _ in range(rows // len(tensor))])


def _listed(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [one for each in value for one in _listed(each)]
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim == 4:
        return list(value)
    return [value]


def _marked(mask: Any) -> Any:
    """A mask of the integers 0 and 1 as booleans: as pixels of 8 bits its ones would be black."""
    if isinstance(mask, torch.Tensor):
        whole = not mask.is_floating_point() and mask.dtype is not torch.bool
        return mask > 0 if whole and mask.numel() and int(mask.max()) <= 1 else mask
    array = np.asarray(mask) if isinstance(mask, (Image.Image, np.ndarray)) else np.zeros(0)
    return array > 0 if array.dtype.kind in "iu" and array.size and array.max() <= 1 else mask


def _upright(picture: Image.Image | np.ndarray) -> Image.Image | np.ndarray:
    return ImageOps.exif_transpose(picture) if isinstance(picture, Image.Image) else picture[None]


def _size(value: Any) -> tuple[int, int]:
    """(H, W) of the first picture."""
    found = _listed(value)
    if not found:
        raise UsageError("image has no picture: it is an empty list")
    pixels = _upright(to_pixels(found[0], 3, "image"))
    return (pixels.height, pixels.width) if isinstance(pixels, Image.Image) else (pixels.shape[1], pixels.shape[2])
