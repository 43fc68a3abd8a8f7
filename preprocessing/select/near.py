"""Near duplicates among signatures: candidates by Hamming radius over 64 bits, verified by 256 bits and by colour.

The search is exact: 64 bits are cut into m bands, and if two hashes differ in at most r bits, at least one band differs
in at most its share of them (pigeonhole: the bands' shares sum to r - m + 1). So each query looks up, in a table per
band, every key within the band's share. Nothing here depends on the order of rows; memory is bounded.

Legend: n rows of the index, k pairs, V views (hashes.py).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from realcustom.preprocessing.hashes import COLOR_UNIT, VIEWS, color_thumbnails

_CHUNK = 1 << 16  # queries looked up together
_BUDGET = 1 << 21  # candidates compared together, at most (or the n of one query)
_PIECE = 1 << 11  # pairs that are compared together
_HELD = 1 << 16  # pairs that are found before they are trimmed
_MAX_WIDTH = 22  # bits of a band: its table has 2^width entries
_BRIGHTER = 1.5  # a copy may be this much brighter or darker
_ZERO = 1e-9  # used for a limit of zero, which only zero satisfies
_NEARLY_BLACK = 40  # of 255: below it compression destroys colours
# Rough costs of looking up one key, and of comparing one candidate found there; only their ratio matters.
_LOOK_UP, _COMPARE = 1.0, 1.5


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a near duplicate may be from its original."""

    radius: int  # bits of 64
    long_radius: int  # bits of 256 that are set
    color: float | None  # difference in tint over brightness; None: colours are not compared
    # The squares of both, as shares of their limits, may sum to at most 1: a pair at both limits is not a near
    # duplicate.


@dataclass(frozen=True, kw_only=True)
class Signatures:
    """The signatures of n rows as arrays."""

    short: np.ndarray  # uint64 (n, V)
    long: np.ndarray  # uint64 (n, V, 4)
    color: np.ndarray  # uint8 (n, 3 * COLOR_SIDE^2)

    def __len__(self) -> int:
        return len(self.short)


class Wanted:
    """Which pairs matter: here all, each once. A subclass skips most comparisons of a dense cluster."""

    def order(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The order in which k pairs are compared: their indices."""
        return np.arange(len(left))

    def may_matter(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Whether pairs still need a comparison, after the pairs that `trim` has seen: bool (k,)."""
        return np.ones(len(left), bool)

    def trim(self, pairs: np.ndarray) -> np.ndarray:
        """Those of the pairs found, int64 (k, 2), that matter, each once."""
        return np.unique(pairs, axis=0)


def near_pairs(left: Signatures, right: Signatures | None, limits: Limits, wanted: Wanted | None = None) -> np.ndarray:
    """All near duplicates that are `wanted`, as rows (left, right) of an int64 (k, 2), each pair once.

    Two pictures are near duplicates if the whole of one is like the whole, or an inset, of the other. With `right`
    None: within `left`, the first index being the smaller.
    """
    wanted = wanted or Wanted()
    held, count, limit = [np.empty((0, 2), np.int64)], 0, _HELD
    for pairs in _both_ways(left, right, limits, wanted):
        held.append(pairs)
        count += len(pairs)
        if count > limit:
            held = [wanted.trim(np.concatenate(held))]
            count = len(held[0])
            limit = max(_HELD, 2 * count)
    return wanted.trim(np.concatenate(held))


def _both_ways(left: Signatures, right: Signatures | None, limits: Limits, wanted: Wanted) -> Iterator[np.ndarray]:
    if right is None:
        yield from (np.sort(pairs, axis=1) for pairs in _one_way(left, left, limits, wanted, range(VIEWS), same=True))
    else:
        yield from _one_way(left, right, limits, wanted, range(VIEWS))
        views = range(1, VIEWS)  # whole against whole needs one direction only
        yield from (pairs[:, ::-1] for pairs in _one_way(right, left, limits, wanted, views, swapped=True))


def _one_way(
    left: Signatures,
    right: Signatures,
    limits: Limits,
    wanted: Wanted,
    views: range,
    *,
    same: bool = False,
    swapped: bool = False,
) -> Iterator[np.ndarray]:
    """Pairs of which a view of `left` is like the whole of `right`; once for each view that is.

    Args:
        same: the two sides are one table.
        swapped: `left` here is the right one for `wanted`.
    """
    index = BandIndex(right.short[:, 0], limits.radius)
    for view in views:
        for i, j in index.search(left.short[:, view]):
            if same:
                keep = i < j if view == 0 else i != j
                i, j = i[keep], j[keep]
            order = wanted.order(j, i) if swapped else wanted.order(i, j)
            for start in range(0, len(order), _PIECE):
                piece = order[start : start + _PIECE]
                a, b = i[piece], j[piece]
                worth = wanted.may_matter(b, a) if swapped else wanted.may_matter(a, b)
                a, b = a[worth], b[worth]
                bits = hash_distances(left.long[a, view], right.long[b, 0])
                near = bits <= limits.long_radius
                a, b, bits = a[near], b[near], bits[near]
                if not len(a):
                    continue
                if limits.color is None:
                    yield np.stack([a, b], axis=1)
                    continue
                tints = _tints(left.color, a, view, right.color, b)
                like = (bits / max(limits.long_radius, _ZERO)) ** 2 + (tints / max(limits.color, _ZERO)) ** 2 <= 1
                yield np.stack([a[like], b[like]], axis=1)


def hash_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """In how many of 256 set bits k pairs of long hashes, uint64 (k, 4), differ: float64 (k,).

    A textured picture sets half of its 256 bits, a smooth one few, and the two together count as 256 however many they
    set: so that little detail does not count as similarity.
    """
    differ, ours, theirs = (
        np.bitwise_count(words).sum(axis=1, dtype=np.int64) for words in (left ^ right, left, right)
    )
    distances: np.ndarray = differ * 256 / np.maximum(1, ours + theirs)
    return distances


def _tints(left: np.ndarray, i: np.ndarray, view: int, right: np.ndarray, j: np.ndarray) -> np.ndarray:
    """`tint_distances` for the pairs (i, j); in a dense cluster a row is in many of them."""
    (ours, i), (theirs, j) = (np.unique(index, return_inverse=True) for index in (i, j))
    return tint_distances(color_thumbnails(left[ours], view)[i], color_thumbnails(right[theirs], 0)[j])


def tint_distances(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """How far k pairs of thumbnails, int64 (k, 64, 3), are apart in tint: float64 (k,), inf where brightness forbids.

    Both are scaled to the same energy. The distance is that of the worst cell: how much the difference varies between
    channels, over the cell's brightness (+ 40, for nearly black cells). A difference equal in all channels is left to
    the hashes, as it clips in a copy that was made brighter.

    The result of a pair depends neither on its place in a batch nor on the order of its two sides.
    """
    a, b = (np.sqrt(np.maximum(1, np.einsum("kpc,kpc->k", pixels, pixels))) for pixels in (ours, theirs))
    middle = np.sqrt(a * b)
    ours, theirs = ours * (middle / a)[:, None, None], theirs * (middle / b)[:, None, None]
    difference = ours - theirs
    tint = _over_channels(np.maximum, difference) - _over_channels(np.minimum, difference)  # (k, 64)
    brightest = (_over_channels(np.maximum, pixels) for pixels in (ours, theirs))
    brightness = np.minimum(*brightest) + _NEARLY_BLACK * COLOR_UNIT
    same_light = np.maximum(a, b) <= _BRIGHTER * np.minimum(a, b)
    return np.where(same_light, (tint / brightness).max(axis=1), np.inf)


def _over_channels(function: np.ufunc, pixels: np.ndarray) -> np.ndarray:
    """A reduction over the last axis, of three: many times faster so than by numpy's `reduce`."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    reduced: np.ndarray = function(function(red, green), blue)
    return reduced


class BandIndex:
    """Finds all of n 64-bit hashes within a Hamming radius of a query. Exact."""

    def __init__(self, values: np.ndarray, radius: int):
        self._radius = radius
        self._bands = [_Band(values, *band) for band in choose_bands(len(values), radius)]

    def search(self, queries: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For uint64 (m,): indices (query, value) of pairs within the radius, in chunks, each pair once."""
        for number, band in enumerate(self._bands):
            keys = band.keys(queries)
            order = np.argsort(keys, kind="stable")  # sorted: successive queries read nearby memory
            for start in range(0, len(queries), _CHUNK):
                chunk = order[start : start + _CHUNK]
                for mask in band.masks:
                    for i, values in band.look_up(keys[chunk] ^ mask):
                        difference = queries[chunk[i]] ^ band.values[values]
                        near = np.flatnonzero(np.bitwise_count(difference) <= self._radius)
                        for earlier in self._bands[:number]:  # which already found the pair
                            near = near[~earlier.finds(difference[near])]
                        if len(near):
                            yield chunk[i[near]], band.order[values[near]]


class _Band:
    """Hashes sorted by some of their bits."""

    def __init__(self, values: np.ndarray, shift: int, width: int, share: int):
        self._shift, self._mask, self._share = np.uint64(shift), np.uint64((1 << width) - 1), share
        keys = self.keys(values)
        self.order = np.argsort(keys, kind="stable")
        self.values = values[self.order]
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=1 << width))])
        self.masks = [
            sum(1 << bit for bit in bits)
            for flipped in range(share + 1)
            for bits in itertools.combinations(range(width), flipped)
        ]

    def keys(self, values: np.ndarray) -> np.ndarray:
        """The band's bits of each value, int64."""
        return ((values >> self._shift) & self._mask).astype(np.int64)

    def finds(self, difference: np.ndarray) -> np.ndarray:
        """Whether pairs that differ in these bits, uint64 (k,), share a key of the band: bool (k,)."""
        found: np.ndarray = np.bitwise_count((difference >> self._shift) & self._mask) <= self._share
        return found

    def look_up(self, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs (index into `keys`, index into `values`) with equal keys, at most `_BUDGET` at a time."""
        first = self._starts[keys]
        counts = self._starts[keys + 1] - first
        hit = np.flatnonzero(counts)
        first, counts = first[hit], counts[hit]
        ends = np.cumsum(counts)
        start = 0
        while start < len(hit):
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + _BUDGET, side="right")))
            piece = slice(start, stop)
            offsets = first[piece] - (ends[piece] - counts[piece] - before)
            yield (
                np.repeat(hit[piece], counts[piece]),
                np.arange(int(ends[stop - 1]) - before) + np.repeat(offsets, counts[piece]),
            )
            start = stop


def choose_bands(rows: int, radius: int) -> list[tuple[int, int, int]]:
    """(shift, width, share of the radius) of the bands that make a search among `rows` hashes cheapest."""
    options = [_bands(number, radius) for number in range(math.ceil(64 / _MAX_WIDTH), radius + 2)]
    options = options or [_bands(math.ceil(64 / _MAX_WIDTH), max(radius, math.ceil(64 / _MAX_WIDTH) - 1))]

    def cost(bands: list[tuple[int, int, int]]) -> float:
        return sum(
            sum(math.comb(width, flipped) for flipped in range(share + 1)) * (_LOOK_UP + _COMPARE * rows / (1 << width))
            for _, width, share in bands
        )

    return min(options, key=cost)


def _bands(number: int, radius: int) -> list[tuple[int, int, int]]:
    edges = [64 * band // number for band in range(number + 1)]
    shares = [(radius + 1 + band) // number - 1 for band in range(number)]  # they sum to radius - number + 1
    return [(low, high - low, share) for (low, high), share in zip(itertools.pairwise(edges), shares, strict=True)]
