"""The augmentation of a reference, a stand-in for another view of the subject (method.md 4.10)."""

from __future__ import annotations

from PIL import Image

from realcustom.training.draws import uniform

WHITE = (255, 255, 255)
SMALLEST = 0.5  # share of the side that is left at least
MOST_DEGREES = 15.0


def augment(reference: Image.Image, *key: object) -> Image.Image:
    """A square RGB reference, scaled to 0.5 to 1 of its side, turned by up to 15 degrees, every second one mirrored.

    What becomes free is white, as around a cut-out.

    Args:
        key: names the draw: seed, epoch, uid.
    """
    scale, turn, mirror = (uniform(*key, name) for name in ("scale", "turn", "mirror"))
    side = reference.width
    small = max(1, round(side * (SMALLEST + (1 - SMALLEST) * scale)))
    moved = Image.new("RGB", (side, side), WHITE)
    moved.paste(reference.resize((small, small), Image.Resampling.LANCZOS), ((side - small) // 2,) * 2)
    if mirror < 0.5:
        moved = moved.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    degrees = MOST_DEGREES * (2 * turn - 1)
    return moved.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=WHITE)
