"""Parquet tables that hold their pictures as a source."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from realcustom.errors import UsageError
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import DataError, DataFault, RowExcluded
from realcustom.preprocessing.ingest.sample import Entry, Sample, optional_text, too_large
from realcustom.preprocessing.settings import IngestSettings
from realcustom.store import Store

VIEW_GROUP = "view_group"  # column of any table: pictures of one group show the same subject


def read_table(unit: Unit, settings: IngestSettings, store: Store) -> Iterator[Entry]:
    """The rows of a table in its order. A broken row group is a fault of each of its rows; a torn file is one fault."""
    file = unit.files[0]
    data = store.read(file.uri)
    try:
        table = pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as error:  # from memory: an OSError is about the bytes
        yield file.name, DataError(DataFault.TORN_TABLE, f"not a readable Parquet file: {error}")
        return
    check_source_table(table.schema_arrow, settings, file.name)
    columns = columns_read(table.schema_arrow.names, settings)
    first = 0
    for group in range(table.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        keys = [f"{file.name}#{first + index}" for index in range(count)]
        first += count
        try:
            rows = table.read_row_group(group, columns=columns, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            torn = DataError(DataFault.TORN_TABLE, f"row group {group} is broken: {error}")
            yield from ((key, torn) for key in keys)
            continue
        for key, row in zip(keys, plain_rows(rows), strict=True):
            try:
                yield key, row if isinstance(row, DataError) else _sample(row, settings)
            except RowExcluded as why:
                yield key, why


def plain_rows(table: pa.Table) -> Iterator[dict[str, Any] | DataError]:
    """The rows as Python objects. Arrow has not checked that texts are UTF-8: invalid bytes come as surrogates."""
    names = table.schema.names
    texts = [name for name, field in zip(names, table.schema, strict=True) if _is_text(field.type)]
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


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def check_source_table(schema: pa.Schema, settings: IngestSettings, where: str) -> None:
    """Raise UsageError if the columns that the settings name are not in the table, or not of a usable type."""
    require_column(schema.names, settings.image_column, "image_column", where)
    require_texts(schema, settings, where)
    kind = schema.field(settings.image_column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UsageError(f"{where}: ingest.image_column='{settings.image_column}' holds {kind}, not encoded pictures")


def require_texts(schema: pa.Schema, settings: IngestSettings, where: str) -> None:
    """Raise UsageError if captions or view groups, where the settings name them, are not text; or a kept column is missing."""
    for kept in settings.keep_columns or ():
        require_column(schema.names, kept, "keep_columns", where)
    if settings.caption_column is not None:
        require_column(schema.names, settings.caption_column, "caption_column", where)
    for name in (settings.caption_column, VIEW_GROUP):
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if not (_is_text(kind) or pa.types.is_null(kind)):
            raise UsageError(f"{where}: the column '{name}' holds {kind}, expected text")


def columns_read(columns: list[str], settings: IngestSettings) -> list[str] | None:
    """Those of a table's columns that are read; None: all."""
    if settings.keep_columns is None:
        return None
    own = (settings.image_column, settings.url_column, settings.caption_column, VIEW_GROUP, *settings.keep_columns)
    return [name for name in columns if name in own]


def require_column(columns: list[str], name: str, setting: str, where: str) -> None:
    """Raise UsageError that names the columns there are if `name`, which a setting gives, is not among them."""
    if name not in columns:
        hint = " (null where there are no captions)" if setting == "caption_column" else ""
        raise UsageError(f"{where} has no column '{name}' but {', '.join(columns)}; set ingest.{setting}{hint}")


def _sample(row: dict[str, Any], settings: IngestSettings) -> Sample:
    image = row[settings.image_column]
    data = image["bytes"] if isinstance(image, dict) else image
    if data is None:
        raise DataError(DataFault.MISSING_IMAGE, f"'{settings.image_column}' is null")
    if len(data) > settings.max_bytes:
        raise too_large(len(data), settings)
    return sample_of(data, row, settings)


def sample_of(data: bytes, row: dict[str, Any], settings: IngestSettings) -> Sample:
    """The picture `data` with the texts of its row. Raises DataError if the caption is not UTF-8."""
    known = (settings.image_column, settings.caption_column, VIEW_GROUP)
    caption = row.get(settings.caption_column) if settings.caption_column is not None else None
    keep = settings.keep_columns
    others = {name: value for name, value in row.items() if name not in known and (keep is None or name in keep)}
    return Sample(
        data=data,
        alt_text=optional_text(caption),
        view_group=optional_text(row.get(VIEW_GROUP)),
        columns=to_json(others),
    )


def to_json(values: Mapping[str, Any]) -> str | None:
    """A row's columns that no stage reads, by name, as JSON: all tables of a corpus get one schema. None: no such column.

    Bytes become base64, dates and times ISO 8601, numbers that are not finite null, and in texts that are not UTF-8
    each broken byte U+FFFD. Other types become text.
    """
    if not values:
        return None
    return json.dumps(_plain(dict(values)), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_valid_text(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return _valid_text(value)


def _valid_text(value: Any) -> str:
    """Valid text; lone surrogates, which stand for invalid bytes, are replaced."""
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
