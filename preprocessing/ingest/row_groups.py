"""Row groups of a Parquet table from which rows are read in any order, by several threads at once.

Parquet has no way to a row within a group but from the group's start. Of a table of URLs a group may have a million rows, and a
unit takes 256 of them: so a group is decoded once, to a temporary file that is mapped into memory.
"""

from __future__ import annotations

import functools
import tempfile
import threading
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from realcustom.preprocessing.errors import DataError, DataFault
from realcustom.preprocessing.ingest.table_rows import open_large, require_data
from realcustom.retry import RetrySettings
from realcustom.store import Store

_KEPT = 2  # row groups of a worker; their columns are on the disk, and in memory as far as it has room
_BATCH = 1024  # rows that are decoded at a time: where a group breaks off, those of the last piece are lost with it
_DECODING = threading.Lock()  # of a worker's threads, which want the same group, one decodes it


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """The rows of a group that can be read, from its start on."""

    rows: pa.Table
    broken: DataError | None  # why the others cannot be read; None: there are none


def row_group(uri: str, store: Store, group: int, columns: list[str] | None) -> RowGroup:
    """A group's rows, of some columns or of all, which a worker keeps for the units after this one."""
    with _DECODING:
        return _decoded(uri, store.size(uri), store.retries, group, None if columns is None else tuple(columns))


@functools.lru_cache(maxsize=_KEPT)
def _decoded(uri: str, size: int, retries: RetrySettings, group: int, columns: tuple[str, ...] | None) -> RowGroup:
    names = None if columns is None else list(columns)
    table: pq.ParquetFile = open_large(uri, Store(retries))
    broken = None
    with tempfile.NamedTemporaryFile() as file:
        empty = table.schema_arrow.empty_table()
        schema = (empty if names is None else empty.select(names)).schema
        with pa.ipc.new_stream(file.name, schema) as sink:
            try:
                for batch in table.iter_batches(_BATCH, row_groups=[group], columns=names, use_threads=False):
                    sink.write_batch(batch.select(schema.names))
            except (pa.ArrowInvalid, OSError) as error:
                require_data(error)
                broken = DataError(DataFault.TORN_TABLE, f"row group {group} is broken: {error}")
        rows = pa.ipc.open_stream(pa.memory_map(file.name)).read_all()  # stays when the file's name is gone
    return RowGroup(rows=rows, broken=broken)
