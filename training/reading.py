"""Cells of records, read by row groups: a column of a group is fetched at its first use and held while there is memory."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pyarrow as pa

from realcustom.errors import MissingFile, UsageError
from realcustom.parquet import ParquetFile
from realcustom.store import StorageRefused, Store
from realcustom.training.index import RecordIndex

OPEN_FILES = 32  # whose footers are held


class RecordsChanged(UsageError):
    """Records are not those that the run began with."""


class RowGroups:
    """Columns of row groups, the latest used ones."""

    def __init__(self, index: RecordIndex, limit: int, store: Store) -> None:
        """Hold at most `limit` bytes, which may be changed; the column that was read last is always held."""
        self._index, self.limit, self._store = index, limit, store
        self._files: OrderedDict[int, ParquetFile] = OrderedDict()
        self._columns: OrderedDict[tuple[int, str], pa.ChunkedArray] = OrderedDict()
        self.held = 0  # bytes

    def cell(self, number: int, column: str) -> pa.Scalar:
        """A cell of record `number`. Raises UsageError where its file is damaged, RecordsChanged where it is another one than
        the index is of.
        """
        group, row = self._index.group_of(number)
        found = self._columns.get((group, column))
        if found is None:
            found = self._read(group, column)
        self._columns.move_to_end((group, column))
        return found[row]

    def _read(self, group: int, column: str) -> pa.ChunkedArray:
        file, within = self._index.file_of(group)
        try:
            read = self._open(file).read_group(within, [column])[column]
        except (StorageRefused, MissingFile, RecordsChanged):
            raise
        except UsageError:  # damaged, or written over since its footer was read
            del self._files[file]
            self._open(file)
            raise
        self.held += read.nbytes
        while self._columns and self.held > self.limit:
            _, oldest = self._columns.popitem(last=False)
            self.held -= oldest.nbytes
        self._columns[group, column] = read
        return read

    def _open(self, file: int) -> ParquetFile:
        if file not in self._files:
            self._files[file] = self._same(file)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(file)
        return self._files[file]

    def _same(self, file: int) -> ParquetFile:
        """A file, with its footer as it is now: with the row groups of the index."""
        index, uri = self._index, self._index.files[file]
        first, end = (int(np.searchsorted(index.group_file, file, side=side)) for side in ("left", "right"))
        rows, sizes = np.diff(index.group_row[first : end + 1]).tolist(), index.group_bytes[first:end].tolist()
        opened = ParquetFile(uri, self._store)
        if opened.groups != list(zip(rows, sizes, strict=True)):
            raise RecordsChanged(
                f"{uri} was written over after this run began: it has other row groups; put the records back as they were, "
                "or begin another run with another --output"
            )
        return opened
