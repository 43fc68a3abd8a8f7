"""The result of a call, and the pictures in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from torch import Tensor

from realcustom.base import Base, decode_latents

Images = list[Image.Image] | np.ndarray | Tensor


@dataclass
class RealCustomOutput(BaseOutput):  # type: ignore[misc]  # diffusers is not typed
    """The result of a call; its values also by name or number, `output["images"]` and `output[0]`, as diffusers' outputs."""

    images: Images  # as `output_type` says; (B, H, W, 3) in [0, 1], or latents
    masks: list[tuple[Tensor, ...]] | None  # per step, per subject, (B, 1, H*, W*) in [0, 1]
    words: list[list[str]]  # per image, each subject's word as found in the prompt


def to_images(base: Base, latents: Tensor, output_type: str) -> Images:
    """Latents (B, c, h, w) as "pil", "np", "pt" or "latent"."""
    if output_type == "latent":
        return latents
    pixels = (decode_latents(base, latents).float() + 1) / 2  # (B, 3, H, W) in [0, 1]
    if output_type == "pt":
        return pixels
    array = pixels.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return array
    return [Image.fromarray(image) for image in (array * 255).round().astype(np.uint8)]
