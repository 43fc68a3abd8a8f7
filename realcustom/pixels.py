"""From a picture to the pixels that the VAE encodes: one function for caches and for training.

A picture is scaled until it covers a size, and cut to it: in the middle, or as near to it as shows the subject.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image

from realcustom.buckets import Size


def subject_crop(picture: Image.Image, mask: np.ndarray | None, target: Size) -> torch.Tensor:
    """Pixel values in -1..1, (3, h, w), of the part of a picture that shows the subject.

    Args:
        picture: RGB, upright.
        mask: where the subject is, bool (H, W) of the picture; None: anywhere.
        target: (w, h).
    """
    (width, height), (left, top) = crop_place(picture.size, mask, target)
    scaled = picture.resize((width, height), Image.Resampling.LANCZOS) if picture.size != (width, height) else picture
    cut = scaled.crop((left, top, left + target[0], top + target[1]))
    values = torch.from_numpy(np.array(cut, dtype=np.float32))  # (h, w, 3), 0..255
    return (values / 127.5 - 1).permute(2, 0, 1).contiguous()


def crop_place(size: Size, mask: np.ndarray | None, target: Size) -> tuple[Size, tuple[int, int]]:
    """Width and height of the scaled picture, and left and top of `subject_crop` in it.

    Args:
        size: (width, height) of the picture.
        mask: bool (height, width); None: the middle.
        target: (w, h) of the crop.
    """
    scale = _scale(size, target)
    scaled = max(target[0], round(size[0] * scale)), max(target[1], round(size[1] * scale))
    shown: list[tuple[int, int] | None] = [None, None]
    if mask is not None and mask.any():
        shown = [_extent(np.asarray(mask.any(axis))) for axis in (0, 1)]
    left, top = (_start(length, side, span, scale) for length, side, span in zip(scaled, target, shown, strict=True))
    return scaled, (left, top)


def cut_share(mask: np.ndarray, target: Size) -> float:
    """The share of a mask's pixels, bool (H, W), that `subject_crop` leaves out. Raises ZeroDivisionError if it has none."""
    size = (mask.shape[1], mask.shape[0])
    scale = _scale(size, target)
    left, top = (round(start / scale) for start in crop_place(size, mask, target)[1])
    width, height = (round(side / scale) for side in target)
    inside = mask[top : top + height, left : left + width].sum()
    return 1 - int(inside) / int(mask.sum())


def _scale(size: Size, target: Size) -> float:
    return max(target[0] / size[0], target[1] / size[1])


def _extent(line: np.ndarray) -> tuple[int, int]:
    marked = np.flatnonzero(line)
    return int(marked[0]), int(marked[-1]) + 1


def _start(length: int, side: int, span: tuple[int, int] | None, scale: float) -> int:
    """Where a crop of `side` begins along a side: in the middle, or next to it so that the span is in the crop."""
    middle = (length - side) // 2
    if span is None or length == side:
        return middle
    low, high = math.floor(span[0] * scale), math.ceil(span[1] * scale)
    if high - low > side:  # it cannot all be in it: the same is left out on both sides
        wanted = (low + high - side) // 2
    else:
        wanted = min(max(middle, high - side), low)
    return max(0, min(wanted, length - side))
