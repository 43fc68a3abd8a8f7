"""Parquet tables that hold their pictures as a source."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.entry import Entry, Fault, Sample, optional_text, read, too_large
from preprocessing.errors import DataError, DataFault
from preprocessing.settings import ExecutionSettings, IngestSettings
from preprocessing.unit import Unit


def read_table(unit: Unit, settings: IngestSettings, execution: ExecutionSettings) -> Iterator[Entry]:
    """The rows of a table in its order. A broken row group is a fault for each of its rows; a torn file is one."""
    file = unit.files[0]
    data = read(file.uri, execution)
    try:
        table = pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as error:  # from memory: an OSError is about the bytes
        yield Fault(key=file.name, fault=DataFault.TORN_TABLE, message=f"not a readable Parquet file: {error}")
        return
    check_source_table(table.schema_arrow, settings, file.name)
    columns = [settings.image_column]
    columns += [settings.caption_column] if settings.caption_column is not None else []
    columns += ["view_group"] if "view_group" in table.schema_arrow.names else []
    first = 0
    for group in range(table.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        keys = [f"{file.name}#{first + index}" for index in range(count)]
        first += count
        try:
            rows = table.read_row_group(group, columns=columns, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            for key in keys:
                yield Fault(key=key, fault=DataFault.TORN_TABLE, message=f"row group {group} is broken: {error}")
            continue
        for key, row in zip(keys, _iterate(texts_as_bytes(rows)), strict=True):
            try:
                yield _sample(key, row, settings)
            except DataError as error:
                yield Fault(key=key, fault=error.fault, message=error.message)


def texts_as_bytes(rows: pa.Table) -> pa.Table:
    """The table with its columns of text as bytes: Arrow has not checked that they are UTF-8, we do row by row."""
    for index, field in enumerate(rows.schema):
        kind, column = field.type, rows.column(index)
        if pa.types.is_dictionary(kind):
            kind, column = kind.value_type, column.cast(kind.value_type, safe=False)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            rows = rows.set_column(index, field.name, column.cast(pa.large_binary()))
    return rows


def _iterate(rows: pa.Table) -> Iterator[dict]:
    for batch in rows.to_batches(max_chunksize=64):  # so few rows at a time become Python objects
        yield from batch.to_pylist()


def check_source_table(schema: pa.Schema, settings: IngestSettings, where: str) -> None:
    """Raise ValueError if the columns that the settings name are not in the table, or not of a usable type."""
    require_column(schema.names, settings.image_column, "image_column", where)
    require_texts(schema, settings, where)
    kind = schema.field(settings.image_column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ValueError(f"{where}: ingest.image_column='{settings.image_column}' holds {kind}, not encoded pictures")


def require_texts(schema: pa.Schema, settings: IngestSettings, where: str) -> None:
    """Raise ValueError if captions or view groups, where there are to be some, are not columns of text."""
    if settings.caption_column is not None:
        require_column(schema.names, settings.caption_column, "caption_column", where)
    for name in (settings.caption_column, "view_group"):
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(plain) or pa.types.is_large_string(plain) or pa.types.is_null(plain)):
            raise ValueError(f"{where}: the column '{name}' holds {kind}, expected text")


def require_column(columns: list[str], name: str, setting: str, where: str) -> None:
    """Raise ValueError that names the columns there are if `name`, which a setting gives, is not among them."""
    if name not in columns:
        hint = " (null where there are no captions)" if setting == "caption_column" else ""
        raise ValueError(f"{where} has no column '{name}' but {', '.join(columns)}; set ingest.{setting}{hint}")


def _sample(key: str, row: dict, settings: IngestSettings) -> Sample:
    image = row[settings.image_column]
    data = image["bytes"] if isinstance(image, dict) else image
    if data is None:
        raise DataError(DataFault.MISSING_IMAGE, f"'{settings.image_column}' is null")
    if len(data) > settings.max_bytes:
        raise too_large(len(data), settings)
    column = settings.caption_column
    caption = optional_text(row[column]) if column is not None else None
    return Sample(key=key, data=data, alt_text=caption, view_group=optional_text(row.get("view_group")))
