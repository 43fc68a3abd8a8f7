"""A picture or mask as users have it - PIL of any mode, a numpy array, a torch tensor - as PIL.

What diffusers' image processors take is taken, and 8-bit arrays; values whose range can be read in two ways are refused,
never guessed. torch is not imported here: where a tensor is given, it is loaded.

Letters: H, W the sides in pixels, C channels: 1 grey, 3 RGB, 4 RGB with transparency.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import numpy as np
from PIL import Image, ImageOps

from realcustom.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Picture: TypeAlias = "Image.Image | np.ndarray | Tensor"

CHANNELS = (1, 3, 4)  # L, RGB, RGBA
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}  # PIL's modes without a conversion to others
NUMBERS = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # PIL's modes of one number a pixel that is not 8 bits


def to_picture(value: Picture, name: str = "a subject's image") -> Image.Image:
    """A picture as PIL: with 8 bits a channel, or untouched if it has them.

    Args:
        value: PIL of any mode; numpy (H, W), (H, W, C) or (1, H, W, C); torch (C, H, W) or (1, C, H, W). Arrays are uint8,
            uint16 (65535 = white) or floats from 0 to 1.
        name: what it is, for messages.
    Raises:
        UsageError: it is none of these, has no pixels, or values that are not finite or of another type or range.
    """
    if isinstance(value, Image.Image):
        _check_pixels(name, value.size)
        if value.mode in PREMULTIPLIED:
            return value.convert(PREMULTIPLIED[value.mode])
        return value if value.mode not in NUMBERS else _from_numbers(ImageOps.exif_transpose(value), name)
    pixels = _eight_bits(_rows_of(value, name), name)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def to_pixels(value: Picture, channels: int, name: str) -> Image.Image | np.ndarray:
    """A picture with the precision that it has: floats as (H, W, C) in [0, 1] if they have so many channels, else PIL.

    Args:
        value: as in `to_picture`; also booleans.
        channels: C that the reader takes.
        name: what it is, for messages.
    Raises:
        UsageError: as `to_picture`.
    """
    if isinstance(value, Image.Image):
        return to_picture(value, name)
    array = _rows_of(value, name)
    if array.dtype.kind == "b":
        array = array.astype(np.float32)
    if array.dtype.kind != "f" or array.shape[2] != channels:
        return to_picture(array, name)
    _check_unit(array, name)
    return array.astype(np.float32)


def to_mask(value: Picture, name: str = "a subject's mask") -> np.ndarray:
    """A mask as bool (H, W): where it is not zero; of a colour picture, where it is neither black nor transparent.

    Args:
        value: PIL; numpy (H, W), (H, W, 1) or (1, H, W); torch (H, W), (1, H, W) or (1, 1, H, W). Booleans, integers, or
            floats from 0 to 1.
    Raises:
        UsageError: it is none of these, or has floats of another range.
    """
    if isinstance(value, Image.Image):
        value = value.convert(PREMULTIPLIED[value.mode]) if value.mode in PREMULTIPLIED else value
        array = np.asarray(value if value.mode in (*NUMBERS, "1", "L") else value.convert("L"))
        if value.has_transparency_data and value.mode not in NUMBERS:  # the colour of a transparent pixel means nothing
            array = array * (np.asarray(value.convert("RGBA").getchannel("A")) > 0)
    elif isinstance(value, np.ndarray) or _is_tensor(value):
        array = _numpy(value)
        while array.ndim > 2 and array.shape[0] == 1:
            array = array[0]
        array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
        if array.ndim != 2:
            raise UsageError(f"{name} has shape {tuple(value.shape)}: a mask is (H, W), one number a pixel")
    else:
        raise _other_kind(name, value)
    if array.dtype.kind == "f" and array.size:
        _check_unit(array, name)
    elif array.dtype.kind not in "biuf":
        raise UsageError(f"{name} has type {array.dtype}: a mask is bool, integers, or floats from 0 to 1")
    found: np.ndarray = array != 0
    return found


def _is_tensor(value: object) -> TypeGuard[Tensor]:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _numpy(value: np.ndarray | Tensor) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value  # numpy has no bfloat16
        return np.asarray(value.numpy())
    return value


def _rows_of(value: np.ndarray | Tensor, name: str) -> np.ndarray:
    """One picture's array (H, W, C)."""
    if not isinstance(value, np.ndarray) and not _is_tensor(value):
        raise _other_kind(name, value)
    array = _numpy(value)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    array = array.transpose(1, 2, 0) if _is_tensor(value) and array.ndim == 3 else array
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in CHANNELS:
        raise UsageError(
            f"{name} has shape {tuple(value.shape)}: numpy pictures are (H, W, C), torch tensors (C, H, W), with "
            "1, 3 or 4 channels"
        )
    _check_pixels(name, (array.shape[1], array.shape[0]))
    return array


def _eight_bits(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        return (array >> 8).astype(np.uint8)
    if array.dtype.kind == "f":
        _check_unit(array, name)
        return (array * 255).round().astype(np.uint8)
    raise UsageError(
        f"{name} has type {array.dtype} and values from {array.min()} to {array.max()}, whose scale is not said: "
        "give uint8 (0 to 255), uint16 (0 to 65535) or floats from 0 to 1"
    )


def _check_unit(array: np.ndarray, name: str) -> None:
    if not np.isfinite(array).all():
        raise UsageError(f"{name} has values that are not finite (NaN or infinite), of type {array.dtype}")
    low, high = array.min(), array.max()
    if low < 0 or high > 1:
        raise UsageError(f"{name} has type {array.dtype} and values from {low:g} to {high:g}: floats are 0 to 1")


def _check_pixels(name: str, size: tuple[int, int]) -> None:
    if not all(size):
        raise UsageError(f"{name} is empty: {size[0]} x {size[1]} pixels")


def _from_numbers(image: Image.Image, name: str) -> Image.Image:
    """PIL's pictures of wide numbers as 8-bit grey; Pillow's own conversion clips instead of scaling."""
    array = np.asarray(image)
    sixteen = image.mode == "I" and 255 < array.max() <= 65535 and array.min() >= 0  # nothing else has such values
    grey = Image.fromarray(_eight_bits(array.astype(np.uint16) if sixteen else array, name))
    if "transparency" not in image.info:
        return grey
    opaque = np.where(array == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(opaque)))


def _other_kind(name: str, value: object) -> UsageError:
    return UsageError(f"{name} is a picture (PIL, numpy or torch), got a {type(value).__name__}; open it first")
