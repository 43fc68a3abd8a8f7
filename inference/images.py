"""Pictures in and out of requests, as base64. Untrusted data are limited in size before they are decoded.

Only the bytes in the request are read: nothing here opens a path or a URL.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from realcustom.inference.errors import NotAnImage, TooLarge

FORMATS = ("PNG", "JPEG", "WEBP")
OutputFormat = Literal["png", "webp", "jpeg"]

# errors of Pillow's readers on corrupted bytes, by format and place of the damage
_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Bounds of one picture of a request."""

    max_bytes: int  # encoded
    max_pixels: int  # width x height, decoded


@dataclass(frozen=True, kw_only=True)
class EncodedPicture:
    """A picture of a request of which the header alone was read."""

    data: bytes
    width: int  # as the file says, before it is turned upright
    height: int
    limits: ImageLimits
    param: str

    @property
    def pixels(self) -> int:
        """Width x height."""
        return self.width * self.height

    def decode(self) -> Image.Image:
        """The picture, fully decoded, upright, in its own colour mode (alpha is kept). Raises NotAnImage, TooLarge."""
        with _reported(self.limits, self.param):
            with _opened(self.data) as image:
                image.verify()  # checks the checksums, which decoding ignores; the file cannot be used afterwards
            with _opened(self.data) as image:
                image.load()
                return ImageOps.exif_transpose(image)


def read_picture(text: str, limits: ImageLimits, param: str) -> EncodedPicture:
    """The picture in `text`, not decoded yet.

    Args:
        text: base64 of a PNG, JPEG or WebP, with or without a `data:image/...;base64,` prefix.
        limits: checked on the encoded length and on the header's size.
        param: the request's field, for messages.
    Raises:
        NotAnImage: no base64, a URL, another format, or damaged.
        TooLarge: over a limit.
    """
    data = _decode_base64(text, limits, param)
    with _reported(limits, param), _opened(data) as image:
        width, height = image.size
    if width * height > limits.max_pixels:
        raise TooLarge(f"{param}: {width} x {height} is over {limits.max_pixels} pixels; send a smaller one", param)
    return EncodedPicture(data=data, width=width, height=height, limits=limits, param=param)


def _opened(data: bytes) -> Image.Image:
    """Reads the header only."""
    return Image.open(io.BytesIO(data), formats=FORMATS)


@contextlib.contextmanager
def _reported(limits: ImageLimits, param: str) -> Iterator[None]:
    """Raises NotAnImage or TooLarge for what Pillow raises."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"{param}: the picture is over {limits.max_pixels} pixels; send a smaller one", param) from error
    except UnidentifiedImageError as error:
        raise NotAnImage(f"{param}: not a {_names()} picture", param) from error
    except _READ_ERRORS as error:
        raise NotAnImage(f"{param}: the picture is damaged ({error})", param) from error


def encode_picture(image: Image.Image, output_format: OutputFormat = "png", quality: int = 100) -> str:
    """Base64 of `image`; `quality`, 0 to 100, is that of webp and jpeg."""
    buffer = io.BytesIO()
    options = {} if output_format == "png" else {"quality": quality}
    image.save(buffer, format=output_format.upper(), **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def encode_mask(mask: np.ndarray) -> str:
    """Base64 of an 8-bit grey PNG of `mask`, (h, w) in [0, 1]: 0 = black, 1 = white."""
    grey = np.rint(np.clip(mask, 0.0, 1.0) * 255.0).astype(np.uint8)  # (h, w)
    return encode_picture(Image.fromarray(grey))


def _decode_base64(text: str, limits: ImageLimits, param: str) -> bytes:
    head = text[:64].lstrip().lower()
    if "://" in head:
        raise NotAnImage(f"{param}: URLs are not fetched; send the picture itself as base64", param)
    if head.startswith("data:"):
        prefix, comma, text = text.partition(",")
        if not comma or not prefix.rstrip().lower().endswith(";base64"):
            raise NotAnImage(f"{param}: a data: prefix must end in ';base64,'", param)
    if len(text) // 4 * 3 > limits.max_bytes + 3:  # line breaks count: a picture near the limit should have none
        raise TooLarge(f"{param}: over {limits.max_bytes} bytes; send a smaller picture", param)
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise NotAnImage(f"{param}: not base64 of a {_names()} picture", param) from error
    if len(data) > limits.max_bytes:
        raise TooLarge(f"{param}: {len(data)} bytes are over {limits.max_bytes}; send a smaller picture", param)
    if not data:
        raise NotAnImage(f"{param}: empty; send a {_names()} picture as base64", param)
    return data


def _names() -> str:
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
