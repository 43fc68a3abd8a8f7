"""A subject's picture and mask as users have them: what every kind becomes, and what is refused because it says two things."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from realcustom import Subject
from realcustom.arrays import to_mask, to_picture
from realcustom.errors import UsageError
from realcustom.reference import prepare_reference
from realcustom.settings import ImageEncoderSettings, Reference

NOISE = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)  # square: no fit changes it
NOISE[0, 0], NOISE[5, 5] = 0, 255
GREY = NOISE[..., 0]
UNIT = NOISE.astype(np.float32) / 255
CROP = ImageEncoderSettings(reference=Reference.CROP)


def shown(picture: Any) -> np.ndarray:
    """What the encoder is shown of it, through `Subject`."""
    (image,) = Subject(image=picture, word="dog").pictures
    return np.asarray(prepare_reference(image, None, ImageEncoderSettings()))


@pytest.mark.parametrize(
    "picture",
    [
        NOISE,
        NOISE[None],
        UNIT,
        UNIT.astype(np.float64),
        NOISE.astype(np.uint16) * 257,
        torch.from_numpy(NOISE).permute(2, 0, 1),
        torch.from_numpy(UNIT).permute(2, 0, 1),
        torch.from_numpy(UNIT).permute(2, 0, 1)[None].requires_grad_(),
        np.dstack([NOISE, np.full((6, 6), 255, np.uint8)]),
        Image.fromarray(NOISE),
        Image.fromarray(NOISE).convert("RGBA"),
        Image.fromarray(NOISE).convert("RGBX"),
        Image.fromarray(NOISE).quantize(64),
    ],
)
def test_every_kind_of_colour_picture(picture: Any) -> None:
    tolerance = 60 if isinstance(picture, Image.Image) and picture.mode == "P" else 0
    assert np.abs(shown(picture).astype(int) - NOISE).max() <= tolerance


@pytest.mark.parametrize(
    "picture",
    [
        GREY,
        GREY[..., None],
        GREY.astype(np.float32) / 255,
        torch.from_numpy(GREY)[None],
        torch.from_numpy(GREY / np.float32(255))[None, None],
        Image.fromarray(GREY),
        Image.fromarray(GREY.astype(np.uint16) * 257),
        Image.fromarray(GREY.astype(np.int32) * 257),
        Image.fromarray((GREY.astype(np.uint16) * 257).astype(">u2")),
        Image.fromarray(GREY.astype(np.float32) / 255),
    ],
)
def test_every_kind_of_grey_picture(picture: Any) -> None:
    assert (shown(picture) == GREY[..., None]).all()


def test_half_precision_is_a_picture_too() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        found = shown(torch.from_numpy(UNIT).permute(2, 0, 1).to(dtype))
        assert np.abs(found.astype(int) - NOISE).max() <= 1


def transparent(mode: str) -> Image.Image:
    """NOISE or its red channel, the left half transparent, in a mode with transparency."""
    rgba = np.dstack([np.repeat(GREY[..., None], 3, 2), np.full((6, 6), 255, np.uint8)])
    rgba[:, :3, 3] = 0
    picture = Image.fromarray(rgba)
    if mode != "PA":
        return picture.convert(mode)
    palette = picture.convert("LA")
    return Image.merge("RGBA", (*[palette.getchannel("L")] * 3, palette.getchannel("A"))).convert("PA")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La", "P", "array", "tensor"])
def test_transparency_is_white(mode: str) -> None:
    picture: Any = transparent("RGBA" if mode in ("array", "tensor", "La", "P") else mode)
    if mode == "array":
        picture = np.asarray(picture)
    elif mode == "tensor":
        picture = torch.from_numpy(np.asarray(picture) / np.float32(255)).permute(2, 0, 1)
    elif mode == "La":
        picture = picture.convert("LA").convert("La")
    elif mode == "P":
        picture = picture.quantize(64)
    found = shown(picture)
    assert (found[:, :3] == 255).all() and np.abs(found[:, 3:].astype(int) - GREY[:, 3:, None]).max() <= 60


def test_a_transparent_value_of_a_wide_png() -> None:
    wide = GREY.astype(np.uint16) * 257
    stream = io.BytesIO()
    Image.fromarray(wide).save(stream, "PNG", transparency=int(wide[0, 0]))
    found = shown(Image.open(stream))
    assert (found[0, 0] == 255).all() and (found[GREY[0, 0] != GREY] == GREY[GREY[0, 0] != GREY][:, None]).all()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (NOISE.astype(np.int32), "has type int32 and values from 0 to 255, whose scale is not said: give uint8"),
        (NOISE.astype(np.int64), "type int64"),
        (NOISE > 99, "type bool and values from False to True"),
        (torch.from_numpy(NOISE.astype(np.int32)).permute(2, 0, 1), "type int32 and values from 0 to 255"),
        (NOISE.astype(np.float32), "type float32 and values from 0 to 255: floats are 0 to 1"),
        (UNIT * 2 - 1, "type float32 and values from -1 to 1: floats are 0 to 1"),
        (torch.full((3, 4, 4), torch.nan), "values that are not finite"),
        (np.full((4, 4, 3), np.inf), "values that are not finite"),
        (Image.fromarray(GREY.astype(np.int32)), "type int32 and values from 0 to 255"),
        (Image.fromarray(GREY.astype(np.float32)), "type float32 and values from 0 to 255"),
        (NOISE.transpose(2, 0, 1), r"shape \(3, 6, 6\): numpy pictures are \(H, W, C\)"),
        (torch.from_numpy(NOISE), r"shape \(6, 6, 3\): .*torch tensors \(C, H, W\)"),
        (np.stack([NOISE, NOISE]), r"shape \(2, 6, 6, 3\)"),
        (Image.new("RGB", (0, 5)), "image is empty: 0 x 5 pixels"),
        (np.zeros((4, 0, 3), np.uint8), "image is empty: 0 x 4 pixels"),
        ([NOISE], "got a list; open it first"),
    ],
)
def test_a_picture_that_says_two_things_is_refused(picture: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Subject(image=picture, word="dog")


HALF = np.zeros((6, 6), bool)
HALF[2:5, 1:4] = True


def _white_where_it_is_opaque() -> Image.Image:
    """As programs that remove a background write a mask: the transparent pixels are white too."""
    white = Image.new("RGBA", (6, 6), "white")
    white.putalpha(Image.fromarray(HALF.astype(np.uint8) * 255))
    return white


@pytest.mark.parametrize(
    "mask",
    [
        HALF,
        HALF.astype(np.uint8),
        HALF.astype(np.int64) * 3,
        HALF.astype(np.float32) / 2,
        HALF[..., None],
        HALF[None],
        torch.from_numpy(HALF),
        torch.from_numpy(HALF)[None, None],
        torch.from_numpy(HALF).bfloat16()[None],
        Image.fromarray(HALF),
        Image.fromarray(HALF.astype(np.uint8)),
        Image.fromarray(HALF.astype(np.uint16)),
        Image.fromarray(HALF.astype(np.int32)),
        Image.fromarray(HALF.astype(np.float32) / 2),
        Image.fromarray(HALF.astype(np.uint8) * 255).convert("RGB"),
        Image.fromarray(HALF.astype(np.uint8) * 255).convert("P"),
        Image.fromarray(HALF.astype(np.uint8) * 255).convert("RGBA"),
        *(_white_where_it_is_opaque().convert(mode) for mode in ("RGBA", "RGBa", "LA")),
        _white_where_it_is_opaque().convert("LA").convert("La"),
    ],
)
def test_every_kind_of_mask(mask: Any) -> None:
    """Also through `Subject`, to the cut-out that the encoder is shown."""
    assert (to_mask(mask) == HALF).all()
    image, given = Subject(image=NOISE, word="dog", mask=mask).pictures
    found = prepare_reference(image, given, CROP)
    assert np.array_equal(np.asarray(found), np.asarray(prepare_reference(Image.fromarray(NOISE), HALF, CROP)))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((6, 6), -4.0), "values from -4 to -4: floats are 0 to 1"),
        (np.full((6, 6), np.nan), "mask has values that are not finite"),
        (HALF.astype(complex), "type complex128: a mask is bool, integers"),
        (np.stack([HALF, HALF]), r"shape \(2, 6, 6\): a mask is \(H, W\)"),
        ("mask.png", "mask is a picture .*got a str"),
    ],
)
def test_a_mask_that_says_two_things_is_refused(mask: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Subject(image=NOISE, word="dog", mask=mask)


def test_eight_bit_pictures_are_not_copied() -> None:
    picture = Image.fromarray(NOISE)
    assert to_picture(picture) is picture
