"""Which pictures of a corpus are copies of others, and which of a set of copies stays.

The survivor is the best, whatever order pictures are read in: one with a caption before one without, then the larger
in pixels, then in bytes, then the first by its key in the source. Every picture that is dropped is a copy of the one
that survives instead of it, not of a copy's copy: chains do not grow.

Three tables: signatures (what is compared), edges (a pair of copies, the worse first), duplicates (who is dropped).
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing import rows
from preprocessing.hashes import long_hashes, short_hashes
from preprocessing.near import Limits, Signatures, Wanted, near_pairs
from preprocessing.settings import SelectSettings
from preprocessing.thresholds import integers

EXACT = "exact_duplicate"
NEAR = "near_duplicate"
EVALUATION = "in_evaluation_folder"

# Better copies that are remembered of one picture in one partition: keeps a dense cluster's edges linear in its size.
_REMEMBERED = 64

SIGNATURES = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("rank", pa.binary(), nullable=False),  # sorts pictures, the best first; no two are equal
        pa.field("block", pa.string(), nullable=False),  # the part of the corpus that it is in
        pa.field("sha256", pa.binary(32), nullable=False),
        *rows.SIGNATURE_FIELDS,
    ]
)
EDGES = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("rank", pa.binary(), nullable=False),
        pa.field("block", pa.string(), nullable=False),
        pa.field("better", pa.string(), nullable=False),  # uid of the one that ranks before it
        pa.field("better_rank", pa.binary(), nullable=False),
        pa.field("equal", pa.bool_(), nullable=False),  # in every byte
    ]
)
DUPLICATES = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("survivor", pa.string(), nullable=False),  # uid, or the file in the evaluation folder
    ]
)
# What `signatures_of` reads.
COLUMNS = ["uid", "key", "sha256", "width", "height", "alt_text", "image_bytes", "phashes", "long_hashes", "color"]


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A picture that no search can tell from a better one: it shares that one's fate."""

    uid: str
    block: str
    of: str  # uid
    equal: bool  # in every byte


def signatures_of(table: pa.Table, block: str) -> pa.Table:
    """The columns `COLUMNS` -> `SIGNATURES`."""
    areas = (integers(table["width"]) * integers(table["height"])).tolist()
    columns = (table[name].to_pylist() for name in ("alt_text", "image_bytes", "key", "uid"))
    ranks = [
        struct.pack(">?QQ", not text, 2**63 - area, 2**63 - size) + f"{key}\n{uid}".encode()
        for area, text, size, key, uid in zip(areas, *columns, strict=True)
    ]
    table = table.append_column("rank", pa.array(ranks, pa.binary()))
    table = table.append_column("block", pa.array([block] * len(ranks), pa.string()))
    return table.select(SIGNATURES.names).cast(SIGNATURES)


def limits_of(settings: SelectSettings) -> Limits:
    """How far a near duplicate may be; with near duplicates kept, those of the evaluation folder have equal hashes."""
    return Limits(
        radius=settings.near_duplicate_radius or 0,
        long_radius=settings.near_duplicate_bits,
        color=settings.near_duplicate_color,
    )


def arrays_of(table: pa.Table) -> Signatures:
    """The signature columns as arrays."""
    short, long, color = (_bytes(table[field.name], field.type.byte_width) for field in rows.SIGNATURE_FIELDS)
    return Signatures(short=short_hashes(short), long=long_hashes(long), color=color)


def collapse(table: pa.Table, settings: SelectSettings) -> tuple[pa.Table, list[Twin]]:
    """Of rows with equal signatures (or, where only exact duplicates count, equal bytes) the best, and the others.

    A thousand copies of one white picture would be half a million pairs to compare.
    """
    names = ["sha256"] if settings.near_duplicate_radius is None else [field.name for field in rows.SIGNATURE_FIELDS]
    keys = zip(*(table[name].to_pylist() for name in names), strict=True)
    marks = [hashlib.blake2b(b"".join(key), digest_size=16).digest() for key in keys]
    uids, ranks, contents = (table[name].to_pylist() for name in ("uid", "rank", "sha256"))
    blocks = table["block"].to_pylist()
    best: dict[bytes, int] = {}
    for index, mark in enumerate(marks):
        other = best.setdefault(mark, index)
        if ranks[index] < ranks[other]:
            best[mark] = index
    twins = [
        Twin(
            uid=uids[index],
            block=blocks[index],
            of=uids[best[mark]],
            equal=contents[index] == contents[best[mark]],
        )
        for index, mark in enumerate(marks)
        if best[mark] != index
    ]
    return table.take(pa.array(sorted(best.values()), pa.int64())), twins


class _Best(Wanted):
    """Of a picture with many better copies the best `_REMEMBERED`, by the places of left and right rows in rank order.

    A picture may be on both sides, and is no copy of itself.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray):
        self._left, self._right = left, right
        self._limits = np.full(int(left.max(initial=-1)) + 1, len(left))  # by place: what a better copy must be before

    def order(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Those with the best first, so that soon the others need not be compared."""
        return np.argsort(self._sides(left, right)[0], kind="stable")

    def may_matter(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Whether the better one could still be among the best that the worse one has."""
        better, worse = self._sides(left, right)
        return better < np.minimum(self._limits[worse], worse)

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
    """All pairs of copies between two tables of `SIGNATURES` (or within one), as `EDGES`, sorted by their ranks.

    Of a picture with more than 64 better copies here, the best 64 are remembered.
    """
    names = ["uid", "rank", "block", "sha256"]
    both = left.select(names) if right is None else pa.concat_tables([left.select(names), right.select(names)])
    first = 0 if right is None else len(left)  # of the right table's rows in `both`
    places = pc.rank(both["rank"].combine_chunks(), tiebreaker="dense").to_numpy().astype(np.int64) - 1
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
    columns = [worse["uid"], worse["rank"], worse["block"], better["uid"], better["rank"]]
    return pa.Table.from_arrays([*columns, pc.equal(worse["sha256"], better["sha256"])], schema=EDGES)


def find_in_evaluation(table: pa.Table, evaluation: pa.Table, settings: SelectSettings) -> dict[int, str]:
    """Rows of `SIGNATURES` that are near duplicates of pictures (`name` and signature): index -> the first name."""
    pairs = near_pairs(arrays_of(table), arrays_of(evaluation), limits_of(settings))
    names = evaluation["name"].to_pylist()
    found: dict[int, str] = {}
    for index, match in pairs.tolist():
        found[index] = min(found.get(index, names[match]), names[match])
    return found


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A picture that is dropped."""

    uid: str
    block: str
    reason: str
    survivor: str  # uid, or the file in the evaluation folder


def resolve(edges: Iterable[pa.Table], twins: Iterable[Twin], exact: bool) -> list[Duplicate]:
    """Who is dropped, from all edges of the corpus. Memory grows with the number of copies, not with the corpus.

    In order of rank, a picture is dropped if a better copy of it stays; so it does not matter how edges were found.
    """
    copies: dict[tuple[bytes, str, str], set[tuple[bytes, str, bool]]] = {}
    for table in edges:
        for line in table.to_pylist():
            node = (line["rank"], line["uid"], line["block"])
            copies.setdefault(node, set()).add((line["better_rank"], line["better"], line["equal"]))
    dropped: dict[str, tuple[str, str, bool]] = {}  # uid -> block, survivor, whether they are equal in every byte
    for (_, uid, block), better in sorted(copies.items()):
        stays = next(((other, equal) for _, other, equal in sorted(better) if other not in dropped), None)
        if stays is not None:
            dropped[uid] = (block, *stays)
    for twin in twins:
        _, survivor, equal = dropped.get(twin.of, ("", twin.of, True))
        dropped[twin.uid] = (twin.block, survivor, equal and twin.equal)
    return [
        Duplicate(uid=uid, block=block, reason=EXACT if exact and equal else NEAR, survivor=survivor)
        for uid, (block, survivor, equal) in sorted(dropped.items())
    ]


def cluster_sizes(duplicates: Iterable[pa.Table]) -> dict[str, int]:
    """How many sets of copies of each size (survivor included) there are: size -> number, as in report.json."""
    copies = Counter(
        line["survivor"] for table in duplicates for line in table.to_pylist() if line["reason"] != EVALUATION
    )
    sizes = Counter(number + 1 for number in copies.values())
    return {str(size): sizes[size] for size in sorted(sizes)}


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


def _bytes(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A column of fixed-size bytes as uint8 (n, width)."""
    array = column.combine_chunks()
    if not len(array):
        return np.empty((0, width), np.uint8)
    data = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    return data[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)
