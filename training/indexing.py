"""How an index is made: from the small columns of all files, once, and kept in a file beside a large table.

Workers map that file into memory; of a table on an object store they keep a copy in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from realcustom import storage
from realcustom.errors import MissingFile, UsageError
from realcustom.parquet import ParquetFile
from realcustom.record import check_schema
from realcustom.storage import FileEntry
from realcustom.store import StorageRefused, Store
from realcustom.training.draws import uniform
from realcustom.training.index import RecordIndex

logger = logging.getLogger(__name__)

VERSION = 1  # of the file's layout, a part of its name
KEPT_FROM = 100_000  # records; the index of a smaller table is made in about a second
READERS = 8  # files that are read at a time: an object store answers slowly


def open_index(records: str, store: Store | None = None) -> RecordIndex:
    """The index of all Parquet files below `records` (a folder, a file, or a storage URI).

    A table of at least `KEPT_FROM` records has it in a file `index-*.arrow` beside its own, named after their listing.

    Raises:
        MissingFile: `records` does not exist.
        UsageError: no Parquet file, another schema, no rows, or a uid that occurs twice.
    """
    store = store or Store()
    entries = _parquet_files(records, store)
    files = [entry.uri for entry in entries]
    name = _file_name(entries)
    kept = _kept_file(records, name, store)
    if kept is not None:
        return RecordIndex.of_file(kept, files)
    index = build_index(records, files, [entry.size for entry in entries], store)
    if len(index) >= KEPT_FROM and entries[0].uri != records:
        _keep(records, name, index, store)
    return index


def _parquet_files(records: str, store: Store) -> list[FileEntry]:
    if not store.exists(records):
        raise MissingFile(f"no training records at {records}: no such folder")
    if records.endswith(".parquet") and not store.is_dir(records):
        return [FileEntry(name=records, uri=records, size=store.size(records), version="")]
    entries = [entry for entry in store.list_files(records) if entry.name.endswith(".parquet")]
    if not entries:
        raise UsageError(f"{records} holds no .parquet file; give the directory that the last stage printed")
    return entries


def _file_name(entries: Sequence[FileEntry]) -> str:
    listing = repr([(entry.name, entry.size, entry.version) for entry in entries])
    return f"index-{VERSION}-{hashlib.sha256(listing.encode()).hexdigest()[:16]}.arrow"


def _kept_file(records: str, name: str, store: Store) -> Path | None:
    """The local file of a kept index, or None."""
    place = storage.join(records, name)
    if not storage.is_remote(records):
        path = Path(place.removeprefix("file://"))
        return path if path.is_file() else None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "realcustom"
    path = cache / name
    if not path.is_file():
        if not store.exists(place):
            return None
        store.write(path, store.read(place))
    return path


def _keep(records: str, name: str, index: RecordIndex, store: Store) -> None:
    try:
        store.write(storage.join(records, name), index.to_file())
    except StorageRefused as error:
        logger.warning("every worker makes its own index of the records: %s", error)
        return
    logger.info("the index of %d records is kept in %s", len(index), storage.join(records, name))
    for old in store.list_names(records):
        if old.startswith("index-") and old.endswith(".arrow") and old != name:  # of another listing
            store.delete(storage.join(records, old))


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What the index takes from one file of n records."""

    schema: pa.Schema
    groups: list[tuple[int, int]]  # rows and bytes
    uids: pa.Array  # (n,) of large_string
    rank: np.ndarray  # (n,)
    view_counts: np.ndarray  # (n,)
    view_uids: pa.Array  # (sum of the counts,) of large_string


def build_index(records: str, files: Sequence[str], sizes: Sequence[int], store: Store) -> RecordIndex:
    """The index of some files, read anew. Raises UsageError as `open_index`."""
    with ThreadPoolExecutor(min(READERS, len(files))) as readers:
        parts = list(readers.map(lambda uri: _read_part(uri, store), files))
    schema = parts[0].schema
    for uri, part in zip(files, parts, strict=True):
        _same_caches(schema, part.schema, uri)
    uids = _fixed_width(pa.concat_arrays([part.uids for part in parts]))  # (N,)
    if len(uids) == 0:
        raise UsageError(f"{records} holds no training record: its {len(files)} Parquet file(s) have no rows")
    order = np.argsort(uids, kind="stable")
    ordered = uids[order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        uid = bytes(ordered[twice[0]]).decode()
        raise UsageError(f"{records}: the uid {uid} occurs more than once; is a file there twice?")
    view_start, views = _join_views(parts, ordered, order)
    rank = np.concatenate([part.rank for part in parts])
    rows, bytes_ = np.array([group for part in parts for group in part.groups], np.int64).T
    group_row = np.concatenate([[0], np.cumsum(rows)])
    digest = hashlib.sha256(repr(list(sizes)).encode())
    for array in (group_row, uids):
        digest.update(np.ascontiguousarray(array).data)
    return RecordIndex(
        files=files,
        schema=schema,
        uids=uids,
        group_file=np.repeat(np.arange(len(files), dtype=np.int32), [len(part.groups) for part in parts]),
        group_row=group_row,
        group_bytes=bytes_,
        rank=rank,
        by_rank=np.argsort(rank, kind="stable"),
        view_start=view_start,
        views=views,
        identity=digest.hexdigest()[:16],
    )


def _read_part(uri: str, store: Store) -> _Part:
    parquet = ParquetFile(uri, store)
    try:
        check_schema(parquet.schema)
    except UsageError as error:
        raise UsageError(f"{uri}: {error}") from error
    table = parquet.read(["uid", "parent_uid", "view_uids"])
    views = table["view_uids"].combine_chunks()
    return _Part(
        schema=parquet.schema,
        groups=parquet.groups,
        uids=_large(table["uid"]),
        rank=_ranks(table["parent_uid"]),
        view_counts=pc.fill_null(pc.list_value_length(views), 0).to_numpy(zero_copy_only=False),
        view_uids=views.flatten().cast(pa.large_string()),
    )


def _large(column: pa.ChunkedArray) -> pa.Array:
    return column.cast(pa.large_string()).combine_chunks()


def _ranks(parents: pa.ChunkedArray) -> np.ndarray:
    """The rank of each record, (n,): that of its picture."""
    pictures = parents.combine_chunks().dictionary_encode()
    ranks = np.array([uniform("validation", picture) for picture in pictures.dictionary.to_pylist()])
    return ranks[pictures.indices.to_numpy()] if len(ranks) else np.zeros(0)


def _fixed_width(strings: pa.Array) -> np.ndarray:
    """Strings as an array of bytes of one width, padded with zeros, (N,): without a copy where all are equally long."""
    lengths = pc.binary_length(strings)
    width = max(1, pc.max(lengths).as_py() or 0)
    if pc.min(lengths).as_py() != width:
        padded = np.zeros((len(strings), width), np.uint8)
        starts = np.frombuffer(strings.buffers()[1], np.int64)[strings.offset :][: len(strings) + 1]
        data = np.frombuffer(strings.buffers()[2] or b"", np.uint8)[starts[0] : starts[-1]]
        padded[np.arange(width) < np.diff(starts)[:, None]] = data
        return padded.view(f"S{width}")[:, 0]
    start = np.frombuffer(strings.buffers()[1], np.int64)[strings.offset]
    return np.frombuffer(strings.buffers()[2], f"S{width}", len(strings), start)


def _join_views(parts: Sequence[_Part], ordered: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N + 1,) starts and (V,) numbers of the views that are records; `ordered` are the uids, sorted by `order`."""
    counts, numbers = [], []
    for part in parts:
        rows = np.repeat(np.arange(len(part.uids)), part.view_counts)
        known, found = _look_up(part.view_uids, ordered, order)
        rows = rows[known]
        numbers.append(found[np.lexsort((found, rows))])
        counts.append(np.bincount(rows, minlength=len(part.uids)))
    return np.concatenate([[0], np.cumsum(np.concatenate(counts))]), np.concatenate(numbers)


def _look_up(uids: pa.Array, ordered: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `uids` are records, (n,) of bool, and the numbers of those that are."""
    if len(uids) == 0:
        return np.zeros(0, bool), np.zeros(0, np.int64)
    wanted = _fixed_width(uids)
    places = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    known = ordered[places] == wanted
    return known, order[places[known]]


def _same_caches(schema: pa.Schema, found: pa.Schema, uri: str) -> None:
    for name in ("latents", "text_features", "image_features"):
        ours, theirs = (
            {key: value for key, value in (field.metadata or {}).items() if not key.startswith(b"PARQUET:")}
            for field in (schema.field(name), found.field(name))
        )
        if ours != theirs:
            raise UsageError(f"{uri}: its cached {name} come from another model than those of the first file")
