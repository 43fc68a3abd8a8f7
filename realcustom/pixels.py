"""From a picture to the pixels that the VAE encodes: one function for caches and for training."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image


def centre_square(picture: Image.Image, resolution: int) -> torch.Tensor:
    """Pixel values in -1..1, (3, R, R): the shorter side scaled to `resolution`, the middle of the longer one.

    Args:
        picture: RGB, upright.
        resolution: R, pixels.
    """
    return subject_square(picture, None, resolution)


def subject_square(picture: Image.Image, mask: np.ndarray | None, resolution: int) -> torch.Tensor:
    """`centre_square`, moved along the longer side as far as it takes to show the subject.

    Args:
        mask: where the subject is, bool (H, W) of the picture; None: anywhere.
    """
    width, height = _scaled(picture.size, resolution)
    scaled = picture.resize((width, height), Image.Resampling.LANCZOS) if picture.size != (width, height) else picture
    left, top = _corner(picture.size, mask, resolution)
    square = scaled.crop((left, top, left + resolution, top + resolution))
    values = torch.from_numpy(np.array(square, dtype=np.float32))  # (R, R, 3), 0..255
    return (values / 127.5 - 1).permute(2, 0, 1).contiguous()


def square_place(
    size: tuple[int, int], mask: np.ndarray | None, resolution: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height of the scaled picture, and left and top of `subject_square` in it.

    Args:
        size: (width, height) of the picture.
    """
    return _scaled(size, resolution), _corner(size, mask, resolution)


def cut_share(mask: np.ndarray, resolution: int) -> float:
    """The share of a mask's pixels, bool (H, W), that `subject_square` leaves out. Raises ZeroDivisionError if it has none."""
    size = (mask.shape[1], mask.shape[0])
    scale = resolution / min(size)
    left, top = (round(start / scale) for start in _corner(size, mask, resolution))
    inside = mask[top : top + min(size), left : left + min(size)].sum()
    return 1 - int(inside) / int(mask.sum())


def _scaled(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    scale = resolution / min(size)
    width, height = (max(resolution, round(side * scale)) for side in size)
    return width, height


def _corner(size: tuple[int, int], mask: np.ndarray | None, resolution: int) -> tuple[int, int]:
    """Left and top of the square in the scaled picture."""
    shown: list[tuple[int, int] | None] = [None, None]
    if mask is not None and mask.any():
        shown = [_extent(np.asarray(mask.any(axis))) for axis in (0, 1)]
    scale = resolution / min(size)
    left, top = (
        _start(length, resolution, span, scale) for length, span in zip(_scaled(size, resolution), shown, strict=True)
    )
    return left, top


def _extent(line: np.ndarray) -> tuple[int, int]:
    marked = np.flatnonzero(line)
    return int(marked[0]), int(marked[-1]) + 1


def _start(length: int, resolution: int, span: tuple[int, int] | None, scale: float) -> int:
    """Where the square begins along a side: in the middle, or next to it so that the span is in the square."""
    middle = (length - resolution) // 2
    if span is None or length == resolution:
        return middle
    low, high = math.floor(span[0] * scale), math.ceil(span[1] * scale)
    if high - low > resolution:  # it cannot all be in it: the same is left out on both sides
        wanted = (low + high - resolution) // 2
    else:
        wanted = min(max(middle, high - resolution), low)
    return max(0, min(wanted, length - resolution))
