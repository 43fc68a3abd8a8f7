"""Where what is trained on lies in a record's picture.

Legend: H W the picture's size, h w latent size.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from realcustom.buckets import Size
from realcustom.pixels import crop_place
from realcustom.settings import TimeIdsOrder
from realcustom.sizes import PictureSizes


def time_ids(size: Size, mask: np.ndarray | None, crop: Size, order: TimeIdsOrder) -> list[int]:
    """SDXL's six numbers: the picture's size, the crop's corner in the scaled picture, the crop's size.

    Args:
        size: (W, H).
        mask: where the subject is, bool (H, W), which the crop shows; None: anywhere.
        crop: its width and height in pixels.
    """
    _, (left, top) = crop_place(size, mask, crop)
    target, original = (crop[1], crop[0]), (size[1], size[0])
    sizes = PictureSizes(original_size=original, crops_coords_top_left=(top, left), target_size=target)
    return sizes.time_ids(target, order)[0]


def error_weights(mask: np.ndarray | None, crop: Size, grid: tuple[int, int], weight: float) -> torch.Tensor:
    """Weights of the error of a latent, (1, h, w): 1 outside the subject, `weight` inside, their mixture at its border.

    Args:
        mask: bool (H, W) of the whole picture; None: 1 everywhere.
        crop: width and height in pixels of what the latent is of.
        grid: (h, w).
    """
    if mask is None:
        return torch.ones(1, *grid)
    scaled, (left, top) = crop_place((mask.shape[1], mask.shape[0]), mask, crop)
    picture = Image.fromarray(mask.astype(np.float32)).resize(scaled, Image.Resampling.BOX)
    part = picture.crop((left, top, left + crop[0], top + crop[1]))
    inside = torch.from_numpy(np.array(part.resize((grid[1], grid[0]), Image.Resampling.BOX)))  # (h, w), 0 to 1
    return (1 + (weight - 1) * inside)[None]
