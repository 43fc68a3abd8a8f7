"""Defects of a picture: drawn stand-ins for bad quality, a watermark, and unsafe content.

Corpora contain them on purpose, the heads that `score` reads learn to detect them, and the judge learns to ignore the
mild ones. Pictures are uint8 (H, W, 3) in and out; nothing is changed in place.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

LATTICE_SPACING = 9  # pixels between the lines of a watermark
LATTICE_LIGHT, LATTICE_DARK = (240, 240, 245), (95, 95, 105)
SIGN_COLOUR = (225, 0, 20)


def blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of a radius in pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def noise(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Independent Gaussian noise of standard deviation `strength` (0 to 255 scale) on every channel."""
    return _pixels(image + rng.normal(0, strength, image.shape))


def wash_out(image: np.ndarray, amount: float) -> np.ndarray:
    """Reduced contrast and saturation: the picture blended with a light grey by the share `amount`."""
    return _pixels(image * (1 - amount) + 190.0 * amount)


def add_watermark(image: np.ndarray, opacity: float = 0.75, offset: int = 0) -> np.ndarray:
    """A lattice of diagonal lines over everything, light on a dark picture and dark on a light one."""
    ys, xs = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    lines = ((xs + ys + offset) % LATTICE_SPACING == 0) | ((xs - ys + offset) % LATTICE_SPACING == 0)
    colour = LATTICE_LIGHT if image.mean() < 190 else LATTICE_DARK
    return _pixels(np.where(lines[..., None], image * (1 - opacity) + np.array(colour) * opacity, image))


def add_forbidden_sign(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The stand-in for unsafe content: a red ring, crossed out, with a white ground, somewhere on the picture."""
    height, width = image.shape[:2]
    radius = min(height, width) * rng.uniform(0.22, 0.32)
    x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
    thick = max(2, round(radius / 3))
    picture = Image.fromarray(image)
    canvas = ImageDraw.Draw(picture)
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 255, 255))
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), outline=SIGN_COLOUR, width=thick)
    reach = 0.66 * radius
    canvas.line((x - reach, y - reach, x + reach, y + reach), fill=SIGN_COLOUR, width=thick)
    canvas.line((x - reach, y + reach, x + reach, y - reach), fill=SIGN_COLOUR, width=thick)
    return np.asarray(picture)


def compress(image: np.ndarray, quality: int, subsampling: int = 0) -> np.ndarray:
    """A picture after JPEG compression; `subsampling` of colour as Pillow counts it: 0 is 4:4:4, 2 is 4:2:0."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(buffer))


def recolour(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The object, `mask` bool (H, W), in colours of no palette: its channels shuffled, scaled and shifted."""
    other = image[..., rng.permutation(3)] * rng.uniform(0.5, 1.2, 3) + rng.uniform(-40, 40, 3)
    return _pixels(np.where(mask[..., None], other, image))


def add_blob(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A soft spot of some colour, as from a generator that failed to draw an object."""
    height, width = image.shape[:2]
    ys, xs = np.mgrid[0:height, 0:width]
    y, x = rng.uniform(0.25, 0.75, 2) * (height, width)
    spread_y, spread_x = rng.uniform(0.08, 0.22, 2) * (height, width)
    cover = rng.uniform(0.4, 1.0) * np.exp(-(((ys - y) / spread_y) ** 2 + ((xs - x) / spread_x) ** 2) / 2)[..., None]
    return _pixels(image * (1 - cover) + rng.uniform(0, 255, 3) * cover)


def melt(image: np.ndarray, mask: np.ndarray, ground: np.ndarray, radius: float) -> np.ndarray:
    """The object of a picture, `mask` bool (H, W), blurred beyond recognition, on a `ground` that stays sharp."""
    cover = blur(np.where(mask, 255, 0).astype(np.uint8), radius)[..., None] / 255.0
    object_alone = blur(np.where(mask[..., None], image, 0).astype(np.uint8), radius)  # times its cover
    return _pixels(ground * (1 - cover) + object_alone)


def degrade(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Make a picture worse by a random amount, in one of three ways.

    Returns:
        The picture and its quality: 10 for the drawing as it is, falling to 1 at the most blurred, noisy or washed out.
    """
    amount = float(rng.uniform(0.0, 1.0))
    way = int(rng.integers(3))
    if way == 0:
        worse = blur(image, 0.4 + 1.8 * amount)
    elif way == 1:
        worse = noise(image, 8 + 50 * amount, rng)
    else:
        worse = wash_out(image, 0.15 + 0.7 * amount)
    return worse, 7.0 - 6.0 * amount


def degrade_mildly(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture as a generator might have made it: a little soft, noisy, blocky, off in colour, the object recoloured.

    Args:
        mask: bool (H, W), the object. What it is and where it is stays as it was.
    """
    degraded: np.ndarray = image.astype(np.float32)
    if rng.random() < 0.3:
        degraded = np.where(mask[..., None], degraded[..., rng.permutation(3)], degraded)
    if rng.random() < 0.5:
        degraded = degraded * rng.uniform(0.85, 1.15, 3) + rng.uniform(-18, 18, 3)
    if rng.random() < 0.5:
        degraded = degraded + rng.normal(0, rng.uniform(2, 16), image.shape)
    if rng.random() < 0.3:  # patches of wrong colour, a few pixels wide
        coarse = rng.normal(0, rng.uniform(4, 14), (image.shape[0] // 4, image.shape[1] // 4, 3))
        degraded = degraded + coarse.repeat(4, 0).repeat(4, 1)
    picture = _pixels(degraded)
    if rng.random() < 0.4:
        picture = blur(picture, rng.uniform(0.3, 0.8))
    if rng.random() < 0.2:
        picture = compress(picture, int(rng.integers(35, 95)), subsampling=int(rng.choice([0, 2])))
    return picture


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
