"""From a picture to the pixels that the VAE encodes: one function for caches and for training."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image


def centre_square(picture: Image.Image, resolution: int) -> torch.Tensor:
    """Pixel values in -1..1, (3, R, R): the shorter side scaled to `resolution`, the middle of the longer one.

    Args:
        picture: RGB, upright.
        resolution: R, pixels.
    """
    scale = resolution / min(picture.size)
    width, height = (max(resolution, round(side * scale)) for side in picture.size)
    scaled = picture.resize((width, height), Image.Resampling.LANCZOS) if picture.size != (width, height) else picture
    left, top = (width - resolution) // 2, (height - resolution) // 2
    square = scaled.crop((left, top, left + resolution, top + resolution))
    values = torch.from_numpy(np.array(square, dtype=np.float32))  # (R, R, 3), 0..255
    return (values / 127.5 - 1).permute(2, 0, 1).contiguous()
