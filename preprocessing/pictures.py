"""Decoding of untrusted bytes to an upright RGB picture, within limits; and measures of pictures."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from realcustom.colour import has_broken_profile
from realcustom.preprocessing.errors import DataError, DataFault
from realcustom.preprocessing.scans import Stream, lacks_scans, load_scans
from realcustom.reference import on_white

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # the decoders that are used on untrusted bytes
EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp")
# Extensions of picture formats that none of these decoders reads: such pictures are counted and quarantined.
UNDECODED_EXTENSIONS = (
    *("avif", "heic", "heif", "hif", "ico", "j2k", "jp2", "jxl", "pcx", "ppm", "psd", "svg", "tga", "tif", "tiff"),
    *("arw", "cr2", "cr3", "dng", "nef", "orf", "raf", "rw2"),  # cameras' raw formats
)

# First bytes of what is decoded, besides WEBP and BMP.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
# First bytes of formats that are not decoded; those of ISO media files stand from byte 4 on.
_UNDECODED_MAGIC = (b"II*\0", b"MM\0*", b"8BPS", b"\0\0\x01\0", b"\xff\x0a", b"\0\0\0\x0cJXL ", b"\0\0\0\x0cjP  ")
_ISO_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")
FIRST_BYTES = 32  # that `looks_like_picture` needs
_LONG_TEXT = 2**16  # bytes of a text chunk of a PNG that is skipped: Pillow takes a long one for an attack
_LONG_PROFILE = 2**20  # and of a colour profile, unpacked

# What Pillow's decoders raise on broken bytes.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def decode(data: bytes, max_pixels: int | None = None, draft_side: int | None = None) -> Image.Image:
    """Decode fully, turn upright (EXIF), and bring to sRGB: grey, palette, CMYK and 16 bit converted, alpha on white.

    An ICC profile is applied; a broken one is not.

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
    found = examine(data, max_pixels, draft_side)
    return found.picture, found.size


@dataclass(frozen=True, kw_only=True)
class Examined:
    """A decoded picture, and what is to be said of its file."""

    picture: Image.Image
    size: tuple[int, int]  # full width and height, upright
    # broken_profile: its colour profile is none, and was not applied; damaged_scan: see scans.py
    notes: tuple[str, ...]


def examine(data: bytes, max_pixels: int | None = None, draft_side: int | None = None) -> Examined:
    """`decode`, with the full size, and with notes of what is wrong with a picture that decodes."""
    kept, lost_profile = without_refused_chunks(data)
    stream = Stream(kept)
    with _opened(stream, max_pixels) as image:
        width, height = image.size
        if draft_side is not None:
            image.draft("RGB", (draft_side, draft_side))
        scans = load_scans(image, data)
        image.load()  # unless that did
        if lacks_scans(data):
            raise DataError(DataFault.TRUNCATED_IMAGE, "the file ends before its last scans")
        if scans is not None and scans.is_short:
            raise DataError(DataFault.TRUNCATED_IMAGE, "a scan ends before its last pixel")
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        is_damaged = stream.is_damaged or (scans is not None and scans.is_long)
        found = {"broken_profile": lost_profile or has_broken_profile(image), "damaged_scan": is_damaged}
        return Examined(
            picture=_upright_rgb(image),
            size=(height, width) if turned else (width, height),
            notes=tuple(name for name, holds in found.items() if holds),
        )


def looks_like_picture(first: bytes) -> bool:
    """Whether a file with these `FIRST_BYTES` is a picture, of a format that is decoded here or of another."""
    return (
        is_decoded(first)
        or first.startswith(_UNDECODED_MAGIC)
        or (first[4:8] == b"ftyp" and first[8:12] in _ISO_BRANDS)
    )


def is_decoded(first: bytes) -> bool:
    """Whether a file with these `FIRST_BYTES` is of one of `FORMATS`."""
    webp = first[:4] == b"RIFF" and first[8:12] == b"WEBP"
    bmp = first[:2] == b"BM" and first[15:18] == b"\0\0\0"  # the length of the second header, below 256
    return first.startswith(_MAGIC) or webp or bmp


def without_refused_chunks(data: bytes) -> tuple[bytes, bool]:
    """The bytes without those chunks of a PNG for which Pillow refuses the picture, long texts and colour profiles that are long or
    packed in no known way, other bytes unchanged; and whether a profile was among them."""
    if not data.startswith(_MAGIC[1]):
        return data, False
    position, kept, dropped = 8, [data[:8]], set[bytes]()
    while position + 8 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        end = position + 12 + length
        if _is_refused(kind, data[position + 8 : end - 4]):
            dropped.add(kind)
        else:
            kept.append(data[position:end])
        position = end
    return b"".join(kept) if dropped else data, b"iCCP" in dropped


def _is_refused(kind: bytes, content: bytes) -> bool:
    if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
        return False
    packed = content.partition(b"\0")[2]  # after the keyword
    if kind == b"iCCP":
        return packed[:1] != b"\0" or _inflates_above(_LONG_PROFILE, packed[1:])
    if len(content) > _LONG_TEXT:
        return True
    if kind == b"iTXt" and packed[:1] == b"\1":
        packed = b"\0" + packed[2:].partition(b"\0")[2].partition(b"\0")[2]  # after language and translation
    elif kind != b"zTXt":
        return False
    return _inflates_above(_LONG_TEXT, packed[1:])


def _inflates_above(limit: int, packed: bytes) -> bool:
    try:
        return len(zlib.decompressobj().decompress(packed, limit + 1)) > limit
    except zlib.error:
        return True  # Pillow need not look at it


def decode_small(data: bytes, longest_side: int) -> Image.Image:
    """`decode`, and scaled down to at most `longest_side` pixels: of many pictures only one is held at its full size."""
    image = decode(data, draft_side=longest_side)
    image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    return image


def _upright_rgb(image: Image.Image) -> Image.Image:
    """The picture turned by its EXIF orientation and as sRGB; not copied where it is so already, as most are."""
    ImageOps.exif_transpose(image, in_place=True)
    plain = image.mode == "RGB" and "transparency" not in image.info and "icc_profile" not in image.info
    return image if plain else on_white(image)


@contextmanager
def _opened(stream: Stream, max_pixels: int | None) -> Iterator[ImageFile.ImageFile]:
    """A context with the opened picture; errors of the decoders become a DataError."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "a truncated picture must never pass"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of invalid EXIF and of sizes that max_pixels limits
            with Image.open(stream, formats=FORMATS) as image:
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
    # of cut-outs of photographs, level 2 makes as many bytes as zlib's usual 6 in a third of its time
    # (docs/preprocessing/measurements.md)
    image.save(buffer, "PNG", compress_level=2)
    return buffer.getvalue()
