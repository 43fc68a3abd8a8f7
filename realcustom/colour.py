"""The colours of a picture in sRGB, by the ICC profile that it carries."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # Pillow's mode of a profile's colour space
_SAME = 2  # of 255: a profile that moves no colour by more is taken for sRGB itself
_CACHED = 32  # profiles: a corpus has few, each in very many pictures


class BrokenProfile(ValueError):
    """The bytes are no ICC profile, or one of other channels than the picture's."""


def in_srgb(image: Image.Image) -> Image.Image:
    """The picture with its ICC profile applied; as it is where it has none, one that is sRGB, or a broken one.

    The result carries no profile, unless that is sRGB. Alpha is kept. `image` is not changed.
    """
    try:
        transform = _transform_of(image)
    except BrokenProfile:
        return image
    if transform is None:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colours = image if image.mode == transform.input_mode else image.convert(transform.input_mode)
    result = ImageCms.applyTransform(colours, transform)
    assert result is not None, "not in place"
    result.info.pop("icc_profile", None)  # Pillow notes the profile of the result
    if alpha is not None:
        result.putalpha(alpha)
    return result


def has_broken_profile(image: Image.Image) -> bool:
    """Whether the picture carries bytes as its ICC profile that are none."""
    try:
        _transform_of(image)
    except BrokenProfile:
        return True
    return False


def _transform_of(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """What brings the picture to sRGB; None: nothing has to. Raises BrokenProfile."""
    profile = image.info.get("icc_profile", b"")
    if profile is None:
        raise BrokenProfile("it cannot be unpacked")  # which Pillow notes so
    if not profile or image.mode in ("1", "I", "F") or image.mode.startswith("I;"):
        return None
    return _transform(bytes(profile), "L" if image.mode in ("L", "LA") else "CMYK" if image.mode == "CMYK" else "RGB")


@functools.lru_cache(maxsize=_CACHED)
def _transform(profile: bytes, channels: str) -> ImageCms.ImageCmsTransform | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        inside: Any = opened.profile  # Pillow's type says that it may be a file
        space = inside.xcolor_space.strip()
        mode = _MODES.get(space, "")
        if mode != channels and (mode, channels) != ("RGB", "L"):  # grey by a profile of colours: grey is a colour
            raise BrokenProfile(f"a profile of {mode or space} for a picture in {channels}")
        transform = ImageCms.buildTransform(opened, _srgb(), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        raise BrokenProfile(str(error)) from error
    return None if mode != "CMYK" and _is_identity(transform, mode) else transform


@functools.lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    steps = np.arange(0, 256, 51, dtype=np.uint8)  # 6 values a channel
    if mode == "L":
        colours = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
        colours = Image.fromarray(grid)
    moved = ImageCms.applyTransform(colours, transform)
    assert moved is not None, "not in place"
    difference = np.asarray(moved, dtype=int) - np.asarray(colours.convert("RGB"), dtype=int)
    return bool(np.abs(difference).max() <= _SAME)
