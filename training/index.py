"""The index of training records: arrays over all rows of their Parquet files, with no Python object per record.

Legend: N records, F files, G row groups, V known views of all records together, L bytes of the longest uid.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from realcustom.buckets import Buckets, Size

IMAGES = "image_features"  # the column that is read of other records, too: of views

_NUMBERS = {
    "group_file": np.int32,
    "group_row": np.int64,
    "group_bytes": np.int64,
    "rank": np.float64,
    "by_rank": np.int64,
    "view_start": np.int64,
    "views": np.int64,
    "image_start": np.int64,
    "image_end": np.int64,
    "bucket": np.int16,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordIndex:
    """The place of each training record; records are numbered as the rows of all files, in the files' order."""

    files: Sequence[str]  # (F,) uris, sorted by name
    schema: pa.Schema  # schema of the first file, with its metadata (which model made which cache)
    uids: np.ndarray  # (N,) of bytes S<L>: UTF-8, padded with zeros
    group_file: np.ndarray  # (G,) the file that a row group is in
    group_row: np.ndarray  # (G + 1,) number of a row group's first record; the last one is N
    group_bytes: np.ndarray  # (G,) uncompressed
    rank: np.ndarray  # (N,) in [0, 1), a hash of the record's picture: small ones are held out
    by_rank: np.ndarray  # (N,) record numbers in ascending order of rank, then of number
    view_start: np.ndarray  # (N + 1,) where a record's views begin in `views`
    views: np.ndarray  # (V,) numbers of other records of the same subject, ascending for each record
    image_start: np.ndarray  # (G,) where image features begin in the file, bytes; 0: they are compressed
    image_end: np.ndarray  # (G,) where they end
    identity: str  # hash over the files' sizes, row groups and uids, and the records' buckets, 16 hex digits
    bucket: np.ndarray | None = None  # (N,) numbers in `bucket_sizes`; None: all latents are of one size

    def __len__(self) -> int:
        return len(self.uids)

    @functools.cached_property
    def bucket_sizes(self) -> tuple[Size, ...]:
        """(width, height) of each bucket, pixels; none where all latents are of one size."""
        buckets = Buckets.of_schema(self.schema)
        return () if buckets is None else buckets.sizes

    def bucket_of(self, number: int) -> Size | None:
        """(width, height) of record `number`'s bucket, pixels; None where all latents are of one size."""
        return None if self.bucket is None else self.bucket_sizes[self.bucket[number]]

    def uid(self, number: int) -> str:
        """uid of record `number`."""
        return bytes(self.uids[number]).decode()

    def group_of(self, number: int) -> tuple[int, int]:
        """Row group of record `number`, counted over all files, and the record's row in it."""
        group = int(np.searchsorted(self.group_row, number, side="right")) - 1
        return group, number - int(self.group_row[group])

    def file_of(self, group: int) -> tuple[int, int]:
        """File of a row group, and the group's number within that file."""
        file = int(self.group_file[group])
        return file, group - int(np.searchsorted(self.group_file, file, side="left"))

    def views_of(self, number: int) -> np.ndarray:
        """Numbers of the other views of record `number`'s subject, ascending."""
        return self.views[self.view_start[number] : self.view_start[number + 1]]

    def to_file(self) -> pa.Buffer:
        """All but `files` as an Arrow file of one row, whose lists are the arrays."""
        width = self.uids.dtype.itemsize
        arrays = {name: pa.array(getattr(self, name)) for name in _NUMBERS if getattr(self, name) is not None}
        uids = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(self), [None, pa.py_buffer(np.ascontiguousarray(self.uids))]
        )
        columns = {name: _one_list(array) for name, array in {**arrays, "uids": uids}.items()}
        schema = self.schema.serialize().to_pybytes()
        table = pa.table(columns).replace_schema_metadata({b"identity": self.identity.encode(), b"schema": schema})
        counted = pa.MockOutputStream()
        _write(table, counted)
        buffer = pa.allocate_buffer(counted.size())  # a buffer that grows takes up to thrice as much
        _write(table, pa.FixedSizeBufferWriter(buffer))
        return buffer

    @classmethod
    def of_file(cls, path: Path, files: Sequence[str]) -> RecordIndex:
        """The index in a local file of `to_file`, mapped into memory: pages are read when they are used."""
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        metadata = table.schema.metadata
        lists = {name: table[name].chunk(0).values for name in table.schema.names}
        uids = lists["uids"]
        width = uids.type.byte_width
        return cls(
            files=files,
            schema=pa.ipc.read_schema(pa.py_buffer(metadata[b"schema"])),
            uids=np.frombuffer(uids.buffers()[1], f"S{width}", len(uids), uids.offset * width),
            identity=metadata[b"identity"].decode(),
            **{name: lists[name].to_numpy(zero_copy_only=True) for name in _NUMBERS if name in lists},
        )


def _one_list(array: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), array)


def _write(table: pa.Table, sink: pa.NativeFile) -> None:
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
