"""Parquet tables that hold their pictures as a source."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.unit import Unit, UnitKind, identity_of
from realcustom.preprocessing.errors import DataError, DataFault, RowExcluded
from realcustom.preprocessing.ingest.columns import CAPTIONS, IMAGES, URLS, by_rule, find_column, texts_of
from realcustom.preprocessing.ingest.other_columns import to_json
from realcustom.preprocessing.ingest.sample import Entry, Sample, optional_text, raw_bytes, text_of, too_large
from realcustom.preprocessing.ingest.table_rows import TableReader, is_text_type, require_data
from realcustom.preprocessing.inputs import file_unit
from realcustom.preprocessing.settings import IngestSettings
from realcustom.storage import FileEntry
from realcustom.store import OF_ONE_FILE, Store

UNIT_BYTES = 2**26  # bytes of a large table that make a unit; a worker takes some six times as many
VIEW_GROUP = "view_group"  # column of any table: pictures of one group show the same subject


def read_table(unit: Unit, settings: IngestSettings, reader: TableReader) -> Iterator[Entry]:
    """The unit's rows in the table's order. What of a row group cannot be read is a fault of each of its rows; a torn file
    is one fault."""
    file = unit.files[0]
    try:
        schema, rows = reader.read(unit, lambda schema: columns_read(schema.names, settings))
    except (pa.ArrowInvalid, OSError) as error:
        require_data(error)
        yield file.name, DataError(DataFault.TORN_TABLE, f"not a readable Parquet file: {error}")
        return
    check_source_table(schema, settings, file.name)
    image = image_column(schema, settings)
    assert image is not None, "checked above"
    for number, row in rows:
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
    except (pa.ArrowInvalid, *OF_ONE_FILE):  # reported where it is read
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


def image_column(schema: pa.Schema, settings: IngestSettings) -> str | None:
    """The column of pictures: of the usual names the first that holds bytes, else the first. None: there is none."""
    found = find_column(schema.names, settings.image_column, IMAGES)
    if settings.image_column != IMAGES[0] or (found is not None and holds_bytes(schema.field(found).type)):
        return found
    with_bytes = [name for name in schema.names if holds_bytes(schema.field(name).type)]
    return find_column(with_bytes, settings.image_column, IMAGES) or found


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type can be encoded pictures: bytes, by a dictionary too, or a struct with a field of them."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


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
