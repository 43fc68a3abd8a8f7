"""Appearance: silhouettes of the nouns, patterns on subjects, textures of the backgrounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import ImageDraw

Silhouette = Callable[[ImageDraw.ImageDraw, int, float], None]  # draws white on black, in a square of `side` pixels
Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]  # x, y in [0, 1] -> bool: where the second colour is
Background = Callable[[np.random.Generator, int], np.ndarray]  # rng, side -> (side, side, 3), 0 to 255


def _polygon(*points: tuple[float, float]) -> Silhouette:
    """A polygon given in the unit square; `proportion` narrows it about its middle."""

    def draw(canvas: ImageDraw.ImageDraw, side: int, proportion: float) -> None:
        canvas.polygon([((0.5 + (x - 0.5) * proportion) * side, y * side) for x, y in points], fill=255)

    return draw


def _ellipse(canvas: ImageDraw.ImageDraw, side: int, box: tuple[float, ...], proportion: float, fill: int) -> None:
    x0, y0, x1, y1 = box
    left, right = (0.5 + (x - 0.5) * proportion for x in (x0, x1))
    canvas.ellipse((left * side, y0 * side, right * side, y1 * side), fill=fill)


def _star() -> Silhouette:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2, 0.29, 0.54)
    points = np.stack([0.5 + radii * np.cos(angles), 0.53 + radii * np.sin(angles)], 1)
    return _polygon(*[(float(x), float(y)) for x, y in points])


def _heart(canvas: ImageDraw.ImageDraw, side: int, proportion: float) -> None:
    _ellipse(canvas, side, (0.0, 0.06, 0.54, 0.6), proportion, 255)
    _ellipse(canvas, side, (0.46, 0.06, 1.0, 0.6), proportion, 255)
    _polygon((0.04, 0.45), (0.96, 0.45), (0.5, 0.98))(canvas, side, proportion)


def _fish(canvas: ImageDraw.ImageDraw, side: int, proportion: float) -> None:
    height = 0.31 / proportion  # a fish is long: its proportion changes its height
    canvas.ellipse((0.0, (0.5 - height) * side, 0.76 * side, (0.5 + height) * side), fill=255)
    canvas.polygon([(0.6 * side, 0.5 * side), (side, 0.16 * side), (side, 0.84 * side)], fill=255)


def _mug(canvas: ImageDraw.ImageDraw, side: int, proportion: float) -> None:
    _ellipse(canvas, side, (0.5, 0.22, 1.02, 0.78), proportion, 255)
    _ellipse(canvas, side, (0.6, 0.34, 0.9, 0.66), proportion, 0)
    _polygon((0.04, 0.06), (0.7, 0.06), (0.7, 0.96), (0.04, 0.96))(canvas, side, proportion)


def _moon(canvas: ImageDraw.ImageDraw, side: int, proportion: float) -> None:
    _ellipse(canvas, side, (0.02, 0.02, 0.98, 0.98), proportion, 255)
    _ellipse(canvas, side, (0.46, 0.06, 1.16, 0.72), proportion, 0)


def _car(canvas: ImageDraw.ImageDraw, side: int, proportion: float) -> None:
    top = 0.38 - 0.25 * (proportion - 0.8)
    canvas.rectangle((0, 0.5 * side, side, 0.78 * side), fill=255)
    canvas.polygon([(0.2 * side, 0.5 * side), (0.34 * side, (top - 0.18) * side)]
                   + [(0.7 * side, (top - 0.18) * side), (0.84 * side, 0.5 * side)], fill=255)  # fmt: skip
    for x in (0.1, 0.62):
        canvas.ellipse((x * side, 0.64 * side, (x + 0.28) * side, 0.92 * side), fill=255)


SILHOUETTES: dict[str, Silhouette] = {
    "star": _star(),
    "heart": _heart,
    "fish": _fish,
    "tree": _polygon(
        (0.5, 0.0),
        (0.86, 0.36),
        (0.68, 0.36),
        (1.0, 0.74),
        (0.62, 0.74),
        (0.62, 1.0),
        (0.38, 1.0),
        (0.38, 0.74),
        (0.0, 0.74),
        (0.32, 0.36),
        (0.14, 0.36),
    ),
    "house": _polygon((0.5, 0.0), (1.0, 0.42), (0.88, 0.42), (0.88, 1.0), (0.12, 1.0), (0.12, 0.42), (0.0, 0.42)),
    "car": _car,
    "mug": _mug,
    "moon": _moon,
}

PATTERNS: dict[str, Pattern] = {
    "stripes": lambda x, y: (y * 4) % 1 < 0.5,
    "dots": lambda x, y: ((x * 3) % 1 - 0.5) ** 2 + ((y * 3) % 1 - 0.5) ** 2 < 0.09,
    "halves": lambda x, y: y > 0.55,
}


def shrink(mask: np.ndarray, pixels: int) -> np.ndarray:
    """`mask` without a rim of this many pixels (4-neighbour erosion; outside counts as empty)."""
    for _ in range(pixels):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _flat(rng: np.random.Generator, side: int, colour: tuple[int, int, int], noise: float) -> np.ndarray:
    image = np.tile(np.array(colour, np.float32), (side, side, 1))
    return image + rng.normal(0, noise, (side, side, 1)).astype(np.float32)


def _grass(rng: np.random.Generator, side: int) -> np.ndarray:
    image = _flat(rng, side, (70, 160, 60), 6)
    blades = rng.random((side, side)) < 0.12
    image[blades | np.roll(blades, 1, 0)] = (40, 115, 40)
    return image


def _sand(rng: np.random.Generator, side: int) -> np.ndarray:
    image = _flat(rng, side, (228, 200, 140), 6)
    image[rng.random((side, side)) < 0.06] = (190, 155, 95)
    return image


def _water(rng: np.random.Generator, side: int) -> np.ndarray:
    image = _flat(rng, side, (50, 110, 200), 4)
    ys, xs = np.mgrid[0:side, 0:side]
    waves = (ys + 1.5 * np.sin(xs / 3 + rng.uniform(0, 6.3)) + rng.integers(0, 6)) % 6 < 1.2
    image[waves] = (150, 195, 240)
    return image


def _snow(rng: np.random.Generator, side: int) -> np.ndarray:
    image = _flat(rng, side, (238, 242, 248), 3)
    image[rng.random((side, side)) < 0.05] = (190, 205, 230)
    return image


def _brick(rng: np.random.Generator, side: int) -> np.ndarray:
    image = _flat(rng, side, (165, 75, 60), 5)
    ys, xs = np.mgrid[0:side, 0:side]
    dy, dx = rng.integers(0, 5), rng.integers(0, 8)
    row = (ys + dy) // 5
    image[((ys + dy) % 5 == 0) | ((xs + dx + 4 * (row % 2)) % 8 == 0)] = (215, 200, 185)
    return image


def _wood(rng: np.random.Generator, side: int) -> np.ndarray:
    image = _flat(rng, side, (150, 105, 60), 3)
    xs = (np.arange(side) + rng.integers(0, 7)) % 7
    image[:, xs == 0] = (85, 55, 30)
    image[:, xs == 3] += (14, 10, 6)
    return image


def _lava(rng: np.random.Generator, side: int) -> np.ndarray:
    image = _flat(rng, side, (60, 20, 20), 4)
    ys, xs = np.mgrid[0:side, 0:side]
    a, b = rng.uniform(0, 6.3, 2)
    cracks = np.abs(np.sin(xs / 4 + 1.3 * np.sin(ys / 3 + a)) + np.sin(ys / 5 + b)) < 0.35
    image[cracks] = (250, 120, 20)
    return image


def _asphalt(rng: np.random.Generator, side: int) -> np.ndarray:
    image = _flat(rng, side, (95, 98, 104), 9)
    ys, xs = np.mgrid[0:side, 0:side]
    line = (xs + ys + rng.integers(0, 16)) % 16 < 2
    image[line] = (205, 205, 190)
    return image


BACKGROUNDS: dict[str, Background] = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "snow": _snow,
    "brick": _brick,
    "wood": _wood,
    "lava": _lava,
    "asphalt": _asphalt,
}
