"""A listing of very many files, as columns: some 100 bytes a file instead of 500."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

import pyarrow as pa
import pyarrow.compute as pc

from realcustom.storage import FileEntry

_PIECE = 65_536  # files that are taken up, or given out, at a time
_COLUMNS = (("name", pa.large_binary()), ("size", pa.int64()), ("version", pa.large_string()))


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
        pieces, columns = [], ([], [], [])  # type: ignore[var-annotated]
        last, in_order = b"", True
        for entry in files:
            name = entry.name.encode("utf-8", "surrogateescape")
            in_order, last = in_order and last <= name, name
            for column, value in zip(columns, (name, entry.size, entry.version), strict=True):
                column.append(value)
            if entry.uri != base + entry.name:
                elsewhere[entry.name] = entry.uri
            if len(columns[0]) == _PIECE:
                pieces.append(_piece(columns))
                columns = ([], [], [])
        table = pa.Table.from_batches([*pieces, _piece(columns)])
        if not in_order:
            table = table.take(pc.sort_indices(table, sort_keys=[("name", "ascending")]))
        return cls(base, table, elsewhere)

    def where(self, keep: Callable[[str], bool]) -> tuple[Entries, list[FileEntry]]:
        """The files whose name is to be kept; and the others, one by one, as they are expected to be few."""
        masks, others = [], []
        for batch in self._table.to_batches(_PIECE):
            mask = [keep(_text(name)) for name in batch["name"].to_pylist()]
            masks.append(pa.array(mask, pa.bool_()))
            if not all(mask):
                left = pa.Table.from_batches([batch.filter(pc.invert(masks[-1]))])
                others += Entries(self._base, left, self._elsewhere)
        if not others:
            return self, []
        return Entries(self._base, self._table.filter(pa.chunked_array(masks)), self._elsewhere), others

    def with_more(self, more: Sequence[FileEntry]) -> Entries:
        """These files and a few more."""
        if not more:
            return self
        few = Entries.of(self._base, more)
        table = pa.concat_tables([self._table, few._table])
        table = table.take(pc.sort_indices(table, sort_keys=[("name", "ascending")]))
        return Entries(self._base, table, {**self._elsewhere, **few._elsewhere})

    def __len__(self) -> int:
        return self._table.num_rows

    def __iter__(self) -> Iterator[FileEntry]:
        for batch in self._table.to_batches(4096):
            columns = (batch[name].to_pylist() for name, _ in _COLUMNS)
            for name, size, version in zip(*columns, strict=True):
                text = _text(name)
                uri = self._elsewhere.get(text) if self._elsewhere else None
                yield FileEntry(name=text, uri=uri or self._base + text, size=size, version=version)

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


def _piece(columns: Sequence[list[object]]) -> pa.RecordBatch:
    arrays = [pa.array(values, kind) for values, (_, kind) in zip(columns, _COLUMNS, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=[name for name, _ in _COLUMNS])


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
