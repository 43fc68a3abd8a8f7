"""Decoding of what corpora hold, and of what they should not; measures of a picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from realcustom.preprocessing.errors import DataError, DataFault
from realcustom.preprocessing.pictures import decode, decode_with_size, sharpness, to_png
from tests.support.corpora import encoded, jpeg, picture, png

PHOTOS = Path(__file__).parents[1] / "data/photos"


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "LA", "P", "1", "I;16"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    grey = picture(1).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = (grey if mode in ("LA", "1") else picture(1)).convert(mode)
    decoded = decode(encoded(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert decoded.mode == "RGB" and decoded.size == grey.size
    if mode in ("L", "LA", "I;16"):
        np.testing.assert_array_equal(np.asarray(decoded.convert("L")), np.asarray(grey))


def test_transparent_becomes_white() -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert decode(png(image)).getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied() -> None:
    image = picture(2, (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    data = encoded(image, "JPEG", exif=exif)
    assert decode(data).size == decode_with_size(data, draft_side=1)[1] == (20, 40)


def test_a_truncated_jpeg_never_passes() -> None:
    data = jpeg(picture(3, (64, 64)))
    for length in range(len(data) // 2, len(data) - 2, 17):
        with pytest.raises(DataError) as caught:
            decode(data[:length])
        assert caught.value.fault in (DataFault.TRUNCATED_IMAGE, DataFault.UNREADABLE_IMAGE)
    with pytest.raises(DataError) as caught:
        decode(data[: len(data) - 60])
    assert caught.value.fault is DataFault.TRUNCATED_IMAGE


@pytest.mark.parametrize("progressive", [False, True])
def test_a_draft_refuses_what_a_full_decode_refuses(progressive: bool) -> None:
    photo = next(iter(sorted(PHOTOS.glob("*.jpg"))))
    for data in (encoded(decode(photo.read_bytes()), "JPEG", progressive=progressive), png(picture(3, (64, 64)))):
        assert decode_with_size(data, draft_side=1)[1] == decode(data).size
        for length in (*range(1, len(data) - 2, len(data) // 60), len(data) - 60, len(data) - 10):
            faults: list[DataFault | None] = []
            for side in (None, 1):
                try:
                    decode(data[:length], draft_side=side)
                    faults.append(None)
                except DataError as error:
                    faults.append(error.fault)
            assert faults[0] == faults[1], length
            assert faults[0] is not None or length > len(data) - 60
    with pytest.raises(DataError, match=r"more than ingest\.max_pixels=100"):
        decode(data, max_pixels=100, draft_side=1)


def test_messages_are_the_same_in_two_runs() -> None:
    with pytest.raises(DataError) as caught:
        decode(b"no picture")
    assert caught.value.message == "no picture of a known format"


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    data = encoded(Image.new("1", (5000, 5000)), "PNG")
    with pytest.raises(DataError) as caught:
        decode(data, max_pixels=10**6)
    assert caught.value.fault is DataFault.DECOMPRESSION_BOMB


def test_a_format_outside_the_list_is_not_decoded() -> None:
    buffer = io.BytesIO()
    picture(4).save(buffer, "TIFF")
    with pytest.raises(DataError):
        decode(buffer.getvalue())


def test_sharpness_falls_with_blur_and_takes_any_size() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    blurred = noise.resize((16, 16), Image.Resampling.BOX).resize((64, 64), Image.Resampling.BICUBIC)
    assert sharpness(noise, 512) > 10 * sharpness(blurred, 512) > 0
    assert sharpness(Image.new("L", (1, 1)), 512) == 0.0


def test_png_bytes_depend_on_pixels_alone() -> None:
    assert to_png(picture(6)) == to_png(decode(to_png(picture(6))))
