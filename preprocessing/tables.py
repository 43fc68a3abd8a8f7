"""The tables that stages exchange, and the one way they are written to Parquet.

Columns that a later stage does not know are kept unchanged, each with its metadata (which model made it).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from realcustom import record, storage
from realcustom.errors import UsageError
from realcustom.preprocessing.hashes import COLOR_SIDE, LONG_BYTES, SHORT_BYTES, VIEWS
from realcustom.storage import FileEntry
from realcustom.store import OF_ONE_FILE, Store

# A picture and its caption, one row each. Names shared with the training record mean the same there.
INGESTED = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),  # source-relative name: shard-00012.tar/000031.jpg
        pa.field("sha256", pa.binary(32), nullable=False),  # of `image`
        pa.field("image", pa.large_binary(), nullable=False),  # the encoded bytes, unchanged
        pa.field("width", pa.int32(), nullable=False),  # pixels, after EXIF orientation
        pa.field("height", pa.int32(), nullable=False),
        pa.field("alt_text", pa.string()),  # null: none was given; it may be empty
        pa.field("view_group", pa.string()),  # pictures of one group show the same subject; null: not known
    ]
)
SIGNATURE_FIELDS = (  # named as in hashes.Signature
    pa.field("phashes", pa.binary(VIEWS * SHORT_BYTES), nullable=False),  # hashes of the whole and of its insets
    pa.field("long_hashes", pa.binary(VIEWS * LONG_BYTES), nullable=False),  # the same, 256 bits each
    pa.field("color", pa.binary(3 * COLOR_SIDE**2), nullable=False),  # RGB thumbnail, row-major
)
# The output of ingest: hashes are computed there because the picture is decoded there.
HASHED = (*INGESTED, *SIGNATURE_FIELDS)
# All members of a webdataset sample, in the archive's order and with their names, so that they can be written back
# unchanged. `data` is null for the member that is the row's `image`; the column is null for a picture of another
# source.
MEMBERS = pa.field("members", pa.list_(pa.struct([("name", pa.string()), ("data", pa.large_binary())])))
# The other columns of a row of a source's table, as JSON; null: none, or the source is not a table.
COLUMNS = pa.field("columns", pa.string())
SCORES = pa.field("scores", record.SCORES)
IMAGE_BYTES = pa.field("image_bytes", pa.int64(), nullable=False)  # of `image`: the larger of two copies lost less
SCORE_FIELDS = (SCORES, IMAGE_BYTES)
TARGET = pa.struct([("word", pa.string()), ("start", pa.int32()), ("end", pa.int32())])
CAPTION_FIELDS = (
    pa.field("synthetic_caption", pa.string()),  # null: not computed
    pa.field("caption", pa.string(), nullable=False),
    pa.field("caption_source", record.SCHEMA.field("caption_source").type, nullable=False),
    pa.field("targets", pa.list_(TARGET), nullable=False),  # words of `caption` that can name a subject, with span
)

# Every option of the Parquet writer is fixed, so that equal rows give equal files.
_WRITER: dict[str, Any] = {
    "version": "2.6",
    "data_page_version": "1.0",
    "compression": "zstd",
    "compression_level": 1,  # pictures are compressed already
    "use_dictionary": False,
    "write_statistics": False,
    "store_schema": True,
}


RECORD_GROUP_BYTES = 2**24
HELD_OUT, HELD_OUT_ALONE = 64, 16  # records at a file's start: a file of 1,000 has few that training holds out
_FOOTER = 2**16  # bytes at a file's end that are fetched first: usually its whole footer


def require_columns(schema: pa.Schema, needed: Iterable[pa.Field], where: str) -> None:
    """Raise UsageError that names the first column of `needed` that `schema` lacks or holds with another type."""
    for field in needed:
        if field.name not in schema.names:
            raise UsageError(f"{where}: the column '{field.name}' is missing; it has {', '.join(schema.names)}")
        found = schema.field(field.name).type
        if found != field.type:
            raise UsageError(f"{where}: the column '{field.name}' is {found}, expected {field.type}")


def require_filled(table: pa.Table, columns: Iterable[str], where: str) -> None:
    """Raise UsageError that names the first of `columns` in which values are missing."""
    for name in columns:
        if table[name].null_count:
            missing = table[name].null_count
            raise UsageError(f"{where}: rows without {name}, which `ingest` and `score` give every picture: {missing}")


def with_column(table: pa.Table, field: pa.Field, values: pa.Array | list[Any]) -> pa.Table:
    """`table` with the column `field` set (replaced where it is already there)."""
    array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, type=field.type)
    if field.name in table.schema.names:
        return table.set_column(table.schema.get_field_index(field.name), field, array)
    return table.append_column(field, array)


def made_by(field: pa.Field, model: str, **details: str) -> pa.Field:
    """`field` with its maker in the metadata: the model's identity (id and revision) and other parameters."""
    return field.with_metadata({"model": model, **details})


def to_parquet(table: pa.Table, group_bytes: int | None = None, alone: int = 0, plain: Collection[str] = ()) -> bytes:
    """Parquet bytes with every writer option fixed, so that equal rows give equal files.

    A row group has 256 rows, or as many fewer as make at most `group_bytes` by the rows' mean size; the first `alone` rows
    are a row group each. Columns of the names in `plain` (`a.b` of a struct) are not compressed.
    """
    rows = 256
    if group_bytes is not None and table.nbytes:
        rows = max(1, min(rows, group_bytes * table.num_rows // table.nbytes))
    sink = pa.BufferOutputStream()  # a Python file would be called for every page
    table = table.combine_chunks().replace_schema_metadata(None)
    with pq.ParquetWriter(sink, table.schema, **_writer(table.schema, plain)) as writer:
        if alone and table.num_rows:
            writer.write_table(table[:alone], row_group_size=1)
        if not alone or table.num_rows > alone:
            writer.write_table(table[alone:], row_group_size=rows)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _writer(schema: pa.Schema, plain: Collection[str]) -> dict[str, Any]:
    """The writer's options where some columns are not compressed: they then name each column of the file."""
    if not plain:
        return _WRITER
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    paths = [column.path for column in pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema]
    return _WRITER | {
        "compression": {path: "none" if path in plain else _WRITER["compression"] for path in paths},
        "compression_level": {path: _WRITER["compression_level"] for path in paths if path not in plain},
    }


def to_record_file(table: pa.Table, buckets: Sequence[int] | None = None) -> bytes:
    """Training records as Parquet bytes, laid out so that training reads little that it does not use.

    It reads row groups, one column of them at a time: they have at most `RECORD_GROUP_BYTES`. Records that it may hold
    out and read alone, those of the least rank, come first, the very first in row groups of their own. The others are in
    the order of `buckets`, the number of each row's bucket: a batch has one, and so few row groups. Where records name other
    views of their subject, image features are not compressed: a view in another file is read by itself, not with its row group.
    """
    order = np.argsort(record.picture_ranks(table["parent_uid"]), kind="stable")
    first = order[:HELD_OUT]
    others = np.sort(order[HELD_OUT:])
    if buckets is not None:
        others = others[np.argsort(np.asarray(buckets)[others], kind="stable")]
    table = table.take(np.concatenate([first, others]))
    with_views = pc.sum(pc.list_value_length(table["view_uids"])).as_py()
    return to_parquet(
        table, RECORD_GROUP_BYTES, alone=HELD_OUT_ALONE, plain=("image_features.data",) if with_views else ()
    )


def to_parquet_groups(groups: Iterable[pa.Table], schema: pa.Schema, labels: list[int] | None = None) -> bytes:
    """Parquet bytes with one row group per table; `labels`, if given, describe each group in the footer."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, **_WRITER) as writer:
        for group in groups:
            writer.write_table(group.combine_chunks(), row_group_size=max(1, group.num_rows))
        if labels is not None:
            writer.add_key_value_metadata({"groups": json.dumps(labels)})
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read_groups(uri: str) -> list[tuple[int, int]]:
    """Label (its number, if there are none) and length of each row group of a Parquet file, from its footer."""
    footer = read_footer(uri)
    lengths = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    labels = (footer.metadata or {}).get(b"groups")
    return list(zip(json.loads(labels) if labels else range(len(lengths)), lengths, strict=True))


def read_some_groups(uri: str, groups: list[int]) -> pa.Table:
    """Some row groups of a Parquet file, fetching only their bytes."""
    filesystem, path = storage.open_filesystem(uri)
    with filesystem.open_input_file(path) as file:
        return pq.ParquetFile(file).read_row_groups(groups, use_threads=False)


def read_row_groups(places: Iterable[tuple[str, int]], store: Store) -> pa.Table:
    """The same of several files, with retries: each row group by its file's URI and its number; those of a file are together."""
    groups: dict[str, list[int]] = {}
    for uri, group in places:
        groups.setdefault(uri, []).append(group)
    return pa.concat_tables(store.call(lambda uri: read_some_groups(uri, groups[uri]), uri) for uri in groups)


def from_parquet(data: bytes) -> pa.Table:
    """The table in Parquet bytes, types exactly as written."""
    return pq.read_table(pa.BufferReader(data), use_threads=False)


def read_columns(uri: str, columns: list[str], needed: Iterable[pa.Field] = ()) -> pa.Table:
    """Some columns of a Parquet file, fetching only their bytes and its footer.

    Raises UsageError as `require_columns`.
    """
    filesystem, path = storage.open_filesystem(uri)
    with filesystem.open_input_file(path) as file:
        footer = _footer(file)
        require_columns(footer.schema.to_arrow_schema(), needed, uri)
        return pq.ParquetFile(file, metadata=footer).read(columns=columns, use_threads=False).select(columns)


def strings(values: list[str]) -> pa.Array:
    """Values as an Arrow array of text, also where there are none."""
    return pa.array(values, pa.string())


def read_footer(uri: str) -> pq.FileMetaData:
    """A Parquet file's footer. Raises pa.ArrowInvalid if it is missing or broken; OSError for errors of the storage.

    Arrow would raise OSError for either.
    """
    filesystem, path = storage.open_filesystem(uri)
    with filesystem.open_input_file(path) as file:
        return _footer(file)


def _footer(file: pa.NativeFile) -> pq.FileMetaData:
    size = file.size()
    end = file.read_at(min(size, _FOOTER), max(0, size - _FOOTER))
    length = int.from_bytes(end[-8:-4], "little") + 8
    if len(end) < length <= size:
        end = file.read_at(length, size - length)
    try:
        return pq.read_metadata(pa.BufferReader(end))
    except OSError as error:
        raise pa.ArrowInvalid(str(error)) from error


def read_schema(uri: str) -> pa.Schema:
    """The schema of a Parquet file, from its footer, as `read_footer`."""
    return read_footer(uri).schema.to_arrow_schema()


def first_schema(files: Sequence[FileEntry], store: Store) -> tuple[FileEntry, pa.Schema]:
    """The first Parquet file whose footer can be read, and its schema. A torn one, and one that may not be read, is reported
    where it is read.

    Raises:
        UsageError: none of them can be read.
    """
    reason = ""
    for entry in files:
        try:
            return entry, store.call(read_schema, entry.uri)
        except (pa.ArrowInvalid, *OF_ONE_FILE) as error:
            reason = reason or f"{entry.name}: {error}"
    raise UsageError(f"none of {len(files)} .parquet files can be read as such; {reason}")


def record_table(columns: Mapping[str, pa.Array | list[Any]], fields: Mapping[str, pa.Field]) -> pa.Table:
    """A table of training records; a column that is absent is null. `fields` replaces fields by ones with metadata."""
    rows = len(columns["uid"])
    schema = pa.schema([fields.get(field.name, field) for field in record.SCHEMA])
    arrays = []
    for field in schema:
        values = columns.get(field.name)
        if values is None:
            arrays.append(pa.nulls(rows, field.type))
        elif isinstance(values, (pa.Array, pa.ChunkedArray)):
            arrays.append(values)
        else:
            arrays.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(arrays, schema=schema)
