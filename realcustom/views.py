"""The views of one picture that RealCustom++ encodes: the whole at low resolution, and subsampled views with its full
detail.

Letters: B pictures, H their side in pixels, R the encoder's side, f = H / R, V = 1 + f*f views.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def high_resolution(image: Image.Image, side: int) -> Tensor:
    """An RGB picture as (3, H, H) in [0, 1]; bilinear, no antialias, corners not aligned (released code).

    A picture that is not square is stretched, as in the release: `prepare_reference` makes squares.
    """
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)  # (3, h, w)
    return F.interpolate(pixels[None], size=(side, side), mode="bilinear", align_corners=False)[0]


def make_views(pixel_values: Tensor, size: int) -> Tensor:
    """The global view, then the f*f local ones (RealCustom++, framework figure; released code).

    The global view is bilinear with aligned corners. Local view f*a + b consists of the pixels (f*y + a, f*x + b): each
    shows the whole picture, and together they hold all of its pixels. The figure shows tiles; the released weights
    were trained with subsampling.

    Args:
        pixel_values: (B, 3, H, H) in [0, 1]; H is a multiple of `size`.
        size: R.
    Returns:
        (B, V, 3, R, R) uint8: an encoder's own preprocessing starts from 8 bits, rounded down as the released code does.
    """
    pixel_values = pixel_values.float()
    factor = pixel_values.shape[-1] // size
    whole = F.interpolate(pixel_values, size=(size, size), mode="bilinear", align_corners=True)  # (B, 3, R, R)
    phases = pixel_values.unflatten(3, (size, factor)).unflatten(2, (size, factor))  # (B, 3, R, f, R, f)
    local = phases.permute(0, 3, 5, 1, 2, 4).flatten(1, 2)  # (B, f*f, 3, R, R)
    return (torch.cat([whole[:, None], local], 1) * 255).to(torch.uint8)


def normalise(views: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """8-bit views (..., 3, R, R) as an encoder's image processor normalises them: float32 of the same shape."""
    centre, spread = (views.new_tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))
    return (views.float() / 255 - centre) / spread
