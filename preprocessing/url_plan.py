"""Tables of URLs cut into units of rows, so that a unit is a bounded amount of fetching whatever the table's size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from preprocessing.csv_table import read_header, read_rows
from preprocessing.errors import retry
from preprocessing.rows import read_footer
from preprocessing.settings import ExecutionSettings, IngestSettings
from preprocessing.source_table import require_column, require_texts
from preprocessing.unit import InputFile, Unit, UnitKind, identity_of, unit_name
from realcustom.storage import FileEntry


def is_url_table(schema: pa.Schema, settings: IngestSettings) -> bool:
    """Whether a Parquet table has a column of URLs and none of pictures."""
    return settings.url_column in schema.names and settings.image_column not in schema.names


def url_units(files: Sequence[FileEntry], settings: IngestSettings, execution: ExecutionSettings) -> list[Unit]:
    """The units of tables of URLs, `ingest.unit_size` rows each.

    Raises:
        ValueError: a table lacks a column that the settings name; or a CSV is not one.
    """
    return [unit for entry in files for unit in _units(entry, settings, execution)]


def _units(entry: FileEntry, settings: IngestSettings, execution: ExecutionSettings) -> Iterator[Unit]:
    rows = _count_rows(entry, settings, execution)
    file = InputFile(name=entry.name, uri=entry.uri, size=entry.size)
    name = unit_name(entry.name)
    whole = Unit(name=name, identity="", kind=UnitKind.URLS, files=(file,))
    if rows is None:  # torn: one unit, whose only entry says so
        yield replace(whole, identity=identity_of(entry.size, entry.version))
        return
    for number, first in enumerate(range(0, rows, settings.unit_size)):
        count = min(settings.unit_size, rows - first)
        identity = identity_of(entry.size, entry.version, first, count)
        yield replace(whole, name=f"{name}-{number:06d}", identity=identity, first=first, count=count)


def _count_rows(entry: FileEntry, settings: IngestSettings, execution: ExecutionSettings) -> int | None:
    if entry.name.endswith(".csv"):
        columns = read_header(entry.uri, execution)
        require_column(columns, settings.url_column, "url_column", entry.name)
        if settings.caption_column is not None:
            require_column(columns, settings.caption_column, "caption_column", entry.name)
        for name in settings.keep_columns or ():
            require_column(columns, name, "keep_columns", entry.name)
        return sum(1 for _ in read_rows(entry.uri, execution))
    try:
        metadata = retry(lambda: read_footer(entry.uri), execution.attempts, execution.backoff)
    except pa.ArrowInvalid:
        return None
    schema = metadata.schema.to_arrow_schema()
    require_column(schema.names, settings.url_column, "url_column", entry.name)
    require_texts(schema, settings, entry.name)
    return metadata.num_rows
