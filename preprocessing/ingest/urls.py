"""Rows of a table of URLs as a source: each fetched, in the table's order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from realcustom.errors import UsageError
from realcustom.preprocessing.engine.unit import InputFile, Unit
from realcustom.preprocessing.errors import DataError, DataFault, RowExcluded
from realcustom.preprocessing.ingest.download import download
from realcustom.preprocessing.ingest.parquet import columns_read, sample_of
from realcustom.preprocessing.ingest.row_groups import row_group
from realcustom.preprocessing.ingest.sample import Entry, Sample, file_faults, raw_bytes
from realcustom.preprocessing.ingest.table_rows import open_large, plain_rows, require_data
from realcustom.preprocessing.ingest.text_table import is_text_table, read_rows
from realcustom.preprocessing.ingest.url_units import url_column
from realcustom.preprocessing.settings import IngestSettings
from realcustom.preprocessing.tables import read_footer
from realcustom.store import Store, refusals

_Row = dict[str, Any]  # by column


def read_urls(unit: Unit, settings: IngestSettings, store: Store) -> Iterator[Entry]:
    """The unit's rows, fetched. The content of a URL may change with time; a row's key and place do not."""
    file = unit.files[0]
    if unit.count is None:
        yield file.name, _why_uncut(file, store)
        return
    keys = [f"{file.name}#{unit.first + index}" for index in range(unit.count)]
    try:
        with file_faults(file.name), refusals("read", file.uri):
            rows = _table_rows(unit, settings, store)
    except DataError as why:
        yield from ((key, why) for key in keys)
        return
    results = download([_url(row, settings) for row in rows], settings, store.retries)
    for key, row, result in zip(keys, rows, results, strict=True):
        yield key, _sample(row, result, settings)


def _why_uncut(file: InputFile, store: Store) -> DataError:
    """Why a table has no rows. Raises where it may still not be read."""
    store.open(file.uri)
    if not is_text_table(file.name):
        try:
            store.call(read_footer, file.uri)
        except pa.ArrowInvalid:
            return DataError(DataFault.TORN_TABLE, "not a readable Parquet file: its footer is damaged")
    message = "it could not be read when the job began, and can be now: run again"
    return DataError(DataFault.UNREADABLE_FILE, message)


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
        return list(_read_parquet(unit, settings, store))
    except (pa.ArrowInvalid, OSError) as error:
        require_data(error)
        raise DataError(DataFault.TORN_TABLE, f"the rows cannot be read: {error}") from error


def _url(row: _Row | DataError, settings: IngestSettings) -> bytes | None:
    name = None if isinstance(row, DataError) else url_column(row, settings)
    value = None if isinstance(row, DataError) or name is None else row[name]
    return raw_bytes(value) if isinstance(value, str) else value if isinstance(value, bytes) else None


def _read_parquet(unit: Unit, settings: IngestSettings, store: Store) -> Iterator[_Row | DataError]:
    """The unit's rows, from the row groups that hold them. What of a group cannot be read is a fault of each of its rows."""
    uri = unit.files[0].uri
    table = open_large(uri, store)
    columns = columns_read(table.schema_arrow.names, settings)
    start, end = 0, unit.first + (unit.count or 0)
    for group in range(table.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        low, high = max(unit.first, start) - start, min(end, start + count) - start
        if low < high:
            found = row_group(uri, store, group, columns)
            rows = found.rows.slice(low, high - low)
            yield from plain_rows(rows)
            if found.broken is not None:
                yield from [found.broken] * (high - low - rows.num_rows)
        start += count
