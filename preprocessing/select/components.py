"""Which pictures may be copies of each other, directly or through others: those that hashes connect are compared together.

Most pictures of a corpus are like no other one. A large corpus is searched by hashes alone, and only what they connect is
gathered and compared whole.

Legend: n pictures, e pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pyarrow as pa

from realcustom.preprocessing.select.compact import arrays_of_hashes
from realcustom.preprocessing.select.duplicates import limits_of
from realcustom.preprocessing.select.near import Wanted, near_pairs
from realcustom.preprocessing.select.survivors import Distinct
from realcustom.preprocessing.settings import SelectSettings

LINKS = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("number", "of")])
GROUPS = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("number", "group")])


class _Connected(Wanted):
    """Remembers which rows are connected instead of their pairs: a dense cluster has a pair for each two of its rows."""

    def __init__(self, rows: int, first: int):
        self._first = first  # of the right side's rows
        self.roots = np.arange(rows)

    def may_matter(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Whether they are not connected yet."""
        apart: np.ndarray = self.roots[left] != self.roots[right + self._first]
        return apart

    def trim(self, pairs: np.ndarray) -> np.ndarray:
        """None of them."""
        connect(self.roots, pairs[:, 0], pairs[:, 1] + self._first)
        return pairs[:0]


def connect(roots: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Connect e pairs of n places, in `roots`, int64 (n,): of each place the first one that it is connected with."""
    while True:
        lower = np.minimum(roots[left], roots[right])
        for side in (left, right):
            np.minimum.at(roots, roots[side], lower)
        while (roots[roots] != roots).any():
            roots[:] = roots[roots]
        if (roots[left] == roots[right]).all():
            return


def find_links(left: pa.Table, right: pa.Table | None, settings: SelectSettings) -> pa.Table:
    """Pictures of one or two tables of `HASHES` whose hashes are near duplicates': `LINKS`, each connected picture once, with the
    first one of those that it is connected with.
    """
    numbers = np.concatenate([table["number"].to_numpy() for table in (left, right) if table is not None])
    connected = _Connected(len(numbers), 0 if right is None else len(left))
    other = None if right is None else arrays_of_hashes(right)
    near_pairs(arrays_of_hashes(left), other, replace(limits_of(settings), color=None), connected)
    others = numbers[connected.roots]
    linked = others != numbers  # a picture may be on both sides
    return pa.table({"number": numbers[linked], "of": others[linked]}, schema=LINKS)


def groups_of(links: Iterable[pa.Table], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of `LINKS` in groups of about `rows`, each with all that its pictures are connected with.

    Memory grows with the number of linked pictures, not with the corpus.

    Returns:
        Their sorted numbers, int64 (n,), and the number of each one's group, int64 (n,).
    """
    distinct = Distinct()
    for table in links:
        distinct.add(np.stack([table[name].to_numpy() for name in LINKS.names], axis=1).astype(np.uint64))
    pairs = distinct.rows().astype(np.int64)
    numbers, places = np.unique(pairs, return_inverse=True)
    roots = np.arange(len(numbers))
    connect(roots, *places.reshape(pairs.shape).T)
    firsts, component, sizes = np.unique(roots, return_inverse=True, return_counts=True)
    group, room = np.zeros(len(firsts), np.int64), rows
    for index, size in enumerate(sizes.tolist()):
        begins = index > 0 and size > room
        room = (rows if begins else room) - size
        group[index] = (group[index - 1] if index else 0) + begins
    return numbers, group[component]
