"""Which of a set of copies is kept: from all pairs of copies in the corpus, which pictures are dropped, and for which.

In order of priority a picture is dropped if a better copy of it is kept (one of those in the result of `find_edges`).
So the order in which pictures were read or pairs found does not matter, and every dropped picture is a copy of the one
that is kept instead, not a copy of its copy: chains do not merge.

Legend: n pictures that are in pairs, e pairs, k pictures that are dropped.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from realcustom.preprocessing.select.duplicates import Twins, priorities_of

_FEW = 1 << 16  # rows that are collected before duplicates among them are removed
_EQUAL = np.uint64(1 << 63)  # a bit that no number uses
_CHUNK = 1 << 20  # pairs converted to Python objects at a time


@dataclass(frozen=True, kw_only=True)
class Copies:
    """The pictures that are dropped, in the corpus's order."""

    numbers: np.ndarray  # int64 (k,)
    survivors: np.ndarray  # int64 (k,), the number of the one that is kept
    equal: np.ndarray  # bool (k,), in every byte

    def cluster_sizes(self) -> dict[str, int]:
        """How many sets of copies of each size (survivor included) there are: size -> number, as in report.json."""
        _, dropped = np.unique(self.survivors, return_counts=True)
        sizes, counts = np.unique(dropped + 1, return_counts=True)
        return {str(size): count for size, count in zip(sizes.tolist(), counts.tolist(), strict=True)}


def resolve(edges: Iterable[pa.Table], twins: Iterable[Twins]) -> Copies:
    """The dropped pictures, from all edges of the corpus.

    Memory grows with the number of copies, not with the corpus.
    """
    pictures, pairs = Distinct(), Distinct()
    for table in edges:
        worse, better = priorities_of(table["rank"]), priorities_of(table["better"])
        pictures.add(worse)
        pictures.add(better)
        equal = np.where(table["equal"].to_numpy(), _EQUAL, np.uint64(0))
        pairs.add(np.stack([worse[:, 1], better[:, 1] | equal], axis=1))
    by_priority = pictures.rows()[:, 1].copy()
    del pictures
    chosen = _chosen(by_priority, pairs.rows())
    numbers, survivors = (chosen & ~_EQUAL).astype(np.int64).T
    return _with_twins(numbers, survivors, chosen[:, 1] >= _EQUAL, twins)


def _chosen(by_priority: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Of pairs (worse, better), uint64 (e, 2), those whose worse one is dropped for the better one.

    Args:
        by_priority: numbers of the pictures, the best first: uint64 (n,).
        pairs: numbers; in a pair of equal pictures the second has `_EQUAL` set.
    """
    by_number = np.argsort(by_priority)
    numbers = by_priority[by_number]
    worse, better = (by_number[np.searchsorted(numbers, pairs[:, side] & ~_EQUAL)] for side in (0, 1))
    del by_priority, numbers, by_number
    order = np.lexsort((better, worse))
    dropped, chosen = bytearray(int(worse.max(initial=-1)) + 1), array("q")
    for start in range(0, len(order), _CHUNK):
        piece = order[start : start + _CHUNK]
        for index, place, other in zip(piece.tolist(), worse[piece].tolist(), better[piece].tolist(), strict=True):
            if not dropped[other] and not dropped[place]:  # `other` is decided already: it is before `place`
                dropped[place] = True
                chosen.append(index)
    return pairs[np.frombuffer(chosen, np.int64)]


def _with_twins(numbers: np.ndarray, survivors: np.ndarray, equal: np.ndarray, twins: Iterable[Twins]) -> Copies:
    """The dropped pictures, each with its twins; and the twins of the kept ones."""
    order = np.argsort(numbers)
    numbers, survivors, equal = (values[order] for values in (numbers, survivors, equal))
    parts = [(numbers, survivors, equal)]
    numbers = np.append(numbers, np.iinfo(np.int64).max)  # for values greater than all of them
    for some in twins:
        place = np.searchsorted(numbers, some.of)
        gone = numbers[place] == some.of
        theirs, alike = some.of.copy(), some.equal.copy()
        theirs[gone] = survivors[place[gone]]
        alike[gone] &= equal[place[gone]]
        parts.append((some.numbers, theirs, alike))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[0])
    return Copies(numbers=columns[0][order], survivors=columns[1][order], equal=columns[2][order])


class Distinct:
    """The distinct rows of all that are added, uint64 (n, 2), sorted.

    Holds at most 5/4 n, and twice that while sorting.
    """

    def __init__(self) -> None:
        self._held = [np.empty((0, 2), np.uint64)]
        self._count, self._limit = 0, _FEW

    def add(self, rows: np.ndarray) -> None:
        """Some more rows."""
        self._held.append(rows)
        self._count += len(rows)
        if self._count > self._limit:
            self._count = len(self.rows())
            self._limit = max(_FEW, self._count * 5 // 4)

    def rows(self) -> np.ndarray:
        """All rows so far."""
        found = np.concatenate(self._held)
        self._held = []
        found = found[np.lexsort(found.T[::-1])]
        fresh = np.ones(len(found), bool)
        fresh[1:] = (found[1:] != found[:-1]).any(axis=1)
        self._held = [found[fresh]]
        return self._held[0]
