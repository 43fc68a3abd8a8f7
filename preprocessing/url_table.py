"""Rows of a table of URLs as a source: each fetched, in the table's order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.csv_table import read_rows
from preprocessing.download import download
from preprocessing.entry import Entry, Fault, Sample, Unwanted, optional_text, read
from preprocessing.errors import DataError, DataFault, RowDropped
from preprocessing.settings import ExecutionSettings, IngestSettings
from preprocessing.source_table import texts_as_bytes
from preprocessing.unit import Unit
from realcustom import storage


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row as the table holds it."""

    url: bytes | None
    caption: bytes | None
    view_group: bytes | None


def read_urls(unit: Unit, settings: IngestSettings, execution: ExecutionSettings) -> Iterator[Entry]:
    """The unit's rows, fetched. What a URL gives may change with time: only a row's key and place do not."""
    file = unit.files[0]
    if unit.count is None:
        message = "not a readable Parquet file: its footer is damaged"
        yield Fault(key=file.name, fault=DataFault.TORN_TABLE, message=message)
        return
    keys = [f"{file.name}#{unit.first + index}" for index in range(unit.count)]
    try:
        rows = _table_rows(unit, settings, execution)
    except (pa.ArrowInvalid, OSError) as error:
        for key in keys:
            yield Fault(key=key, fault=DataFault.TORN_TABLE, message=f"the rows cannot be read: {error}")
        return
    results = download([row.url for row in rows], settings, execution)
    for key, row, result in zip(keys, rows, results, strict=True):
        try:
            if not isinstance(result, bytes):
                raise result
            caption, group = optional_text(row.caption), optional_text(row.view_group)
            yield Sample(key=key, data=result, alt_text=caption, view_group=group)
        except DataError as error:
            yield Fault(key=key, fault=error.fault, message=error.message)
        except RowDropped as rule:
            yield Unwanted(key=key, reason=rule.reason, message=rule.message)


def _table_rows(unit: Unit, settings: IngestSettings, execution: ExecutionSettings) -> list[_Row]:
    file = unit.files[0]
    try:
        with _open(file.uri) as source:
            return list(_rows(unit, source, settings, execution))
    except OSError:  # the storage's fault, or broken data: from memory it can only be the latter
        data = read(file.uri, execution)
        return list(_rows(unit, pa.BufferReader(data), settings, execution))


def _open(uri: str) -> pa.NativeFile:
    """A file opened for reading at any place."""
    filesystem, path = storage.open_filesystem(uri)
    return filesystem.open_input_file(path)


def _rows(unit: Unit, source: pa.NativeFile, settings: IngestSettings, execution: ExecutionSettings) -> Iterator[_Row]:
    assert unit.count is not None, "a torn table has no rows"
    columns = (settings.url_column, settings.caption_column, "view_group")
    end = unit.first + unit.count
    if unit.files[0].name.endswith(".csv"):
        for number, row in enumerate(read_rows(unit.files[0].uri, execution)):
            if number >= end:
                return
            if number >= unit.first:
                yield _row([row.get(name) if name is not None else None for name in columns])
        return
    for data in _read_parquet(unit, source, [name for name in columns if name is not None]):
        yield _row([data.get(name) if name is not None else None for name in columns])


def _row(values: list[str | bytes | None]) -> _Row:
    url, caption, group = (
        value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value for value in values
    )
    return _Row(url=url, caption=caption, view_group=group)


def _read_parquet(unit: Unit, source: pa.NativeFile, columns: list[str]) -> Iterator[dict[str, bytes | None]]:
    """The unit's rows, from the row groups that hold them."""
    table = pq.ParquetFile(source)
    columns = [name for name in columns if name in table.schema_arrow.names]
    start, end = 0, unit.first + (unit.count or 0)
    for group in range(table.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        low, high = max(unit.first, start), min(end, start + count)
        if low < high:
            rows = table.read_row_group(group, columns=columns, use_threads=False).slice(low - start, high - low)
            yield from texts_as_bytes(rows).to_pylist()
        start += count
