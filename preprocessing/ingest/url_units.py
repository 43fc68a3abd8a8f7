"""Tables of URLs cut into units of rows, so that the work of a unit is bounded for a table of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from realcustom.preprocessing.engine.unit import InputFile, Unit, UnitKind, identity_of, unit_name
from realcustom.preprocessing.engine.worker import StageJob
from realcustom.preprocessing.ingest.columns import CAPTIONS, IMAGES, URLS, find_column
from realcustom.preprocessing.ingest.parquet import require_column, require_texts
from realcustom.preprocessing.ingest.text_table import cut_rows, is_text_table, read_header
from realcustom.preprocessing.settings import IngestSettings
from realcustom.preprocessing.tables import read_footer
from realcustom.storage import FileEntry
from realcustom.store import OF_ONE_FILE, Store

_Piece = tuple[int, tuple[int, int] | None]  # number of rows; of a CSV the bytes that hold them


def url_column(columns: Iterable[str], settings: IngestSettings) -> str | None:
    """The column of URLs; where there is none by name, one of pictures, which then holds addresses. None: neither."""
    return find_column(columns, settings.url_column, (*URLS, *IMAGES))


def url_units(files: Sequence[FileEntry], settings: IngestSettings, store: Store) -> list[Unit]:
    """The units of tables of URLs, `ingest.unit_size` rows each.

    Raises:
        UsageError: a table lacks a column that the settings name; or a CSV is not valid.
    """
    return [unit for entry in files for unit in _units(entry, settings, store)]


def _units(entry: FileEntry, settings: IngestSettings, store: Store) -> Iterator[Unit]:
    file = InputFile(name=entry.name, uri=entry.uri, size=entry.size)
    name = unit_name(entry.name)
    whole = Unit(name=name, identity="", kind=UnitKind.URLS, files=(file,))
    try:
        cut = _text_pieces if is_text_table(entry.name) else _parquet_pieces
        pieces = cut(entry, settings, store)
    except (pa.ArrowInvalid, *OF_ONE_FILE):  # one that cannot be read is one unit, whose only sample is a fault
        yield replace(whole, identity=identity_of(entry.size, entry.version))
        return
    first = 0
    for number, (count, byte_range) in enumerate(pieces):
        identity = identity_of(entry.size, entry.version, first, count)
        yield replace(
            whole, name=f"{name}-{number:06d}", identity=identity, first=first, count=count, byte_range=byte_range
        )
        first += count


def _text_pieces(entry: FileEntry, settings: IngestSettings, store: Store) -> list[_Piece]:
    columns = read_header(entry.uri, store, settings.columns)
    if url_column(columns, settings) is None:
        require_column(columns, settings.url_column, "url_column", entry.name)
    lacks_caption = find_column(columns, settings.caption_column, CAPTIONS) is None
    if settings.caption_column is not None and lacks_caption and len(columns) > 1:  # a list of URLs alone has none
        require_column(columns, settings.caption_column, "caption_column", entry.name)
    for name in settings.keep_columns or ():
        require_column(columns, name, "keep_columns", entry.name)
    return list(cut_rows(entry.uri, store, settings.unit_size, settings.columns))


def _parquet_pieces(entry: FileEntry, settings: IngestSettings, store: Store) -> list[_Piece]:
    metadata = store.call(read_footer, entry.uri)
    schema = metadata.schema.to_arrow_schema()
    if url_column(schema.names, settings) is None:
        require_column(schema.names, settings.url_column, "url_column", entry.name)
    require_texts(schema, settings, entry.name)
    starts = range(0, metadata.num_rows, settings.unit_size)
    return [(min(settings.unit_size, metadata.num_rows - start), None) for start in starts]


def share_hosts(job: StageJob, units: Sequence[Unit], workers: int) -> tuple[StageJob, list[str]]:
    """The job with `per_host` of its downloads divided among that many workers, each of which has several units at once; and
    a warning for the user."""
    if not any(unit.kind is UnitKind.URLS for unit in units):
        return job, []
    ingest = job.settings.ingest
    per_host = ingest.download.per_host
    notes = []
    if per_host < workers:
        notes.append(
            f"{workers} workers fetch, and each may ask a host: {workers} at once instead of "
            f"ingest.download.per_host={per_host}; execution.workers={per_host} keeps to it"
        )
    download = replace(ingest.download, per_host=max(1, per_host // workers))
    settings = replace(job.settings, ingest=replace(ingest, download=download))
    return replace(job, settings=settings, units_at_once=download.units), notes
