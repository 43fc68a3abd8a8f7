"""Signatures: against a plain DCT, on copies and crops, on flat pictures; the colours of an inset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from realcustom.preprocessing.hashes import BASE_SIDE, COLOR_UNIT, INSETS, VIEWS, color_thumbnails, signature
from realcustom.preprocessing.pictures import decode
from realcustom.preprocessing.select.duplicates import limits_of
from realcustom.preprocessing.select.near import Limits, Signatures, near_pairs
from realcustom.preprocessing.settings import SelectSettings
from tests.support.corpora import jpeg, picture

PHOTOS = sorted((Path(__file__).parents[1] / "data/photos").glob("*.jpg"))
DEFAULT = limits_of(SelectSettings())


def arrays(*images: Image.Image) -> Signatures:
    made = [signature(image) for image in images]
    return Signatures(
        short=np.stack([np.frombuffer(one.phashes, np.uint64) for one in made]),
        long=np.stack([np.frombuffer(one.long_hashes, np.uint64).reshape(VIEWS, 4) for one in made]),
        color=np.stack([np.frombuffer(one.color, np.uint8) for one in made]),
    )


def near(a: Image.Image, b: Image.Image, limits: Limits = DEFAULT) -> bool:
    both = [len(near_pairs(arrays(x), arrays(y), limits)) == 1 for x, y in ((a, b), (b, a))]
    assert both[0] == both[1]
    return both[0]


def crop(image: Image.Image, fraction: float) -> Image.Image:
    width, height = image.size
    left, top, right, bottom = (round(x) for s in (fraction, 1 - fraction) for x in (width * s, height * s))
    return image.crop((left, top, right, bottom))


@pytest.mark.parametrize(("side", "kept", "name"), [(32, 8, "phashes"), (64, 16, "long_hashes")])
def test_hashes_agree_with_a_plain_dct(side: int, kept: int, name: str) -> None:
    def dct(values: np.ndarray) -> np.ndarray:  # DCT-II of the last axis through the FFT of the mirrored signal
        n = values.shape[-1]
        spectrum = np.fft.fft(np.concatenate([values, values[..., ::-1]], axis=-1))[..., :n]
        transformed = (spectrum * np.exp(-1j * np.pi * np.arange(n) / (2 * n))).real / 2
        scaled: np.ndarray = transformed * np.sqrt(np.where(np.arange(n) == 0, 1 / n, 2 / n))
        return scaled

    def shrunk(values: np.ndarray, inset: float) -> np.ndarray:  # means over equal parts of the first axis
        total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
        edges = len(values) * np.linspace(inset, 1 - inset, side + 1)
        at_edges = np.stack([np.interp(edges, np.arange(len(total)), column) for column in total.T], axis=1)
        return np.diff(at_edges, axis=0) / np.diff(edges)[:, None]

    image = picture(5, (BASE_SIDE, BASE_SIDE))
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    size = kept * kept // 8
    for view, inset in enumerate((0.0, *INSETS)):
        thumbnail = shrunk(shrunk(grey, inset).T, inset).T
        low = dct(dct(thumbnail).T).T[:kept, :kept].ravel()
        expected = np.packbits(low > np.median(low[1:]) + (6 if kept == 16 else 1e-6))
        found = np.frombuffer(getattr(signature(image), name), np.uint8)[view * size : (view + 1) * size]
        assert np.array_equal(found, expected), view


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_copies_of_a_photograph_are_near(path: Path) -> None:
    photo = decode(path.read_bytes())
    width, height = photo.size
    copies = {
        "compressed": decode(jpeg(photo, quality=30)),
        "half": photo.resize((width // 2, height // 2), Image.Resampling.BICUBIC),
        "double": photo.resize((width * 2, height * 2), Image.Resampling.BICUBIC),
        "darker": ImageEnhance.Brightness(photo).enhance(0.8),
        "brighter": ImageEnhance.Brightness(photo).enhance(1.2),
        "blurred": photo.filter(ImageFilter.GaussianBlur(2)),
        "cropped by 3 %": crop(photo, 0.03),
        "cropped by 5 %": crop(photo, 0.05),
        "cropped by 10 %": crop(photo, 0.1),
    }
    missed = [name for name, copy in copies.items() if not near(photo, copy)]
    assert missed == []
    assert not near(photo, crop(photo, 0.25)), "a quarter of a side is another picture"
    assert not near(photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def test_distinct_pictures_are_not_near() -> None:
    photos = [decode(path.read_bytes()) for path in PHOTOS]
    drawn = [picture(seed, (64, 64)) for seed in range(60)]
    assert len(near_pairs(arrays(*photos, *drawn), None, DEFAULT)) == 0


def test_flat_pictures_share_their_hashes_and_colour_tells_them_apart() -> None:
    flat = [Image.new("RGB", (size, size), color) for size, color in ((9, (1, 2, 3)), (50, (200, 10, 77)))]
    signatures = [signature(image) for image in flat]
    assert signatures[0].phashes == signatures[1].phashes and signatures[0].long_hashes == signatures[1].long_hashes
    assert not near(flat[0], flat[1])
    white, light, grey = (Image.new("RGB", (40, 40), (value,) * 3) for value in (255, 215, 90))
    assert near(white, light) and not near(white, grey)  # a copy may be brighter, within limits
    assert near(Image.new("RGB", (8, 8)), Image.new("RGB", (30, 30)))  # black


def test_colour_tells_a_recoloured_drawing_from_its_original() -> None:
    image = picture(1, (64, 64))
    swapped = Image.fromarray(np.asarray(image)[:, :, ::-1].copy())
    blind = Limits(radius=16, long_radius=128, color=10.0)
    assert near(image, swapped, blind) and not near(image, swapped, Limits(radius=16, long_radius=128, color=0.15))


def test_an_insets_colours_are_read_off_the_wholes() -> None:
    photo = decode(PHOTOS[0].read_bytes())
    for view, inset in enumerate((0.0, *INSETS)):
        whole, cropped = (arrays(image).color for image in (photo, crop(photo, inset)))
        difference = np.abs(color_thumbnails(whole, view) - color_thumbnails(cropped, 0))
        assert difference.max() <= 30 * COLOR_UNIT


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_a_draft_is_far_nearer_to_the_whole_than_the_limits(path: Path) -> None:
    whole, draft = arrays(decode(path.read_bytes())), arrays(decode(path.read_bytes(), draft_side=BASE_SIDE))
    assert np.bitwise_count(whole.short ^ draft.short).max() <= 4
    assert np.bitwise_count(whole.long ^ draft.long).sum(axis=-1).max() <= 12


def test_a_picture_of_one_pixel_has_a_signature() -> None:
    assert signature(Image.new("RGB", (1, 1))) == signature(Image.new("RGB", (1, 700)))
