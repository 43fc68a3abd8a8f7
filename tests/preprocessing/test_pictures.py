"""Decoding of what corpora hold, and of what they should not; measures of a picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessing.errors import DataError, DataFault
from preprocessing.pictures import color_signature, decode, perceptual_hash, sharpness, to_png
from tests.preprocessing.corpora import encoded, jpeg, picture, png

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
    turned = decode(encoded(image, "JPEG", exif=exif))
    assert turned.size == (20, 40)


def test_a_truncated_jpeg_never_passes() -> None:
    data = jpeg(picture(3, (64, 64)))
    for length in range(len(data) // 2, len(data) - 2, 17):
        with pytest.raises(DataError) as caught:
            decode(data[:length])
        assert caught.value.fault in (DataFault.TRUNCATED_IMAGE, DataFault.UNREADABLE_IMAGE)
    with pytest.raises(DataError) as caught:
        decode(data[: len(data) - 60])
    assert caught.value.fault is DataFault.TRUNCATED_IMAGE


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


def test_perceptual_hash_tells_pictures_apart_and_copies_not() -> None:
    hashes = [perceptual_hash(picture(seed)) for seed in range(40)]
    between = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(between) > 8
    for path in PHOTOS.glob("*.jpg"):
        photo = decode(path.read_bytes())
        smaller = photo.resize((photo.width // 3, photo.height // 3), Image.Resampling.BICUBIC)
        for copy in (decode(jpeg(smaller, quality=50)), photo.point(lambda value: value * 0.9 + 10)):
            assert (perceptual_hash(copy) ^ perceptual_hash(photo)).bit_count() <= 4


def test_perceptual_hash_agrees_with_a_plain_dct() -> None:
    def dct(values: np.ndarray) -> np.ndarray:  # DCT-II of the last axis through the FFT of the mirrored signal
        n = values.shape[-1]
        spectrum = np.fft.fft(np.concatenate([values, values[..., ::-1]], axis=-1))[..., :n]
        transformed = (spectrum * np.exp(-1j * np.pi * np.arange(n) / (2 * n))).real / 2
        return transformed * np.sqrt(np.where(np.arange(n) == 0, 1 / n, 2 / n))

    grey = np.asarray(picture(5).convert("L").resize((32, 32), Image.Resampling.BOX), dtype=np.float64)
    low = dct(dct(grey).T).T[:8, :8].ravel()
    bits = low > np.median(low[1:])
    assert perceptual_hash(picture(5)) == int("".join(str(int(bit)) for bit in bits), 2)


def test_flat_pictures_share_a_hash_and_are_not_sharp() -> None:
    flat = [Image.new("RGB", (size, size), color) for size, color in ((9, (1, 2, 3)), (50, (200, 10, 77)))]
    assert len({perceptual_hash(image) for image in flat}) == 1
    assert [sharpness(image, 512) for image in flat] == [0.0, 0.0]
    assert len({color_signature(image, 4) for image in flat}) == 2


def test_sharpness_falls_with_blur_and_takes_any_size() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    blurred = noise.resize((16, 16), Image.Resampling.BOX).resize((64, 64), Image.Resampling.BICUBIC)
    assert sharpness(noise, 512) > 10 * sharpness(blurred, 512) > 0
    assert sharpness(Image.new("L", (1, 1)), 512) == 0.0


def test_png_bytes_depend_on_pixels_alone() -> None:
    assert to_png(picture(6)) == to_png(decode(to_png(picture(6))))
