"""Where the square that is trained on lies in a record's picture.

Legend: H W the picture's size, R side of the square in pixels, h w latent size.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from realcustom.pixels import square_place
from realcustom.settings import TimeIdsOrder
from realcustom.sizes import PictureSizes


def time_ids(size: tuple[int, int], mask: np.ndarray | None, resolution: int, order: TimeIdsOrder) -> list[int]:
    """SDXL's six numbers: the picture's size, the corner of the square in the scaled picture, the square's size.

    Args:
        size: (W, H).
        mask: where the subject is, bool (H, W), which the square shows; None: anywhere.
    """
    _, (left, top) = square_place(size, mask, resolution)
    target, original = (resolution, resolution), (size[1], size[0])
    sizes = PictureSizes(original_size=original, crops_coords_top_left=(top, left), target_size=target)
    return sizes.time_ids(target, order)[0]


def error_weights(mask: np.ndarray | None, resolution: int, grid: tuple[int, int], weight: float) -> torch.Tensor:
    """Weights of the error of a latent, (1, h, w): 1 outside the subject, `weight` inside, their mixture at its border.

    Args:
        mask: bool (H, W) of the whole picture; None: 1 everywhere.
        grid: (h, w).
    """
    if mask is None:
        return torch.ones(1, *grid)
    scaled, (left, top) = square_place((mask.shape[1], mask.shape[0]), mask, resolution)
    picture = Image.fromarray(mask.astype(np.float32)).resize(scaled, Image.Resampling.BOX)
    square = picture.crop((left, top, left + resolution, top + resolution))
    inside = torch.from_numpy(np.array(square.resize((grid[1], grid[0]), Image.Resampling.BOX)))  # (h, w), 0 to 1
    return (1 + (weight - 1) * inside)[None]
