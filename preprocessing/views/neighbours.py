"""Mutual nearest neighbours among the subjects of one word: numpy alone.

Two records are views of each other if each is among the other's `neighbours` nearest ones of its word in other pictures, and
their cosine is at least `min_similarity` and less than `max_similarity` (above it are copies, from which nothing is learned).
Cosines are rounded to 4 decimals, and of equal ones the smaller number is nearer. They are computed of whole numbers, whose
products are exact in float32: so the result depends neither on how rows are cut into partitions nor on the order in which a
machine adds.

Letters: n rows, k neighbours, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from realcustom.preprocessing.settings import ViewsSettings

_CHUNK = 512  # rows that are compared at once
_DECIMALS = 10**4
_LENGTH = 4000  # of a quantised vector
_EXACT = 2**24  # whole numbers up to this one are exact in float32


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some records, by ascending number."""

    numbers: np.ndarray  # int64 (n,)
    words: np.ndarray  # int64 (n,) hashes of target words
    parents: np.ndarray  # int64 (n,) hashes of the pictures' uids
    vectors: np.ndarray  # float32 (n, D), whole numbers as `quantised` makes them

    def part(self, rows: slice) -> Rows:
        """Some of them."""
        return Rows(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Those of the vectors: float64 (n,)."""
        found: np.ndarray = np.sqrt(np.einsum("nd,nd->n", self.vectors, self.vectors).astype(np.float64))
        return found


@dataclass(frozen=True, kw_only=True)
class Links:
    """Pairs of views, each in both directions: of a number by ascending number, the nearest first."""

    numbers: np.ndarray  # int64 (m,)
    others: np.ndarray  # int64 (m,)


def quantised(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1, (n, D), as whole numbers, int16 of length 4000 but for rounding.

    No sum of some of the products of two of them exceeds 2^24, the square of the longest there can be: with a D up to 36,864 each
    is a number that float32 holds. The cosine of two differs from the vectors' by some 0.0001.
    """
    assert (_LENGTH + vectors.shape[1] ** 0.5 / 2) ** 2 <= _EXACT, vectors.shape
    found: np.ndarray = np.rint(vectors * _LENGTH).astype("<i2")
    return found


def cosines_of(left: Rows, right: Rows) -> np.ndarray:
    """Those of each left row with each right one, in 1/10000: int64 (n, m)."""
    products = (left.vectors @ right.vectors.T).astype(np.float64)
    lengths = left.lengths[:, None] * right.lengths
    found: np.ndarray = np.rint(products * _DECIMALS / lengths).astype(np.int64)
    return found


def mutual_neighbours(partitions: Sequence[Callable[[], Rows]], settings: ViewsSettings) -> Links:
    """The links among the rows of all partitions; two partitions are in memory at a time, and k numbers of each row."""
    numbers, others, cosines = [], [], []
    for load in partitions:
        left = load()
        nearest = _none(left, settings.neighbours)
        for other in partitions:
            nearest = _nearer(nearest, _search(left, left if other is load else other(), settings))
        numbers.append(left.numbers)
        others.append(nearest[0])
        cosines.append(nearest[1])
    return _mutual(np.concatenate(numbers), np.concatenate(others), np.concatenate(cosines))


_Nearest = tuple[np.ndarray, np.ndarray]  # numbers, int64 (n, k), -1 = none; their cosines in 1/10000, int64 (n, k)


def _none(rows: Rows, k: int) -> _Nearest:
    shape = (len(rows.numbers), k)
    return np.full(shape, -1, np.int64), np.full(shape, -(2**30), np.int64)


def _search(left: Rows, right: Rows, settings: ViewsSettings) -> _Nearest:
    """Of each left row its k nearest right ones within the limits."""
    found, cosines = _none(left, settings.neighbours)
    low, high = (round(limit * _DECIMALS) for limit in (settings.min_similarity, settings.max_similarity))
    columns = np.arange(len(right.numbers))
    k = min(settings.neighbours, len(columns))
    for start in range(0, len(left.numbers), _CHUNK):
        rows = slice(start, start + _CHUNK)
        some = left.part(rows)
        values = cosines_of(some, right)  # (c, n)
        fits = (some.words[:, None] == right.words) & (some.parents[:, None] != right.parents)
        fits &= (values >= low) & (values < high)
        keys = np.where(fits, values, -(2**30)) * len(columns) - columns  # no two of a row are equal
        best = np.argpartition(-keys, k - 1, axis=1)[:, :k] if k < len(columns) else np.tile(columns, (len(keys), 1))
        kept = np.take_along_axis(fits, best, 1)
        found[rows, :k] = np.where(kept, right.numbers[best], -1)
        cosines[rows, :k] = np.where(kept, np.take_along_axis(values, best, 1), -(2**30))
    return found, cosines


def _nearer(one: _Nearest, other: _Nearest) -> _Nearest:
    """Of each row the k nearest of both, the nearest first."""
    numbers, cosines = (np.concatenate(pair, axis=1) for pair in zip(one, other, strict=True))
    order = np.lexsort((numbers, -cosines), axis=1)[:, : one[0].shape[1]]
    return np.take_along_axis(numbers, order, 1), np.take_along_axis(cosines, order, 1)


def _mutual(numbers: np.ndarray, others: np.ndarray, cosines: np.ndarray) -> Links:
    """The pairs that are there in both directions."""
    order = np.argsort(numbers)
    numbers, others = numbers[order], others[order]
    row, column = np.nonzero(others >= 0)
    partner = np.searchsorted(numbers, others[row, column])
    mutual = np.isin(row * len(numbers) + partner, partner * len(numbers) + row)
    return Links(numbers=numbers[row[mutual]], others=numbers[partner[mutual]])
