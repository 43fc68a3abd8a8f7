"""Decoding of untrusted bytes to an upright RGB picture, within limits; and measures of pictures."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from realcustom.preprocessing.errors import DataError, DataFault
from realcustom.reference import on_white

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # the decoders that are used on untrusted bytes
EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp")
# Extensions of picture formats that none of these decoders reads: such pictures are counted and quarantined.
UNDECODED_EXTENSIONS = (
    *("avif", "heic", "heif", "hif", "ico", "j2k", "jp2", "jxl", "pcx", "ppm", "psd", "svg", "tga", "tif", "tiff"),
    *("arw", "cr2", "cr3", "dng", "nef", "orf", "raf", "rw2"),  # cameras' raw formats
)

# What Pillow's decoders raise on broken bytes.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def decode(data: bytes, max_pixels: int | None = None, draft_side: int | None = None) -> Image.Image:
    """Decode fully, turn upright (EXIF), and bring to RGB: grey, palette, CMYK and 16 bit converted, alpha on white.

    Args:
        data: encoded bytes in one of `FORMATS`; of an animation the first frame is taken.
        max_pixels: width x height above this is refused before any pixel is decoded.
        draft_side: a JPEG may be decoded at a fraction of its size, both sides at least this many pixels (faster: all
            coefficients are read, so that truncation is found, but fewer pixels are computed).
    Raises:
        DataError: the bytes are truncated, broken, of no known format, or a decompression bomb.
    """
    return decode_with_size(data, max_pixels, draft_side)[0]


def decode_with_size(
    data: bytes, max_pixels: int | None = None, draft_side: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """`decode`, and the full width and height, upright, which a draft does not have."""
    with _opened(data, max_pixels) as image:
        width, height = image.size
        if draft_side is not None:
            image.draft("RGB", (draft_side, draft_side))
        image.load()
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return _upright_rgb(image), (height, width) if turned else (width, height)


def decode_small(data: bytes, longest_side: int) -> Image.Image:
    """`decode`, and scaled down to at most `longest_side` pixels: of many pictures only one is held at its full size."""
    image = decode(data, draft_side=longest_side)
    image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    return image


def _upright_rgb(image: Image.Image) -> Image.Image:
    """The picture turned by its EXIF orientation and as RGB; not copied where it is so already, as most are."""
    ImageOps.exif_transpose(image, in_place=True)
    return image if image.mode == "RGB" and "transparency" not in image.info else on_white(image)


@contextmanager
def _opened(data: bytes, max_pixels: int | None) -> Iterator[Image.Image]:
    """A context with the opened picture; errors of the decoders become a DataError."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "a truncated picture must never pass"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of invalid EXIF and of sizes that max_pixels limits
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if max_pixels is not None and image.width * image.height > max_pixels:
                    message = f"{image.width} x {image.height} pixels, more than ingest.max_pixels={max_pixels}"
                    raise DataError(DataFault.DECOMPRESSION_BOMB, message)
                yield image
    except Image.DecompressionBombError as error:
        raise DataError(DataFault.DECOMPRESSION_BOMB, str(error)) from error
    except _DECODE_ERRORS as error:
        cut = "truncated" in str(error).lower()
        fault = DataFault.TRUNCATED_IMAGE if cut else DataFault.UNREADABLE_IMAGE
        # Pillow's "cannot identify" contains the buffer's memory address, which differs between runs
        message = "no picture of a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(fault, message) from error


def sharpness(image: Image.Image, side: int) -> float:
    """Variance of the Laplacian (4-neighbour) of the grey values 0..255, longest side scaled down to `side` pixels."""
    scale = side / max(image.size)
    grey = image.convert("L")
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        grey = grey.resize(size, Image.Resampling.BOX, reducing_gap=None)
    padded = np.pad(np.asarray(grey, dtype=np.float64), 1, mode="edge")  # (H + 2, W + 2)
    centre = padded[1:-1, 1:-1]
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * centre
    return float(laplacian.var())


def to_png(image: Image.Image) -> bytes:
    """PNG bytes, equal for equal pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
