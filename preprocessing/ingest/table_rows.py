"""Rows of a Parquet table as Python objects, a few in memory at a time, from any row on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.parquet import Fetched
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import DataError, DataFault
from realcustom.store import Store

_BUFFER = 2**20  # bytes of a column of a large table that are fetched at a time
_BATCH_ROWS, _BATCH_BYTES = 64, 2**24  # of it that are read at a time, at most
Rows = Iterator[tuple[int, dict[str, Any] | DataError]]  # with their numbers; by column, or why a row cannot be read


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A table that is being read."""

    schema: pa.Schema
    ends: frozenset[int]  # the numbers of rows with which row groups end
    rows: Rows  # from some row on


class TableReader:
    """Reads the rows of units.

    Parquet has no way to a row within a row group but from the group's start. A unit that begins where the last one ended, as
    those of a worker mostly do, goes on where that one stopped: a table in one row group is read once, not once a unit.
    """

    def __init__(self, store: Store):
        self._store = store
        self._left: tuple[str, int, _Opened] | None = None  # a table's URI, and its next row

    def read(self, unit: Unit, columns: Callable[[pa.Schema], list[str] | None]) -> tuple[pa.Schema, Rows]:
        """The schema of a unit's table, and the unit's rows.

        Args:
            columns: those that are read of a table with this schema; None: all.
        Raises:
            pa.ArrowInvalid, OSError: it cannot be opened; `require_data` tells whether its bytes are why.
        """
        uri = unit.files[0].uri
        left, self._left = self._left, None
        if left is not None and left[:2] == (uri, unit.first):
            return left[2].schema, self._those_of(unit, left[2])
        file = _open(unit, self._store)
        groups = (file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
        rows = _rows(file, unit.first, columns(file.schema_arrow))
        table = _Opened(schema=file.schema_arrow, ends=frozenset(itertools.accumulate(groups)), rows=rows)
        return table.schema, self._those_of(unit, table)

    def _those_of(self, unit: Unit, table: _Opened) -> Rows:
        yield from itertools.islice(table.rows, unit.count)
        end = unit.first + (unit.count or 0)
        if unit.count is not None and end not in table.ends:
            self._left = unit.files[0].uri, end, table


def _open(unit: Unit, store: Store) -> pq.ParquetFile:
    """The table: in memory where the unit is all of it, else its bytes fetched as they are needed."""
    uri = unit.files[0].uri
    return pq.ParquetFile(pa.BufferReader(store.read(uri))) if unit.count is None else open_large(uri, store)


def open_large(uri: str, store: Store) -> pq.ParquetFile:
    """A table whose bytes are fetched as they are needed. Raises as TableReader.read."""
    # a page may hold a thousand pictures, and a Python file copies what it reads
    filesystem, path = storage.open_filesystem(uri)
    remote = storage.is_remote(uri)
    source = pa.PythonFile(Fetched(store.open(uri, chunk=0)), mode="r") if remote else filesystem.open_input_file(path)
    return pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False)


def _rows(table: pq.ParquetFile, first: int, columns: list[str] | None) -> Rows:
    """The rows from number `first` on. Of a row group that breaks off, each row that is missing is a fault."""
    start = 0
    for group in range(table.num_row_groups):
        end = start + table.metadata.row_group(group).num_rows
        number = max(start, first)
        try:
            if number < end:
                for at, batch in _batches(table, group, start, columns):
                    own = batch.slice(min(number - at, len(batch)))
                    for row in plain_rows(pa.Table.from_batches([own])):
                        yield number, row
                        number += 1
        except (pa.ArrowInvalid, OSError) as error:
            require_data(error)
            torn = DataError(DataFault.TORN_TABLE, f"row group {group} is broken: {error}")
            yield from ((missing, torn) for missing in range(number, end))
        start = end


def _batches(
    table: pq.ParquetFile, group: int, start: int, columns: list[str] | None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """A row group in pieces, each with the number of its first row."""
    size = table.metadata.row_group(group)
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * size.num_rows // max(1, size.total_byte_size)))
    for batch in table.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
        yield start, batch
        start += len(batch)


def require_data(error: Exception) -> None:
    """Raise the error again unless it is about the bytes: one of the disk or the store has a number or names that."""
    of_storage = isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error))
    if of_storage or isinstance(error, UsageError):
        raise error


def plain_rows(table: pa.Table) -> Iterator[dict[str, Any] | DataError]:
    """The rows as Python objects. Arrow has not checked that texts are UTF-8: invalid bytes come as surrogates."""
    names = table.schema.names
    texts = [name for name, field in zip(names, table.schema, strict=True) if is_text_type(field.type)]
    for name in texts:
        column = table[name]
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        column = column.cast(kind, safe=False).cast(pa.large_binary())
        table = table.set_column(names.index(name), name, column)
    for batch in table.to_batches(max_chunksize=64):  # rows that become Python objects at a time
        for row in _to_pylist(batch):
            if isinstance(row, dict):
                row |= {name: row[name].decode("utf-8", "surrogateescape") for name in texts if row[name] is not None}
            yield row


def _to_pylist(batch: pa.RecordBatch) -> list[dict[str, Any] | DataError]:
    try:
        rows: list[dict[str, Any] | DataError] = batch.to_pylist()
        return rows
    except (ValueError, OverflowError):  # of one value somewhere
        return [_row(batch.slice(index, 1)) for index in range(len(batch))]


def _row(batch: pa.RecordBatch) -> dict[str, Any] | DataError:
    """The row of a batch of one. A value without a Python type is given as Arrow's text of it."""
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[0].as_py()
        except UnicodeDecodeError as error:  # of a text inside a list or struct
            return DataError(DataFault.UNREADABLE_TEXT, f"a text in a list or struct is not UTF-8: {error}")
        except (ValueError, OverflowError):  # a time beyond the year 9999, or of a zone that nobody knows
            row[name] = _as_text(column)
    return row


def _as_text(column: pa.Array) -> str:
    """The only value of a column as text."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp(column.type.unit))  # in UTC: the time zone may be invalid
    try:
        return str(column.cast(pa.string())[0].as_py())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return " ".join(column.to_string().split())


def is_text_type(kind: pa.DataType) -> bool:
    """Whether an Arrow type is text, as it is or by a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
