"""Sources of `ingest`: webdataset tars, Parquet tables, folders of pictures, tables of URLs; on a disk or on `s3://`.

Every sample of a source is yielded once: its key, and a `Sample` or why there is none. So the number of samples is that
of the source.
"""

from __future__ import annotations

from collections.abc import Iterator

from realcustom.preprocessing.engine.unit import Unit, UnitKind
from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.ingest.folder import read_pictures
from realcustom.preprocessing.ingest.listing import is_addressable
from realcustom.preprocessing.ingest.parquet import read_table
from realcustom.preprocessing.ingest.sample import Entry, file_faults, unreadable_name
from realcustom.preprocessing.ingest.table_rows import TableReader
from realcustom.preprocessing.ingest.webdataset import read_shard
from realcustom.preprocessing.settings import IngestSettings
from realcustom.store import Store, refusals


def read_source(unit: Unit, settings: IngestSettings, store: Store, reader: TableReader) -> Iterator[Entry]:
    """All samples of a unit, in the source's own order. `reader` is the worker's, for all of its units.

    A shard or a table that is gone or may not be read is one fault.
    """
    if unit.kind is UnitKind.PICTURES:
        yield from read_pictures(unit, settings, store)
        return
    file = unit.files[0]
    try:
        with file_faults(file.name), refusals("read", file.uri):
            yield from _read_file(unit, settings, store, reader)
    except DataError as why:
        yield file.name, why


def _read_file(unit: Unit, settings: IngestSettings, store: Store, reader: TableReader) -> Iterator[Entry]:
    if unit.kind is UnitKind.TAR and not is_addressable(unit.files[0].name):
        return iter([(unit.files[0].name, unreadable_name())])
    if unit.kind is UnitKind.TAR:
        return read_shard(unit, settings, store)
    if unit.kind is UnitKind.TABLE:
        return read_table(unit, settings, reader)
    from realcustom.preprocessing.ingest.urls import read_urls  # the HTTP client only where something is fetched

    return read_urls(unit, settings, store)
