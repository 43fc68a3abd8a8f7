"""Pictures as `data:` URIs, so that a page is self-contained."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.pictures import decode

QUALITY = 75  # of JPEG


def data_uri(image: Image.Image | np.ndarray | bytes) -> str:
    """A picture as a `data:` URI: a PIL image, uint8 (H, W, 3), or encoded PNG or JPEG bytes."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        image = buffer.getvalue()
    kind = "jpeg" if image[:2] == b"\xff\xd8" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def thumbnail(data: bytes | None, side: int) -> str:
    """Encoded bytes as a small JPEG's `data:` URI; empty where there is no picture or it cannot be decoded."""
    picture = decoded(data, side)
    return jpeg_uri(fit(picture, side)) if picture is not None else ""


def decoded(data: bytes | None, side: int | None = None) -> Image.Image | None:
    """The picture, or None; with `side` a JPEG may be decoded at a fraction of its size, not below that."""
    try:
        return decode(data, draft_side=side) if data is not None else None
    except DataError:
        return None


def fit(picture: Image.Image, side: int) -> Image.Image:
    """Longer side at most `side`; a side of less than half of that is enlarged by an integer factor."""
    longer = max(picture.size)
    scale = side / longer if longer > side else max(1, side // longer)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)


def jpeg_uri(picture: Image.Image) -> str:
    """A picture as a JPEG's `data:` URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return data_uri(buffer.getvalue())
