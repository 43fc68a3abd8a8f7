"""A listing of very many files, as columns: some 100 bytes a file instead of 500."""

from __future__ import annotations

import itertools
import operator
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from realcustom.storage import FileEntry

_PIECE = 65_536  # files that are taken up, or given out, at a time
_SCHEMA = pa.schema([("name", pa.binary()), ("size", pa.int64()), ("version", pa.binary())])
# sorted columns are in one piece, whose bytes may be more than 2^31
_SORTED = pa.schema([("name", pa.large_binary()), ("size", pa.int64()), ("version", pa.large_binary())])
_ETAG = re.compile("[0-9a-f]{32}")  # what most versions of an object store are, kept as half as many bytes
_IS_ETAG = b"\0"  # before such a version


class Entries(Sequence[FileEntry]):
    """Files sorted by name. An entry is made when it is asked for; to go through all of them is quicker than by number.

    Args:
        base: what stands before the name in a file's URI.
        table: the files' columns.
        elsewhere: by name the URI of those that are in another place, as a link leads there.
    """

    def __init__(self, base: str, table: pa.Table, elsewhere: dict[str, str]):
        self._base, self._table, self._elsewhere = base, table, elsewhere

    @classmethod
    def of(cls, base: str, files: Iterable[FileEntry]) -> Entries:
        """Take them up, in any order."""
        elsewhere: dict[str, str] = {}

        def pages() -> Iterator[list[tuple[str, int, str]]]:
            rows = iter(files)
            while entries := list(itertools.islice(rows, _PIECE)):
                elsewhere.update((entry.name, entry.uri) for entry in entries if entry.uri != base + entry.name)
                yield [(entry.name, entry.size, entry.version) for entry in entries]

        return cls(base, cls.of_pages(base, pages())._table, elsewhere)

    @classmethod
    def of_pages(cls, base: str, pages: Iterable[Sequence[tuple[str, int, str]]]) -> Entries:
        """Take up name, size and version of files whose URIs are `base` and the name, in any order."""
        pieces, last, in_order = [], b"", True
        for page in _of_a_size(pages):
            names = [name.encode("utf-8", "surrogateescape") for name, _, _ in page]
            in_order = in_order and last <= names[0] and all(map(operator.le, names, names[1:]))
            last = names[-1]
            columns = (names, [size for _, size, _ in page], [_packed(version) for _, _, version in page])
            arrays = [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
            pieces.append(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
        table = pa.Table.from_batches(pieces, schema=_SCHEMA)
        return cls(base, table if in_order else _by_name(table), {})

    def where(self, pattern: str | bytes) -> tuple[Entries, Entries]:
        """The files in whose name a regular expression (as Arrow has them) is found; and the others."""
        mask = self.matches(pattern)
        return self.filtered(mask), self.filtered(~mask)

    def matches(self, pattern: str | bytes) -> np.ndarray:
        """Whether a regular expression (as Arrow has them) is found in each file's name: bool (n,)."""
        # called by name: Arrow makes its functions as it is imported, which a type checker does not see
        options = pc.MatchSubstringOptions(pattern)
        return np.asarray(pc.call_function("match_substring_regex", [self._table["name"]], options), bool)

    def filtered(self, mask: np.ndarray) -> Entries:
        """Those of the n files that a mask, bool (n,), takes."""
        # where all are taken no second table is made
        return self if mask.all() else Entries(self._base, self._table.filter(pa.array(mask)), self._elsewhere)

    def parted(self, *masks: np.ndarray) -> list[Entries]:
        """The files that each of some masks, bool (n,), takes out of this listing, which is empty afterwards: no copy is held."""
        batches, schema = deque(self._table.to_batches()), self._table.schema
        self._table = schema.empty_table()
        taken: list[list[pa.RecordBatch]] = [[] for _ in masks]
        start = 0
        while batches:
            batch = batches.popleft()
            for mask, some in zip(masks, taken, strict=True):
                some.append(batch.filter(pa.array(mask[start : start + len(batch)])))
            start += len(batch)
        return [Entries(self._base, pa.Table.from_batches(some, schema), self._elsewhere) for some in taken]

    def forget(self, count: int) -> None:
        """Give the first `count` files up: the listing is of those after them, and holds no memory for most others."""
        self._table = self._table.slice(count)

    def at(self, places: np.ndarray) -> list[FileEntry]:
        """The files at some places that are near each other, int64 (k,)."""
        if not len(places):
            return []
        first = int(places.min())
        near = self._table.slice(first, int(places.max()) + 1 - first)
        return list(Entries(self._base, near.take(pa.array(places - first)), self._elsewhere))

    def names(self) -> Iterator[str]:
        """All files' names."""
        for batch in self._table.select(["name"]).to_batches(4096):
            yield from map(_text, batch.column(0).to_pylist())

    def with_more(self, more: Sequence[FileEntry]) -> Entries:
        """These files and a few more."""
        if not more:
            return self
        few = Entries.of(self._base, more)
        return Entries(
            self._base,
            _by_name(pa.concat_tables([self._table.cast(_SORTED), few._table.cast(_SORTED)])),
            {**self._elsewhere, **few._elsewhere},
        )

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[FileEntry]:
        for batch in self._table.to_batches(4096):
            columns = (column.to_pylist() for column in batch.columns)
            for name, size, version in zip(*columns, strict=True):
                text = _text(name)
                uri = self._elsewhere.get(text) if self._elsewhere else None
                yield FileEntry(name=text, uri=uri or self._base + text, size=size, version=_unpacked(version))

    @overload
    def __getitem__(self, index: int) -> FileEntry: ...

    @overload
    def __getitem__(self, index: slice) -> list[FileEntry]: ...

    def __getitem__(self, index: int | slice) -> FileEntry | list[FileEntry]:
        if isinstance(index, int):
            return next(iter(self._slice(range(len(self))[index], 1)))
        first, last, step = index.indices(len(self))
        if step != 1:
            raise ValueError(f"only neighbouring files are given at once, got a step of {step}")
        return list(self._slice(first, max(0, last - first)))

    def _slice(self, first: int, count: int) -> Entries:
        return Entries(self._base, self._table.slice(first, count), self._elsewhere)


def _of_a_size(pages: Iterable[Sequence[tuple[str, int, str]]]) -> Iterator[list[tuple[str, int, str]]]:
    """The pages put together, as each piece of a table costs something."""
    rows: list[tuple[str, int, str]] = []
    for page in pages:
        rows += page
        if len(rows) >= _PIECE:
            yield rows
            rows = []
    if rows:
        yield rows


def _by_name(table: pa.Table) -> pa.Table:
    return table.cast(_SORTED).sort_by([("name", "ascending")])


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _packed(version: str) -> bytes:
    return _IS_ETAG + bytes.fromhex(version) if _ETAG.fullmatch(version) else version.encode()


def _unpacked(version: bytes) -> str:
    return version[1:].hex() if version.startswith(_IS_ETAG) else version.decode()
