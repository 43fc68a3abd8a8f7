"""What `ingest` reads: webdataset tars, Parquet tables, folders of pictures, tables of URLs; on a disk or on `s3://`.

Every entry of a source comes out once, as a `Sample` or as what became of it, so that counting them counts the source.
"""

from __future__ import annotations

from collections.abc import Iterator

from realcustom.preprocessing.engine.unit import Unit, UnitKind
from realcustom.preprocessing.ingest.folder import read_pictures
from realcustom.preprocessing.ingest.parquet import read_table
from realcustom.preprocessing.ingest.sample import Entry
from realcustom.preprocessing.ingest.webdataset import read_shard
from realcustom.preprocessing.settings import ExecutionSettings, IngestSettings


def read_source(unit: Unit, settings: IngestSettings, execution: ExecutionSettings) -> Iterator[Entry]:
    """All entries of a unit, in the source's own order."""
    if unit.kind is UnitKind.TAR:
        return read_shard(unit, settings, execution)
    if unit.kind is UnitKind.TABLE:
        return read_table(unit, settings, execution)
    if unit.kind is UnitKind.URLS:
        from realcustom.preprocessing.ingest.urls import read_urls  # the HTTP client only where something is fetched

        return read_urls(unit, settings, execution)
    return read_pictures(unit, settings, execution)
