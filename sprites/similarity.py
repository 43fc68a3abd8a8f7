"""Similarity of a generated picture to a subject's identity, measured in its pixels.

similarity = 0.75 colour + 0.25 pattern, and 0 where the judge finds no object. Colour is the histogram intersection, in
a coarse CIE Lab grid, between the pixels in the mask that the judge finds and those of the subject's own rendering;
pattern is the judge's probability of the right pattern.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from realcustom.errors import UsageError
from realcustom.sprites.judge import Verdict
from realcustom.sprites.world import BACKGROUNDS, PATTERNS, Identity, Placed, Scene, draw

COLOUR_SHARE = 0.75  # weight of colour in the similarity; the rest is the pattern's
SMALLEST_OBJECT = 16  # pixels of a mask; with fewer there is no object
LOW, HIGH = np.array([0.0, -90.0, -110.0]), np.array([100.0, 100.0, 100.0])  # Lab's range in sRGB
CELLS = (5, 8, 8)  # of the grid along L, a and b; a colour is shared between the cells around it


def similarity(images: np.ndarray, verdict: Verdict, identities: Sequence[Identity]) -> np.ndarray:
    """Similarity (B,) in [0, 1] of pictures to the subjects that they should show.

    Args:
        images: (B, H, W, 3), uint8, or float in [0, 1].
        verdict: the judge's, of these pictures.
        identities: the subject that each picture should show.
    """
    if len(images) != len(identities):
        raise UsageError(f"{len(images)} pictures, but {len(identities)} identities")
    scores = np.zeros(len(images))
    for row, identity in enumerate(identities):
        mask = verdict.mask[row] > 0.5
        if mask.sum() < SMALLEST_OBJECT:
            continue
        colour = np.minimum(colour_histogram(images[row][mask]), rendered_histogram(identity)).sum()
        pattern = verdict.pattern[row, PATTERNS.index(identity.pattern)]
        scores[row] = COLOUR_SHARE * colour + (1 - COLOUR_SHARE) * pattern
    return scores


@functools.lru_cache(maxsize=4096)
def rendered_histogram(identity: Identity) -> np.ndarray:
    """Colour histogram of the subject's own rendering, averaged over the backgrounds, which are blended into its rim."""
    histograms = []
    for background in BACKGROUNDS:
        placed = Placed(identity=identity, place="left", jitter=(0, 0))
        drawing = draw(Scene(subjects=(placed,), background=background, template="{subject}", texture_seed=0))
        histograms.append(colour_histogram(drawing.image[drawing.masks[0]]))
    mean: np.ndarray = np.mean(histograms, 0)
    return mean


def colour_histogram(pixels: np.ndarray) -> np.ndarray:
    """Share of pixels (N, 3) in each cell of the Lab grid, (5 * 8 * 8,), sums to one.

    Each pixel is divided between the eight cells whose centres surround it, so that a small change of colour is a small
    change of the histogram.
    """
    place = (to_lab(pixels) - LOW) / (HIGH - LOW) * (np.array(CELLS) - 1)  # (N, 3), cell centres at whole numbers
    below = np.clip(np.floor(place), 0, np.array(CELLS) - 2).astype(int)
    above_share = np.clip(place - below, 0, 1)
    histogram = np.zeros(CELLS)
    for corner in np.ndindex(2, 2, 2):
        shares = np.where(np.array(corner) == 1, above_share, 1 - above_share).prod(1)
        np.add.at(histogram, tuple((below + corner).T), shares)
    return histogram.ravel() / len(pixels)


def to_lab(pixels: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB pixels (N, 3), uint8 or float in [0, 1]; IEC 61966-2-1 and CIE 15."""
    values = pixels / 255.0 if pixels.dtype == np.uint8 else pixels.astype(np.float64)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _WHITE
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root[:, 0], root[:, 1], root[:, 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
