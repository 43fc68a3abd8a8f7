"""Parquet tables that hold their pictures as a source."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.parquet import Fetched
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.unit import Unit, UnitKind, identity_of
from realcustom.preprocessing.errors import DataError, DataFault, RowExcluded
from realcustom.preprocessing.ingest.columns import CAPTIONS, IMAGES, URLS, by_rule, find_column, texts_of
from realcustom.preprocessing.ingest.other_columns import to_json
from realcustom.preprocessing.ingest.sample import Entry, Sample, optional_text, raw_bytes, text_of, too_large
from realcustom.preprocessing.inputs import file_unit
from realcustom.preprocessing.settings import IngestSettings
from realcustom.storage import FileEntry
from realcustom.store import Store

UNIT_BYTES = 2**26  # bytes of a large table that make a unit; a worker takes some six times as many
_BUFFER = 2**20  # bytes of a column of a large table that are fetched at a time
_BATCH = 64  # rows of it that are read at a time
VIEW_GROUP = "view_group"  # column of any table: pictures of one group show the same subject


def read_table(unit: Unit, settings: IngestSettings, store: Store) -> Iterator[Entry]:
    """The unit's rows in the table's order. What of a row group cannot be read is a fault of each of its rows; a torn file
    is one fault."""
    file = unit.files[0]
    try:
        table = _opened(unit, store)
    except (pa.ArrowInvalid, OSError) as error:
        _require_data(error)
        yield file.name, DataError(DataFault.TORN_TABLE, f"not a readable Parquet file: {error}")
        return
    check_source_table(table.schema_arrow, settings, file.name)
    image = image_column(table.schema_arrow, settings)
    assert image is not None, "checked above"
    for number, row in _rows(table, unit, columns_read(table.schema_arrow.names, settings)):
        key = f"{file.name}#{number}"
        try:
            yield key, row if isinstance(row, DataError) else _sample(row, image, settings)
        except RowExcluded as why:
            yield key, why


def table_units(entry: FileEntry, store: Store) -> list[Unit]:
    """A table as one unit, or a large one as units of some of its rows, so that the memory of a unit is bounded."""
    whole = file_unit(entry, UnitKind.TABLE)
    if entry.size <= 2 * UNIT_BYTES:
        return [whole]
    try:
        rows = store.call(tables.read_footer, entry.uri).num_rows
    except pa.ArrowInvalid:  # reported where it is read
        return [whole]
    count = max(1, math.ceil(rows * UNIT_BYTES / entry.size))
    return [
        replace(
            whole,
            name=f"{whole.name}-{number:06d}",
            identity=identity_of(entry.size, entry.version, first, count),
            first=first,
            count=min(count, rows - first),
        )
        for number, first in enumerate(range(0, rows, count))
    ]


def _opened(unit: Unit, store: Store) -> pq.ParquetFile:
    """The table: in memory where the unit is all of it, else its bytes fetched as they are needed."""
    uri = unit.files[0].uri
    if unit.count is None:
        return pq.ParquetFile(pa.BufferReader(store.read(uri)))
    # a page may hold a thousand pictures, and a Python file copies what it reads
    filesystem, path = storage.open_filesystem(uri)
    remote = storage.is_remote(uri)
    source = pa.PythonFile(Fetched(store.open(uri, chunk=0)), mode="r") if remote else filesystem.open_input_file(path)
    return pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False)


def _rows(
    table: pq.ParquetFile, unit: Unit, columns: list[str] | None
) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """The unit's rows with their numbers, a few in memory at a time."""
    first, last = unit.first, table.metadata.num_rows if unit.count is None else unit.first + unit.count
    start = 0
    for group in range(table.num_row_groups):
        end = start + table.metadata.row_group(group).num_rows
        number = max(start, first)
        try:
            if number < min(end, last):
                for at, batch in _batches(table, group, start, columns):
                    low, high = max(number, at) - at, min(last - at, len(batch))
                    own = batch.slice(low, high - low) if low < high else batch.slice(0, 0)
                    for row in plain_rows(pa.Table.from_batches([own])):
                        yield number, row
                        number += 1
                    if at + len(batch) >= last:
                        break
        except (pa.ArrowInvalid, OSError) as error:
            _require_data(error)
            torn = DataError(DataFault.TORN_TABLE, f"row group {group} is broken: {error}")
            yield from ((missing, torn) for missing in range(number, min(end, last)))
        start = end


def _batches(
    table: pq.ParquetFile, group: int, start: int, columns: list[str] | None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """A row group in pieces, each with the number of its first row."""
    for batch in table.iter_batches(_BATCH, row_groups=[group], columns=columns, use_threads=False):
        yield start, batch
        start += len(batch)


def _require_data(error: Exception) -> None:
    """Raise the error again unless it is about the bytes: one of the disk or the store has a number or names that."""
    if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
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
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def image_column(schema: pa.Schema, settings: IngestSettings) -> str | None:
    """The column of pictures: of the usual names the first that holds bytes, else the first. None: there is none."""
    found = find_column(schema.names, settings.image_column, IMAGES)
    if settings.image_column != IMAGES[0] or (found is not None and holds_bytes(schema.field(found).type)):
        return found
    with_bytes = [name for name in schema.names if holds_bytes(schema.field(name).type)]
    return find_column(with_bytes, settings.image_column, IMAGES) or found


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type can be encoded pictures: bytes, or a struct with a field of them."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def check_source_table(schema: pa.Schema, settings: IngestSettings, where: str) -> None:
    """Raise UsageError if the columns that the settings name are not in the table, or not of a usable type."""
    name = image_column(schema, settings)
    if name is None:
        require_column(schema.names, settings.image_column, "image_column", where)
    require_texts(schema, settings, where)
    kind = schema.field(name).type
    if not (holds_bytes(kind) or is_text_type(kind)):
        raise UsageError(f"{where}: ingest.image_column='{name}' holds {kind}, not encoded pictures")


def require_texts(schema: pa.Schema, settings: IngestSettings, where: str) -> None:
    """Raise UsageError if captions or view groups, where the settings name them, are not text; or a kept column is missing."""
    for kept in settings.keep_columns or ():
        require_column(schema.names, kept, "keep_columns", where)
    caption = find_column(schema.names, settings.caption_column, CAPTIONS)
    if caption is None and settings.caption_column is not None:
        require_column(schema.names, settings.caption_column, "caption_column", where)
    for name in (caption, VIEW_GROUP):
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if name == caption and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            kind = kind.value_type
        if not (is_text_type(kind) or pa.types.is_null(kind)):
            raise UsageError(f"{where}: the column '{name}' holds {schema.field(name).type}, expected text")


def columns_read(columns: list[str], settings: IngestSettings) -> list[str] | None:
    """Those of a table's columns that are read; None: all."""
    if settings.keep_columns is None:
        return None
    usual = ((settings.image_column, IMAGES), (settings.url_column, URLS), (settings.caption_column, CAPTIONS))
    own = [find_column(columns, wanted, names) for wanted, names in usual]
    return [name for name in columns if name in (*own, *IMAGES, VIEW_GROUP, *settings.keep_columns)]


def require_column(columns: list[str], name: str, setting: str, where: str) -> None:
    """Raise UsageError that names the columns there are if `name`, which a setting gives, is not among them."""
    if name not in columns:
        hint = " (null where there are no captions)" if setting == "caption_column" else ""
        raise UsageError(
            f"{where} has no column '{name}' but {', '.join(columns)}; --set preprocess.ingest.{setting}=NAME says "
            f"which it is{hint}"
        )


def _sample(row: dict[str, Any], image: str, settings: IngestSettings) -> Sample:
    value = row[image]
    data = value["bytes"] if isinstance(value, dict) else value
    if data is None:
        named = f", for it names the file {value['path']}" if isinstance(value, dict) and value.get("path") else ""
        raise DataError(DataFault.MISSING_IMAGE, f"'{image}' holds no bytes{named}" if named else f"'{image}' is null")
    if isinstance(data, str):
        data = from_base64(data)
    if len(data) > settings.max_bytes:
        raise too_large(len(data), settings)
    return sample_of(data, row, image, settings)


def from_base64(text: str) -> bytes:
    """The bytes of a picture in base64, with or without `data:...,` before it. Raises DataError if it is none."""
    try:
        return base64.b64decode("".join(text.removeprefix(text[: text.find(",") + 1]).split()), validate=True)
    except ValueError as error:
        raise DataError(DataFault.UNREADABLE_IMAGE, f"the picture is no base64: {error}") from error


def sample_of(data: bytes, row: dict[str, Any], image: str | None, settings: IngestSettings) -> Sample:
    """The picture `data` with the texts of its row. Raises DataError if the caption is not UTF-8.

    Args:
        image: the column that the picture came from; None: another file.
    """
    caption = find_column(row, settings.caption_column, CAPTIONS)
    known, keep = (image, caption, VIEW_GROUP), settings.keep_columns
    others = {name: value for name, value in row.items() if name not in known and (keep is None or name in keep)}
    captions = texts_of(row[caption], f"'{caption}'") if caption is not None else []
    alt_text, more = by_rule([text_of(raw_bytes(text)) for text in captions], settings.caption_rule)
    return Sample(
        data=data,
        alt_text=alt_text,
        captions=more,
        view_group=optional_text(row.get(VIEW_GROUP)),
        columns=to_json(others),
    )
