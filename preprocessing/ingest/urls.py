"""Rows of a table of URLs as a source: each fetched, in the table's order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import DataError, DataFault, RowExcluded
from realcustom.preprocessing.ingest.download import download
from realcustom.preprocessing.ingest.parquet import columns_read, sample_of
from realcustom.preprocessing.ingest.sample import Entry, Sample, raw_bytes
from realcustom.preprocessing.ingest.table_rows import plain_rows
from realcustom.preprocessing.ingest.text_table import is_text_table, read_rows
from realcustom.preprocessing.ingest.url_units import url_column
from realcustom.preprocessing.settings import IngestSettings
from realcustom.store import Store

_Row = dict[str, Any]  # by column
_BUFFER = 2**23  # bytes of a column that are fetched at a time


def read_urls(unit: Unit, settings: IngestSettings, store: Store) -> Iterator[Entry]:
    """The unit's rows, fetched. The content of a URL may change with time; a row's key and place do not."""
    file = unit.files[0]
    if unit.count is None:
        yield file.name, DataError(DataFault.TORN_TABLE, "not a readable Parquet file: its footer is damaged")
        return
    keys = [f"{file.name}#{unit.first + index}" for index in range(unit.count)]
    try:
        rows = _table_rows(unit, settings, store)
    except DataError as why:
        yield from ((key, why) for key in keys)
        return
    results = download([_url(row, settings) for row in rows], settings, store.retries)
    for key, row, result in zip(keys, rows, results, strict=True):
        yield key, _sample(row, result, settings)


def _sample(row: _Row | DataError, result: bytes | RowExcluded, settings: IngestSettings) -> Sample | RowExcluded:
    if isinstance(row, RowExcluded):
        return row
    if isinstance(result, RowExcluded):
        return result
    try:
        return sample_of(result, row, None, settings)
    except RowExcluded as why:
        return why


def _table_rows(unit: Unit, settings: IngestSettings, store: Store) -> list[_Row | DataError]:
    """The unit's rows. Raises DataError if the table is torn there; errors of the storage pass unchanged."""
    assert unit.count is not None, "a torn table has no rows"
    uri = unit.files[0].uri
    if is_text_table(unit.files[0].name):
        rows: list[_Row | DataError] = list(read_rows(uri, store, settings.columns, unit.byte_range))
        size = store.size(uri)
        if size != unit.files[0].size or len(rows) != unit.count:
            raise UsageError(f"{uri} was changed while it was read ({unit.files[0].size} bytes, now {size}): run again")
        return rows
    try:
        with _open(uri) as source:
            return list(_read_parquet(unit, source, settings))
    except (pa.ArrowInvalid, OSError):  # an error of the storage or broken data; from memory it can only be broken data
        data = store.read(uri)
    try:
        return list(_read_parquet(unit, pa.BufferReader(data), settings))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(DataFault.TORN_TABLE, f"the rows cannot be read: {error}") from error


def _open(uri: str) -> pa.NativeFile:
    """A file with random access."""
    filesystem, path = storage.open_filesystem(uri)
    return filesystem.open_input_file(path)


def _url(row: _Row | DataError, settings: IngestSettings) -> bytes | None:
    name = None if isinstance(row, DataError) else url_column(row, settings)
    value = None if isinstance(row, DataError) or name is None else row[name]
    return raw_bytes(value) if isinstance(value, str) else value if isinstance(value, bytes) else None


def _read_parquet(unit: Unit, source: pa.NativeFile, settings: IngestSettings) -> Iterator[_Row | DataError]:
    """The unit's rows, from the row groups that hold them, each read from its start to the unit's last row."""
    table = pq.ParquetFile(source, buffer_size=_BUFFER)
    columns = columns_read(table.schema_arrow.names, settings)
    start, end = 0, unit.first + (unit.count or 0)
    for group in range(table.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        if max(unit.first, start) < min(end, start + count):
            first = start
            for batch in table.iter_batches(64, row_groups=[group], columns=columns, use_threads=False):
                low, high = max(unit.first, first), min(end, first + len(batch))
                if low < high:
                    yield from plain_rows(pa.Table.from_batches([batch.slice(low - first, high - low)]))
                first += len(batch)
                if first >= end:
                    break
        start += count
