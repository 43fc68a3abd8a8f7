"""Cells of records, read by row groups: a column of a group is fetched at its first use and held while there is memory."""

from __future__ import annotations

from collections import OrderedDict

import pyarrow as pa

from realcustom.parquet import ParquetFile
from realcustom.store import Store
from realcustom.training.index import RecordIndex

OPEN_FILES = 32  # whose footers are held


class RowGroups:
    """Columns of row groups, the latest used ones."""

    def __init__(self, index: RecordIndex, limit: int, store: Store) -> None:
        """Hold at most `limit` bytes, which may be changed; the column that was read last is always held."""
        self._index, self.limit, self._store = index, limit, store
        self._files: OrderedDict[int, ParquetFile] = OrderedDict()
        self._columns: OrderedDict[tuple[int, str], pa.ChunkedArray] = OrderedDict()
        self.held = 0  # bytes

    def cell(self, number: int, column: str) -> pa.Scalar:
        """A cell of record `number`. Raises UsageError where its file is damaged."""
        group, row = self._index.group_of(number)
        found = self._columns.get((group, column))
        if found is None:
            found = self._read(group, column)
        self._columns.move_to_end((group, column))
        return found[row]

    def _read(self, group: int, column: str) -> pa.ChunkedArray:
        file, within = self._index.file_of(group)
        read = self._open(file).read_group(within, [column])[column]
        self.held += read.nbytes
        while self._columns and self.held > self.limit:
            _, oldest = self._columns.popitem(last=False)
            self.held -= oldest.nbytes
        self._columns[group, column] = read
        return read

    def _open(self, file: int) -> ParquetFile:
        if file not in self._files:
            self._files[file] = ParquetFile(self._index.files[file], self._store)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(file)
        return self._files[file]
