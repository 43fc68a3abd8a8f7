"""Cells of records, read by row groups: a column of a group is fetched at its first use and held while there is memory. The
image features of views, which may lie in any file, are read one by one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool

import numpy as np
import pyarrow as pa

from realcustom.errors import MissingFile, UsageError
from realcustom.parquet import ParquetFile
from realcustom.store import StorageRefused, Store
from realcustom.training.index import IMAGES, RecordIndex

OPEN_FILES = 32  # whose footers are held
LENGTH = 4  # bytes of a value's length in a file, before it
ALONE_FROM = 2**12  # bytes of a value that is read by itself; more than the head of a page has
READERS = 8  # values that are read at a time: an object store answers slowly


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

    def images_alone(self, numbers: Iterable[int], size: int) -> dict[int, bytes]:
        """The data of the image features of some records, each of `size` bytes and read by itself, several at a time. Left out
        are records whose row group is held, and those of which the index does not tell the place.
        """
        wanted = [number for number in numbers if (self._index.group_of(number)[0], IMAGES) not in self._columns]
        places = {number: self._place(number, size) for number in sorted(wanted)}
        alone = [(number, place, size) for number, place in places.items() if place]
        if not alone:
            return {}
        with ThreadPool(min(READERS, len(alone))) as readers:  # of daemons, for which Python's end does not wait
            found = readers.starmap(self._image, alone)
        return {number: data for (number, *_), data in zip(alone, found, strict=True) if data is not None}

    def _place(self, number: int, size: int) -> int:
        """Where in its file the length of a record's image features stands, which are behind it; 0 where a place cannot be told:
        the values of its row group are compressed, some are missing, or they are no single page.
        """
        group, row = self._index.group_of(number)
        start, end = int(self._index.image_start[group]), int(self._index.image_end[group])
        rows = int(self._index.group_row[group + 1] - self._index.group_row[group])
        first = end - rows * (LENGTH + size)
        return first + row * (LENGTH + size) if size >= ALONE_FROM and 0 < first - start < ALONE_FROM else 0

    def _image(self, number: int, place: int, size: int) -> bytes | None:
        """The `size` bytes behind a length in a record's file; None where it is not that length."""
        file, _ = self._index.file_of(self._index.group_of(number)[0])
        try:
            data = self._store.open(self._index.files[file], chunk=0).read(place, LENGTH + size)
        except MissingFile:  # said where the row group is read instead
            return None
        good = len(data) == LENGTH + size and data[:LENGTH] == size.to_bytes(LENGTH, "little")
        return data[LENGTH:] if good else None

    def _read(self, group: int, column: str) -> pa.ChunkedArray:
        file, within = self._index.file_of(group)
        try:
            read = self._open(file).read_group(within, [column])[column]
        except (StorageRefused, RecordsChanged):
            raise
        except UsageError:  # damaged, or removed or written over since its footer was read: to open it again tells
            self._files.pop(file, None)
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
        way_out = "put the records back as they were, or begin another run with another --output"
        try:
            opened = ParquetFile(uri, self._store)
        except MissingFile as error:
            raise RecordsChanged(f"{uri} was removed after this run began; {way_out}") from error
        if opened.groups != list(zip(rows, sizes, strict=True)):
            raise RecordsChanged(f"{uri} was written over after this run began: it has other row groups; {way_out}")
        return opened
