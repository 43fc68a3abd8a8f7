"""Parquet files on a disk or an object store: each fetch is retried, and a damaged file is a UsageError that names it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from realcustom.errors import UsageError
from realcustom.store import ChunkedFile, Store


class ParquetFile:
    """A Parquet file from which some columns are read."""

    def __init__(self, uri: str | Path, store: Store) -> None:
        """Read the footer.

        Raises:
            MissingFile: the file does not exist.
            UsageError: it is no Parquet file, or the storage refuses (StorageRefused).
        """
        self.uri = str(uri)
        fetched = Fetched(store.open(self.uri, chunk=0))
        with _readable(self.uri):
            self._file = pq.ParquetFile(pa.PythonFile(fetched, mode="r"))

    @property
    def num_rows(self) -> int:
        """Number of rows, from the footer."""
        return int(self._file.metadata.num_rows)

    @property
    def schema(self) -> pa.Schema:
        """The schema, with its metadata."""
        return self._file.schema_arrow

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Rows and uncompressed bytes of each row group, from the footer."""
        metadata = self._file.metadata
        found = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        return [(int(group.num_rows), int(group.total_byte_size)) for group in found]

    def plain_values(self, column: str) -> list[tuple[int, int]]:
        """(start, end) of each row group's values of a column without nesting in lists (`a.b`), bytes in the file, where they lie
        there as they are; (0, 0) where they are compressed, or there is no such column.
        """
        metadata = self._file.metadata
        paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
        if column not in paths:
            return [(0, 0)] * metadata.num_row_groups
        number = paths.index(column)
        return [_plain_range(metadata.row_group(group).column(number)) for group in range(metadata.num_row_groups)]

    def read(self, columns: Sequence[str], use_threads: bool = True) -> pa.Table:
        """Some columns, in that order, decoded by several threads or by this one. Raises UsageError where the file is damaged."""
        with _readable(self.uri):
            return self._file.read(columns=list(columns), use_threads=use_threads).select(list(columns))

    def read_group(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of one row group, in that order. Raises UsageError where the file is damaged."""
        with _readable(self.uri):
            return self._file.read_row_group(group, columns=list(columns)).select(list(columns))


class Fetched(io.RawIOBase):
    """A file of a store as a Python file object, for pyarrow."""

    def __init__(self, file: ChunkedFile) -> None:
        self._file, self._position = file, 0

    def read(self, size: int | None = -1) -> bytes:
        rest = self._file.size - self._position
        data = self._file.read(self._position, rest if size is None or size < 0 else min(size, rest))
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _plain_range(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page or "PLAIN" not in chunk.encodings:
        return 0, 0
    return chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size


@contextlib.contextmanager
def _readable(uri: str) -> Iterator[None]:
    """A context in which pyarrow's errors become a UsageError that names the file.

    Errors of the storage pass unchanged.
    """
    try:
        yield
    except UsageError:
        raise
    except (pa.ArrowInvalid, OSError) as error:  # Arrow raises either for a damaged page
        said = " ".join(str(error).split())  # Arrow's is of several lines
        raise UsageError(f"{uri} is not a readable Parquet file: {said}") from error
