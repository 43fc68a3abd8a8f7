"""From encoded bytes to an upright RGB picture, with the limits that untrusted bytes need; and picture measures."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageFile, ImageOps

from preprocessing.errors import DataError, DataFault
from realcustom.reference import on_white

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # the decoders that untrusted bytes may reach
EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp")
# Names of pictures that none of these decoders reads: counted where they are found, and quarantined.
UNDECODED_EXTENSIONS = (
    *("avif", "heic", "heif", "hif", "ico", "j2k", "jp2", "jxl", "pcx", "ppm", "psd", "svg", "tga", "tif", "tiff"),
    *("arw", "cr2", "cr3", "dng", "nef", "orf", "raf", "rw2"),  # cameras' raw formats
)
HASH_SIDE = 8  # the perceptual hash has HASH_SIDE^2 bits

# What Pillow's decoders raise on broken bytes.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def decode(data: bytes, max_pixels: int | None = None, draft_side: int | None = None) -> Image.Image:
    """Decode fully, turn upright (EXIF), and bring to RGB: grey, palette, CMYK and 16 bit converted, alpha on white.

    Args:
        data: encoded bytes in one of `FORMATS`; of an animation the first frame is taken.
        max_pixels: width x height above this is refused before any pixel is decoded.
        draft_side: a JPEG may be decoded at a fraction of its size, both sides at least this many pixels (faster).
    Raises:
        DataError: the bytes are truncated, broken, of no known format, or a decompression bomb.
    """
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "a truncated picture must never pass"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and of sizes that max_pixels judges
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if max_pixels is not None and image.width * image.height > max_pixels:
                    message = f"{image.width} x {image.height} pixels, more than ingest.max_pixels={max_pixels}"
                    raise DataError(DataFault.DECOMPRESSION_BOMB, message)
                if draft_side is not None:
                    image.draft("RGB", (draft_side, draft_side))
                image.load()
                return on_white(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise DataError(DataFault.DECOMPRESSION_BOMB, str(error)) from error
    except _DECODE_ERRORS as error:
        cut = "truncated" in str(error).lower()
        fault = DataFault.TRUNCATED_IMAGE if cut else DataFault.UNREADABLE_IMAGE
        # Pillow names the memory address of our buffer in "cannot identify": not the same in two runs
        message = "no picture of a known format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
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


def _dct_rows(size: int, rows: int) -> np.ndarray:
    """The first `rows` rows of the orthonormal DCT-II matrix, (rows, size)."""
    k, n = np.arange(rows)[:, None], np.arange(size)[None, :]
    matrix = np.cos(math.pi * k * (2 * n + 1) / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


_DCT = _dct_rows(4 * HASH_SIDE, HASH_SIDE)


def perceptual_hash(image: Image.Image) -> int:
    """64-bit DCT hash (pHash, Zauner 2010): signs, about their median, of the 8 x 8 lowest frequencies of a 32 x 32
    grey thumbnail. Bit 63 is the first coefficient in row-major order. A coefficient within 1e-6 of the median counts
    as not above it, so that flat pictures give one hash whatever the rounding."""
    size = 4 * HASH_SIDE
    grey = np.asarray(image.convert("L").resize((size, size), Image.Resampling.BOX), dtype=np.float64)
    low = (_DCT @ grey @ _DCT.T).ravel()  # (64,)
    bits = low > np.median(low[1:]) + 1e-6  # the first one is the mean brightness and would shift the median
    return int("".join("1" if bit else "0" for bit in bits), 2)


def color_signature(image: Image.Image, side: int) -> bytes:
    """RGB values of a `side` x `side` thumbnail of area means, row-major."""
    return image.resize((side, side), Image.Resampling.BOX).tobytes()


def to_png(image: Image.Image) -> bytes:
    """PNG bytes, equal for equal pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
