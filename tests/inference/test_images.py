"""Reading a stranger's pictures."""

from __future__ import annotations

import base64
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from realcustom.inference.drawing import read_drawing
from realcustom.inference.errors import NotAnImage, RequestError, TooLarge
from realcustom.inference.images import EncodedPicture, ImageLimits, encode_mask, encode_picture, read_picture
from realcustom.inference.schema import check_request
from realcustom.inference.settings import ServeSettings

LIMITS = ImageLimits(max_bytes=50_000, max_pixels=10_000)


def _encoded(image: Image.Image, image_format: str = "PNG", exif: Image.Exif | None = None) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **({"exif": exif} if exif else {}))
    return base64.b64encode(buffer.getvalue()).decode()


def _noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_formats_and_the_data_prefix(image_format: str) -> None:
    text = _encoded(_noise(), image_format)
    plain = read_picture(text, LIMITS, "image").decode()
    prefixed = read_picture(f"data:image/any;base64,{text[:76]}\n{text[76:]}", LIMITS, "image").decode()
    assert plain.size == (40, 30) and plain.tobytes() == prefixed.tobytes()


def test_png_round_trip_keeps_every_pixel_and_alpha() -> None:
    image = _noise().convert("RGBA")
    image.putalpha(128)
    assert read_picture(encode_picture(image), LIMITS, "image").decode().tobytes() == image.tobytes()


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shot with the camera turned: to be shown turned by a quarter
    assert read_picture(_encoded(_noise(), "JPEG", exif), LIMITS, "image").decode().size == (30, 40)


def test_masks_are_8_bit_grey() -> None:
    data = base64.b64decode(encode_mask(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)))
    image = Image.open(io.BytesIO(data))
    assert image.mode == "L" and list(image.tobytes()) == [0, 128, 255]


def _cut(text: str) -> str:
    return base64.b64encode(base64.b64decode(text)[:-300]).decode()


def _flipped(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[len(data) // 2] ^= 0xFF  # inside the pixels' chunk: only its checksum tells
    return base64.b64encode(bytes(data)).decode()


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("https://example.com/cat.png", NotAnImage, "URLs are not fetched"),
        ("file:///etc/passwd", NotAnImage, "URLs are not fetched"),
        ("/etc/passwd", NotAnImage, "not base64|not a PNG"),
        ("data:image/png,abc", NotAnImage, "';base64,'"),
        ("", NotAnImage, "empty"),
        ("not base64!", NotAnImage, "not base64"),
        (base64.b64encode(b"hello world, no picture").decode(), NotAnImage, "not a PNG, JPEG or WEBP picture"),
        (_encoded(_noise(), "GIF"), NotAnImage, "not a PNG, JPEG or WEBP picture"),
        (_cut(_encoded(_noise(), "JPEG")), NotAnImage, "damaged"),
        (_cut(_encoded(_noise(), "WEBP")), NotAnImage, "damaged|not a PNG"),
        (_flipped(_encoded(_noise())), NotAnImage, "damaged"),
        (_encoded(Image.new("L", (101, 100))), TooLarge, "101 x 100"),
        ("A" * 80_000, TooLarge, "50000 bytes"),
    ],
)
def test_refused(text: str, kind: type[RequestError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        read_picture(text, LIMITS, "subjects[0].image").decode()
    assert caught.value.param == "subjects[0].image" and caught.value.message.startswith("subjects[0].image: ")


def test_decompression_bombs_are_seen_from_the_header() -> None:
    wide = bytearray(base64.b64decode(encode_picture(Image.new("1", (8, 8)))))
    wide[16:24] = (60_000).to_bytes(4, "big") * 2  # the size in the header, its checksum behind it
    wide[29:33] = zlib.crc32(bytes(wide[12:29])).to_bytes(4, "big")
    with pytest.raises(TooLarge):
        read_picture(base64.b64encode(bytes(wide)).decode(), LIMITS, "image").decode()


def test_all_pictures_of_a_request_are_counted_before_one_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EncodedPicture, "decode", None)
    subject = {"image": _encoded(_noise()), "mask": _encoded(_noise()), "word": "cat"}
    settings = ServeSettings(max_request_pixels=4 * 40 * 30 - 1)
    request = check_request({"prompt": "a cat and a cat", "subjects": [subject, subject]}, settings)
    with pytest.raises(TooLarge, match="4800 pixels in all pictures are over this server's limit of 4799"):
        read_drawing(request, settings, None)
