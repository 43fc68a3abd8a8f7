"""A picture's signature: perceptual hashes of the whole and of a few insets, and a colour thumbnail.

A copy that was cropped looks like an inset of its original, so comparing one picture's insets with the other's whole
finds crops that two hashes of the wholes miss. The 64-bit hashes are for searching, the 256-bit ones and the colours
for verifying what the search finds.

Legend: V views (the whole first, then the insets), n rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

INSETS = (0.025, 0.05, 0.075, 0.1)  # fraction of the side that is cut away on each of the four sides
VIEWS = 1 + len(INSETS)
SHORT_BYTES = 8  # of a view's hash for searching: 64 bits
LONG_BYTES = 32  # of a view's hash for verifying: 256 bits
COLOR_SIDE = 12  # of the colour thumbnail; fine enough to compute the insets' thumbnails from it
COMPARED_SIDE = 8  # of the thumbnails that are compared
COLOR_UNIT = 256**2  # one step of 8 bits in these units

BASE_SIDE = 96  # pixels: views are cut from the picture scaled to this square; a JPEG need not be decoded larger
# A coefficient counts as above the median from this difference on. For the 64 lowest ones only rounding matters; of the
# 256, those of a smooth picture are noise, which 6 (a wave of 0.2 grey values) excludes.
_SHORT_MARGIN, _LONG_MARGIN = 1e-6, 6.0


@dataclass(frozen=True, kw_only=True)
class Signature:
    """One picture's hashes as bytes; bits in row-major order of the coefficients, the first the highest of its byte."""

    phashes: bytes  # V x 8
    long_hashes: bytes  # V x 32
    color: bytes  # COLOR_SIDE x COLOR_SIDE RGB values, row-major


def signature(image: Image.Image) -> Signature:
    """The signature of an RGB picture of any size.

    A hash holds the signs, about their median, of the lowest DCT coefficients (pHash, Zauner 2010): 8 x 8 of a 32 x 32
    grey thumbnail for searching, 16 x 16 of a 64 x 64 one for verifying, where a bit is set only for a coefficient that
    is well above the median. All flat pictures have the same hash. Cutting a view out of
    the base, its thumbnail (means over equal parts) and the DCT are linear: one matrix a view.
    """
    base = image.resize((BASE_SIDE, BASE_SIDE), Image.Resampling.HAMMING, reducing_gap=2.0)
    grey = np.asarray(base.convert("L"), dtype=np.float64)
    color = base.resize((COLOR_SIDE, COLOR_SIDE), Image.Resampling.BOX)
    return Signature(
        phashes=_signs(grey, _SHORT_ROWS, _SHORT_MARGIN),
        long_hashes=_signs(grey, _LONG_ROWS, _LONG_MARGIN),
        color=color.tobytes(),
    )


def short_hashes(phashes: np.ndarray) -> np.ndarray:
    """The column `phashes`, uint8 (n, V * 8), as uint64 (n, V)."""
    return phashes.view(np.uint64)


def long_hashes(column: np.ndarray) -> np.ndarray:
    """The column `long_hashes`, uint8 (n, V * 32), as uint64 (n, V, 4)."""
    return column.view(np.uint64).reshape(len(column), VIEWS, LONG_BYTES // 8)


def color_thumbnails(color: np.ndarray, view: int) -> np.ndarray:
    """The column `color`, uint8 (n, 432), as the thumbnails of one view: int64 (n, 64, 3), `COLOR_UNIT` for each 1/255.

    Whole numbers below 2^53 on the way, hence exact: the same on every machine and at every batch size.
    """
    pixels = color.reshape(len(color), COLOR_SIDE**2, 3).astype(np.float64)
    return (_COLOR_VIEWS[view] @ pixels).astype(np.int64)


def _signs(grey: np.ndarray, rows: np.ndarray, margin: float) -> bytes:
    """Grey values (BASE_SIDE, BASE_SIDE), rows (V, k, BASE_SIDE) of each view's DCT -> V x k^2 bits."""
    along = (rows.reshape(-1, BASE_SIDE) @ grey).reshape(rows.shape)  # one large product: half the time of V small ones
    low = (along @ rows.transpose(0, 2, 1)).reshape(VIEWS, -1)  # (V, k * k)
    # without the first one, the mean brightness, which would shift the median; the number is odd
    middle = (low.shape[1] - 2) // 2
    bits = low > np.partition(low[:, 1:], middle, axis=1)[:, middle : middle + 1] + margin
    return np.packbits(bits).tobytes()


def _view_rows(size: int, rows: int) -> np.ndarray:
    """The first DCT rows of each view's thumbnail of `size` pixels a side, as rows over the base: (V, rows, BASE_SIDE)."""
    pixels = np.arange(BASE_SIDE)
    views = []
    for inset in (0.0, *INSETS):
        edges = BASE_SIDE * (inset + (1 - 2 * inset) * np.arange(size + 1) / size)
        covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)  # of pixels, (size, B)
        box = np.maximum(covered, 0) / (edges[1] - edges[0])
        views.append(_dct_rows(size, rows) @ box)
    return np.stack(views)


def _dct_rows(size: int, rows: int) -> np.ndarray:
    """The first `rows` rows of the orthonormal DCT-II matrix, (rows, size)."""
    k, n = np.arange(rows)[:, None], np.arange(size)[None, :]
    matrix = np.cos(math.pi * k * (2 * n + 1) / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def _color_view(inset: float) -> np.ndarray:
    """How an inset's thumbnail is computed from the whole's: triangle-filtered weights in 1/COLOR_UNIT, (64, 144)."""
    box = (COLOR_SIDE * inset, 0, COLOR_SIDE * (1 - inset), COLOR_SIDE)
    unit = Image.fromarray(np.eye(COLOR_SIDE, dtype=np.float32))
    along = np.asarray(unit.resize((COMPARED_SIDE, COLOR_SIDE), Image.Resampling.BILINEAR, box=box)).T  # (8, 12)
    along = np.round(along * math.sqrt(COLOR_UNIT))
    return np.kron(along, along).astype(np.float64)


_SHORT_ROWS, _LONG_ROWS = _view_rows(32, 8), _view_rows(64, 16)
_COLOR_VIEWS = tuple(_color_view(inset) for inset in (0.0, *INSETS))
