"""What a picture's file says besides its pixels: colour profiles, scans that end early, long texts."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from realcustom.colour import has_broken_profile, in_srgb
from realcustom.preprocessing.errors import DataError, DataFault
from realcustom.preprocessing.hashes import BASE_SIDE
from realcustom.preprocessing.pictures import decode, examine
from realcustom.reference import on_white
from tests.support.corpora import encoded, jpeg, picture, png
from tests.support.stages import ingest

PHOTOS = sorted((Path(__file__).parents[1] / "data/photos").glob("*.jpg"))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """sRGB's profile with the colorants of red and green exchanged; its description still says sRGB."""
    return SRGB.replace(b"rXYZ", b"-XYZ").replace(b"gXYZ", b"rXYZ").replace(b"-XYZ", b"gXYZ")


def close(one: Image.Image, other: Image.Image, tolerance: int = 3) -> bool:
    difference = np.asarray(one, dtype=int) - np.asarray(other.convert("RGB"), dtype=int)
    return bool(np.abs(difference).max() <= tolerance)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_profile_that_swaps_red_and_green_comes_out_swapped_back(mode: str) -> None:
    plain = picture(1)
    red, green, blue = plain.split()
    stored = Image.merge("RGB", (green, red, blue)).convert(mode)
    found = decode(encoded(stored, "PNG", icc_profile=swapped()))
    expected = stored.convert("RGB").split()
    assert close(found, Image.merge("RGB", (expected[1], expected[0], expected[2])))
    again = in_srgb(found)
    assert close(again, found, 0)  # what is in sRGB stays so


def test_alpha_is_kept_and_grey_by_a_profile_of_colours_stays_grey() -> None:
    image = Image.new("RGBA", (4, 4), (200, 10, 20, 0))
    assert decode(encoded(image, "PNG", icc_profile=swapped())).getpixel((0, 0)) == (255, 255, 255)
    grey = picture(2).convert("L")
    assert close(decode(encoded(grey, "JPEG", quality=100, icc_profile=SRGB)), grey)


def test_a_profile_of_srgb_changes_no_pixel() -> None:
    data = encoded(picture(3), "JPEG", icc_profile=SRGB)
    np.testing.assert_array_equal(decode(data), Image.open(io.BytesIO(data)))


def test_a_broken_profile_is_used_as_none_and_counted(tmp_path: Path) -> None:
    for name, profile in (("a", b"garbage"), ("b", SRGB[: len(SRGB) // 2]), ("c", SRGB)):
        (tmp_path / f"{name}.png").write_bytes(encoded(picture(4), "PNG", icc_profile=profile))
    (tmp_path / "d.jpg").write_bytes(encoded(picture(5).convert("CMYK"), "JPEG", icc_profile=SRGB))  # of other channels
    assert close(decode((tmp_path / "a.png").read_bytes()), picture(4), 0)
    report = ingest(tmp_path, tmp_path / "out").report
    assert report["kept"] == 4 and report["noted"]["broken_profile"] == 3
    assert report["first"]["broken_profile"] == ["a.png", "b.png", "d.jpg"]


@pytest.mark.parametrize(
    "content",
    [b"p\0\0" + zlib.compress(SRGB + b"\0" * 2**20), b"p\0\1" + zlib.compress(SRGB), b"p", b"p\0\0no zlib"],
    ids=["long", "another method", "cut", "no zlib"],
)
def test_a_profile_that_cannot_be_unpacked_is_used_as_none_and_counted(content: bytes) -> None:
    chunk = b"iCCP" + content
    data = png(picture(7))
    odd = struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    found = examine(data[:33] + odd + data[33:])
    assert close(found.picture, picture(7), 0) and found.notes == ("broken_profile",)


def test_a_jpeg_whose_profile_lacks_a_part_is_used_without_it() -> None:
    data = encoded(picture(7), "JPEG", icc_profile=SRGB)
    broken = data.replace(b"ICC_PROFILE\0\1\1", b"ICC_PROFILE\0\1\2")
    assert broken != data and examine(broken).notes == ("broken_profile",) and examine(data).notes == ()


def test_the_library_sees_the_same_colours() -> None:
    image = Image.open(io.BytesIO(encoded(picture(6), "PNG", icc_profile=swapped())))
    assert close(on_white(image), decode(encoded(picture(6), "PNG", icc_profile=swapped())), 0)
    assert "icc_profile" in image.info and not has_broken_profile(image)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 8}])
def test_a_scan_that_ends_before_its_picture_is_truncated_though_an_end_marker_follows(
    share: float, options: dict[str, object]
) -> None:
    for photo in (decode(PHOTOS[0].read_bytes()), picture(1, (300, 200))):
        data = encoded(photo, "JPEG", **options)
        cut = data[: int(len(data) * share)] + b"\xff\xd9"
        for side in (None, BASE_SIDE):
            assert examine(data, draft_side=side).notes == ()
            with pytest.raises(DataError) as caught:
                examine(cut, draft_side=side)
            assert caught.value.fault is DataFault.TRUNCATED_IMAGE


def test_pixels_of_sound_pictures_are_those_of_pillow() -> None:
    for quality in (30, 75, 95):
        for subsampling in (0, 2):
            for size in ((7, 5), (64, 64), (129, 65)):
                data = encoded(picture(quality, size), "JPEG", quality=quality, subsampling=subsampling)
                progressive = encoded(picture(quality, size), "JPEG", progressive=True, quality=quality)
                for whole in (data, progressive):
                    np.testing.assert_array_equal(decode(whole), Image.open(io.BytesIO(whole)))
                    assert examine(whole).notes == () == examine(whole + b"trailing bytes" * 9).notes
    flat = encoded(Image.new("RGB", (640, 480), "white"), "JPEG")
    assert examine(flat).notes == () and examine(encoded(picture(1).convert("L"), "JPEG")).notes == ()


def test_flipped_bits_are_found_or_counted() -> None:
    data = encoded(decode(PHOTOS[0].read_bytes()), "JPEG")
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(24):
        broken = bytearray(data)
        for place in rng.integers(len(data) // 4, len(data) - 200, 6):
            broken[place] ^= 1 << int(rng.integers(8))
        try:
            found += bool(examine(bytes(broken)).notes)
        except DataError:
            found += 1
    assert found >= 14, found  # of 24; a flip that keeps the number of bits is not seen


def scans_of(data: bytes) -> list[tuple[int, int]]:
    """Where the coded data of each scan begin and end."""
    found = []
    for start in (match.start() for match in re.finditer(rb"\xff\xda", data)):
        begin = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        end = re.compile(rb"\xff[^\x00\xd0-\xd7]").search(data, begin)
        assert end is not None
        found.append((begin, end.start()))
    return found


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 50}, {"subsampling": 0}])
def test_each_scan_of_a_progressive_picture_is_looked_at(options: dict[str, Any]) -> None:
    data = encoded(decode(PHOTOS[0].read_bytes()), "JPEG", progressive=True, **options)
    large = [(begin, end) for begin, end in scans_of(data) if end - begin > 300]
    assert len(large) >= 5
    for side in (None, BASE_SIDE):
        assert examine(data, draft_side=side).notes == ()
        for begin, end in large:
            middle = (begin + end) // 2
            with pytest.raises(DataError, match="a scan ends before its last pixel"):
                examine(data[:middle] + data[end:], draft_side=side)
            doubled = data[:end] + data[end - 100 : end] + data[end:]
            assert examine(doubled, draft_side=side).notes == ("damaged_scan",)


def test_a_png_with_long_texts_is_a_good_picture() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", "x" * 3_000_000)
    texts.add_text("workflow", "y" * 3_000_000, zip=True)
    texts.add_itxt("parameters", "z" * 3_000_000, zip=True)
    texts.add_text("short", "kept")
    data = encoded(picture(7), "PNG", pnginfo=texts)
    assert close(decode(data), picture(7), 0)
    chunk = b"zTXt" + b"k\0\0" + zlib.compress(b"\0" * 100_000_000)  # inflates to 100 MB
    bomb = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    plain = png(picture(7))
    assert close(decode(plain[:33] + bomb + plain[33:]), picture(7), 0)


def test_an_animation_of_jpegs_and_trailing_pictures_decode() -> None:
    buffer = io.BytesIO()
    picture(1, (90, 80)).save(buffer, "MPO", save_all=True, append_images=[picture(2, (90, 80))])
    assert examine(buffer.getvalue()).size == (90, 80)
    assert examine(jpeg(picture(3)) + jpeg(picture(4))).notes == ()
