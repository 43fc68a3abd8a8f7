"""Which pictures are copies of others: signatures (what is compared) -> edges (pairs of copies, the worse first).

The better of two copies is the one with a caption; if equal, with more pixels, then more bytes, then the earlier one in
the corpus. A picture's number is its place in the corpus: its unit's number (units are sorted by name) and its row
there.

Legend: n pictures, k pairs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from realcustom.preprocessing import tables
from realcustom.preprocessing.hashes import long_hashes, short_hashes
from realcustom.preprocessing.select.near import Limits, Signatures, Wanted, near_pairs
from realcustom.preprocessing.select.thresholds import integers
from realcustom.preprocessing.settings import SelectSettings

ROW_BITS = 32  # bits of a picture's number for its row; those above are its unit's
_MOST_PIXELS, _MOST_BYTES = 2**32 - 1, 2**31 - 1  # larger values count as this one
# Better copies that are kept per picture and partition, so that a dense cluster's edges stay linear in its size.
_REMEMBERED = 64

# Sorts pictures, the best first; no two are equal: two words of 64 bits, big-endian, the second the picture's number.
PRIORITY = pa.binary(16)
SIGNATURES = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("rank", PRIORITY, nullable=False),  # the priority; existing files have this column name
        pa.field("sha256", pa.binary(32), nullable=False),
        *tables.SIGNATURE_FIELDS,
    ]
)
EDGES = pa.schema(
    [
        pa.field("rank", PRIORITY, nullable=False),
        pa.field("better", PRIORITY, nullable=False),  # that of the better one
        pa.field("equal", pa.bool_(), nullable=False),  # in every byte
    ]
)
# What `signatures_of` reads.
COLUMNS = ["uid", "key", "sha256", "width", "height", "alt_text", "image_bytes", "phashes", "long_hashes", "color"]


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Pictures with the same signature as a better one: they are kept or dropped together with it."""

    numbers: np.ndarray  # int64 (n,)
    of: np.ndarray  # int64 (n,), the better one's number
    equal: np.ndarray  # bool (n,), in every byte


def numbers_of(unit: int, count: int) -> np.ndarray:
    """The numbers of the pictures in the unit of that number, int64 (count,)."""
    return (unit << ROW_BITS) + np.arange(count, dtype=np.int64)


def signatures_of(table: pa.Table, numbers: np.ndarray) -> pa.Table:
    """The columns `COLUMNS` of pictures of these numbers, int64 (n,) -> `SIGNATURES`."""
    captionless = np.array([not text for text in table["alt_text"].to_pylist()], dtype=np.uint64)
    smaller = _MOST_PIXELS - np.clip(integers(table["width"]) * integers(table["height"]), 0, _MOST_PIXELS)
    shorter = _MOST_BYTES - np.clip(integers(table["image_bytes"]), 0, _MOST_BYTES)
    words = (captionless << 63) | (smaller << 31 | shorter).astype(np.uint64)
    priorities = np.stack([words, numbers.astype(np.uint64)], axis=1)
    return table.append_column("rank", priorities_column(priorities)).select(SIGNATURES.names).cast(SIGNATURES)


def priorities_column(priorities: np.ndarray) -> pa.Array:
    """Priorities, uint64 (n, 2), as a column of `PRIORITY`."""
    return pa.Array.from_buffers(PRIORITY, len(priorities), [None, pa.py_buffer(priorities.astype(">u8").tobytes())])


def priorities_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of `PRIORITY` as uint64 (n, 2), which sorts by its columns; the second one is the number."""
    return fixed_bytes(column, PRIORITY.byte_width).view(">u8").astype(np.uint64)


def limits_of(settings: SelectSettings) -> Limits:
    """How far a near duplicate may be; if near duplicates are kept, copies of evaluation pictures need equal hashes."""
    return Limits(
        radius=settings.near_duplicate_radius or 0,
        long_radius=settings.near_duplicate_bits,
        color=settings.near_duplicate_color,
    )


def arrays_of(table: pa.Table) -> Signatures:
    """The signature columns as arrays."""
    short, long, color = (fixed_bytes(table[field.name], field.type.byte_width) for field in tables.SIGNATURE_FIELDS)
    return Signatures(short=short_hashes(short), long=long_hashes(long), color=color)


def collapse(table: pa.Table, settings: SelectSettings) -> tuple[pa.Table, Twins]:
    """Of rows with equal signatures (or, where only exact duplicates count, equal bytes) the best, and the others.

    A thousand copies of one white picture would be half a million pairs to compare.
    """
    names = ["sha256"] if settings.near_duplicate_radius is None else [field.name for field in tables.SIGNATURE_FIELDS]
    columns = [fixed_bytes(table[name], table.schema.field(name).type.byte_width) for name in names]
    marks = [hashlib.blake2b(row, digest_size=16).digest() for row in np.concatenate(columns, axis=1)]
    priorities = priorities_of(table["rank"])
    best: dict[bytes, int] = {}
    for index in np.lexsort(priorities.T[::-1]).tolist():
        best.setdefault(marks[index], index)
    better = np.array([best[mark] for mark in marks], dtype=np.int64)
    twins = np.flatnonzero(better != np.arange(len(marks)))
    contents = fixed_bytes(table["sha256"], 32)
    equal = (contents[twins] == contents[better[twins]]).all(axis=1)
    numbers = priorities[:, 1].astype(np.int64)
    found = Twins(numbers=numbers[twins], of=numbers[better[twins]], equal=equal)
    return table.take(pa.array(sorted(best.values()), pa.int64())), found


class _Best(Wanted):
    """Keeps the best `_REMEMBERED` better copies of each picture, by the rows' places in the order of priority.

    A picture may be on both sides; it is not a copy of itself.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray):
        self._left, self._right = left, right
        self._limits = np.full(int(left.max(initial=-1)) + 1, len(left))  # by place: a better copy must be before it

    def order(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Pairs with the best copies first, so that later ones need not be compared."""
        return np.argsort(self._sides(left, right)[0], kind="stable")

    def may_matter(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Whether the better one could still be among the best that the worse one has."""
        better, worse = self._sides(left, right)
        matters: np.ndarray = better < np.minimum(self._limits[worse], worse)
        return matters

    def trim(self, pairs: np.ndarray) -> np.ndarray:
        """Sorted by the worse one's place, then by the better one's."""
        better, worse = self._sides(pairs[:, 0], pairs[:, 1])
        order = np.lexsort((better, worse))
        order = order[better[order] < worse[order]]
        better, worse = better[order], worse[order]
        fresh = np.ones(len(order), bool)
        fresh[1:] = (better[1:] != better[:-1]) | (worse[1:] != worse[:-1])
        order, better, worse = order[fresh], better[fresh], worse[fresh]
        starts = np.flatnonzero(np.diff(worse, prepend=-1))
        number = np.arange(len(worse)) - np.repeat(starts, np.diff(starts, append=len(worse)))
        last = number == _REMEMBERED - 1
        self._limits[worse[last]] = better[last]
        return pairs[order[number < _REMEMBERED]]

    def _sides(self, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ours, theirs = self._left[left], self._right[right]
        return np.minimum(ours, theirs), np.maximum(ours, theirs)


def find_edges(left: pa.Table, right: pa.Table | None, settings: SelectSettings) -> pa.Table:
    """All pairs of copies between two tables of `SIGNATURES` (or within one), as `EDGES`, sorted by their priorities.

    Of a picture with more than 64 better copies here, the best 64 are remembered.
    """
    names = ["rank", "sha256"]
    both = left.select(names) if right is None else pa.concat_tables([left.select(names), right.select(names)])
    first = 0 if right is None else len(left)  # of the right table's rows in `both`
    places = _places(priorities_of(both["rank"]))
    best = _Best(places, places[first:])
    pairs = np.empty((0, 2), np.int64)
    if settings.near_duplicate_radius is not None:
        other = None if right is None else arrays_of(right)
        pairs = near_pairs(arrays_of(left), other, limits_of(settings), best)
    if settings.exact_duplicates:
        pairs = np.concatenate([pairs, _equal_pairs(left, right)])
    pairs = best.trim(pairs) + [0, first]
    swapped = places[pairs[:, 0]] > places[pairs[:, 1]]
    better, worse = (both.take(pa.array(np.where(mask, pairs[:, 1], pairs[:, 0]))) for mask in (swapped, ~swapped))
    equal = pc.equal(worse["sha256"], better["sha256"])
    return pa.Table.from_arrays([worse["rank"], better["rank"], equal], schema=EDGES)


def find_in_evaluation(table: pa.Table, evaluation: pa.Table, settings: SelectSettings) -> dict[int, str]:
    """Rows of `SIGNATURES` that are near duplicates of pictures (`name` and signature): index -> the first name."""
    pairs = near_pairs(arrays_of(table), arrays_of(evaluation), limits_of(settings))
    names = evaluation["name"].to_pylist()
    found: dict[int, str] = {}
    for index, match in pairs.tolist():
        found[index] = min(found.get(index, names[match]), names[match])
    return found


def _equal_pairs(left: pa.Table, right: pa.Table | None) -> np.ndarray:
    """Pairs of rows with equal bytes, int64 (k, 2)."""
    places: dict[bytes, list[int]] = {}
    for index, content in enumerate(left["sha256"].to_pylist()):
        places.setdefault(content, []).append(index)
    if right is None:
        pairs = [(a, b) for group in places.values() for b in group for a in group if a < b]
    else:
        contents = enumerate(right["sha256"].to_pylist())
        pairs = [(a, b) for b, content in contents for a in places.get(content, ())]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def fixed_bytes(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A column of fixed-size bytes as uint8 (n, width)."""
    array = column.combine_chunks()
    if not len(array):
        return np.empty((0, width), np.uint8)
    data = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    return data[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)


def _places(priorities: np.ndarray) -> np.ndarray:
    """Place of each priority, uint64 (n, 2), in their order; equal ones (one picture on both sides) share a place: int64 (n,)."""
    order = np.lexsort(priorities.T[::-1])
    fresh = np.ones(len(order), bool)
    fresh[1:] = priorities[order[1:], 1] != priorities[order[:-1], 1]
    places = np.empty(len(order), np.int64)
    places[order] = np.cumsum(fresh) - 1
    return places
