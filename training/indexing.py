"""How an index is made: from the small columns of all files, once, and kept in a file beside a large table.

Workers map that file into memory; of a table on an object store they keep a copy in the user's cache folder.
"""

from __future__ import annotations

import fcntl
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
from realcustom.buckets import Buckets
from realcustom.errors import MissingFile, UsageError
from realcustom.machine import available_cores
from realcustom.parquet import ParquetFile
from realcustom.record import POOLED, check_schema, picture_ranks
from realcustom.storage import FileEntry
from realcustom.store import StorageRefused, Store, refusals
from realcustom.training.index import IMAGES, RecordIndex

logger = logging.getLogger(__name__)

VERSION = 2  # of the file's layout, a part of its name
KEPT_FROM = 100_000  # records; the index of a smaller table is made in about a second
JOINED = 1000  # files whose views are joined at a time
PIECE = 16 * 2**20  # bytes of a kept index that are copied at a time
READERS = 8  # files of an object store that are read at a time: it answers slowly


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
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "realcustom" / "indexes"
    path = cache / hashlib.sha256(records.encode()).hexdigest()[:16] / name
    if not path.is_file():
        if not store.exists(place):
            return None
        with refusals("write", str(path)):
            _copy(place, path, store)
    return path


def _copy(place: str, path: Path, store: Store) -> None:
    """Copy a kept index piece by piece, once for all workers of this machine; copies of earlier listings are removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name("lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_file():
            return
        source, partial = store.open(place, PIECE), path.with_name(".tmp-index")
        with partial.open("wb") as file:
            for start in range(0, source.size, PIECE):
                file.write(source.read(start, PIECE))
        for old in path.parent.glob("index-*.arrow"):
            old.unlink()
        os.replace(partial, path)


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

    groups: list[tuple[int, int]]  # rows and bytes
    images: list[tuple[int, int]]  # where their image features begin and end, as `ParquetFile.plain_values`
    uids: np.ndarray  # (n,) of bytes
    rank: np.ndarray  # (n,)
    view_counts: np.ndarray  # (n,)
    views: np.ndarray  # (sum of the counts,) int32: rows of this file, -1 where the view is in another one
    others: np.ndarray  # (views of -1,) their uids as bytes
    bucket: np.ndarray | None  # (n,); None: all latents are of one size


def build_index(records: str, files: Sequence[str], sizes: Sequence[int], store: Store) -> RecordIndex:
    """The index of some files, read anew. Raises UsageError as `open_index`."""
    schema = ParquetFile(files[0], store).schema
    _check(schema, files[0])
    # a disk answers at once: more threads than cores take a fifth longer there
    threads = READERS if storage.is_remote(files[0]) else available_cores()
    with ThreadPoolExecutor(min(threads, len(files))) as readers:
        parts = list(readers.map(lambda uri: _read_part(uri, schema, store), files))
    uids = np.concatenate([part.uids for part in parts])  # (N,)
    if len(uids) == 0:
        raise UsageError(f"{records} holds no training record: its {len(files)} Parquet file(s) have no rows")
    order = _argsort(uids)
    ordered = uids[order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        uid = bytes(ordered[twice[0]]).decode()
        raise UsageError(f"{records}: the uid {uid} occurs more than once; is a file there twice?")
    view_start, views = _join_views(parts, ordered, order)
    rank = np.concatenate([part.rank for part in parts])
    rows, size = np.array([group for part in parts for group in part.groups], np.int64).T
    group_row = np.concatenate([[0], np.cumsum(rows)])
    image_start, image_end = np.array([values for part in parts for values in part.images], np.int64).T
    buckets = [part.bucket for part in parts if part.bucket is not None]
    bucket = np.concatenate(buckets) if buckets else None
    digest = hashlib.sha256(repr(list(sizes)).encode())
    for array in (group_row, uids, *(() if bucket is None else (bucket,))):
        digest.update(np.ascontiguousarray(array).data)
    return RecordIndex(
        files=files,
        schema=schema,
        uids=uids,
        group_file=np.repeat(np.arange(len(files), dtype=np.int32), [len(part.groups) for part in parts]),
        group_row=group_row,
        group_bytes=size,
        rank=rank,
        by_rank=np.argsort(rank.view(np.uint64), kind="stable"),  # as floats they take longer; none is below 0
        view_start=view_start,
        views=views,
        image_start=np.ascontiguousarray(image_start),
        image_end=np.ascontiguousarray(image_end),
        identity=digest.hexdigest()[:16],
        bucket=bucket,
    )


def _read_part(uri: str, schema: pa.Schema, store: Store) -> _Part:
    parquet = ParquetFile(uri, store)
    found = parquet.schema
    if not found.equals(schema, check_metadata=True):
        _check(found, uri)
        _same_caches(schema, found, uri)
    # small columns of small files: several threads for each of them take a third more CPU time
    buckets = Buckets.of_schema(found)
    sides = [] if buckets is None else ["width", "height"]
    table = parquet.read(["uid", "parent_uid", "view_uids", *sides], use_threads=False)
    uids, view_lists = table["uid"].combine_chunks(), table["view_uids"].combine_chunks()
    view_uids = view_lists.flatten()
    # most views are neighbours: they are found here, and fast
    views = pc.index_in(view_uids, uids).fill_null(-1).to_numpy(zero_copy_only=False)
    pictures = table["parent_uid"].combine_chunks().dictionary_encode()
    ranks = picture_ranks(pictures.dictionary)
    return _Part(
        groups=parquet.groups,
        images=parquet.plain_values(f"{IMAGES}.data"),
        uids=_to_bytes(uids),
        rank=ranks[pictures.indices.to_numpy()],
        view_counts=pc.fill_null(pc.list_value_length(view_lists), 0).to_numpy(zero_copy_only=False),
        views=views,
        others=_to_bytes(view_uids.filter(pa.array(views < 0))),
        bucket=None if buckets is None else _buckets(buckets, table, uri),
    )


def _check(schema: pa.Schema, uri: str) -> None:
    try:
        check_schema(schema)
    except UsageError as error:
        raise UsageError(f"{uri}: {error}; give the directory that the encode stage printed") from error


def _buckets(buckets: Buckets, table: pa.Table, uri: str) -> np.ndarray:
    """Numbers of the records' buckets, (n,). Raises UsageError that names a record which has none."""
    widths, heights = (table[name].to_numpy() for name in ("width", "height"))
    found = buckets.numbers(widths, heights)
    without = np.flatnonzero(found < 0)
    if len(without):
        row = int(without[0])
        raise UsageError(
            f"{uri}: record {table['uid'][row].as_py()} is {widths[row]} x {heights[row]} pixels, and by the rule that the "
            f"records' latents were made by ({buckets}) no bucket is for it; run the encode stage over the records again"
        )
    return found


def _to_bytes(strings: pa.Array) -> np.ndarray:
    """Strings as an array of bytes of one width, padded with zeros, (n,): without a copy where all are equally long."""
    if len(strings) == 0:
        return np.zeros(0, "S1")
    ends = np.frombuffer(strings.buffers()[1], np.int32)[strings.offset :][: len(strings) + 1]
    data = np.frombuffer(strings.buffers()[2] or b"", np.uint8)[ends[0] : ends[-1]]
    lengths = np.diff(ends)
    width = max(1, int(lengths.max()))
    if lengths.min() == width:
        return data.view(f"S{width}")
    padded = np.zeros((len(strings), width), np.uint8)
    padded[np.arange(width) < lengths[:, None]] = data
    return padded.view(f"S{width}")[:, 0]


def _argsort(uids: np.ndarray) -> np.ndarray:
    """np.argsort(uids, kind="stable") in half the time: by the first eight bytes, and among equal ones by all bytes."""
    if uids.dtype.itemsize < 8:
        return np.argsort(uids, kind="stable")
    begins = np.ndarray(len(uids), ">u8", uids, strides=(uids.dtype.itemsize,)).astype(np.uint64)
    order = np.argsort(begins, kind="stable")
    equal = np.diff(begins[order]) == 0
    tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    among = order[tied]
    order[tied] = among[np.argsort(uids[among], kind="stable")]
    return order


def _join_views(parts: Sequence[_Part], ordered: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N + 1,) starts and (V,) numbers of the views that are records; `ordered` are the uids, sorted by `order`."""
    records = len(ordered)
    starts = np.cumsum([0, *(len(part.uids) for part in parts)])[:-1]
    counts = np.zeros(records, np.int64)

    def join(begin: int) -> np.ndarray:
        """The views of some files: many at a time, for few calls, and not all, for little memory."""
        some, firsts = parts[begin : begin + JOINED], starts[begin : begin + JOINED]
        views = np.concatenate([part.views for part in some])
        found = views + np.repeat(firsts, [len(part.views) for part in some])
        found[views < 0] = _look_up(np.concatenate([part.others for part in some]), ordered, order)
        sizes = np.concatenate([part.view_counts for part in some])
        rows = np.repeat(np.arange(firsts[0], firsts[0] + len(sizes)), sizes)
        keys = (rows * records + found)[found >= 0]
        keys.sort(kind="stable")  # they mostly are in order
        rows, found = np.divmod(keys, records)
        counts[firsts[0] : firsts[0] + len(sizes)] = np.bincount(rows - firsts[0], minlength=len(sizes))
        ours: np.ndarray = found
        return ours

    with ThreadPoolExecutor(available_cores()) as joiners:
        numbers = list(joiners.map(join, range(0, len(parts), JOINED)))
    return np.concatenate([[0], np.cumsum(counts)]), np.concatenate(numbers)


def _look_up(wanted: np.ndarray, ordered: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The number of each uid that is wanted, (n,); -1 where it is none of `ordered`, whose numbers are `numbers`."""
    if len(ordered) == 0 or len(wanted) == 0:
        return np.full(len(wanted), -1)
    places = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[places] == wanted, numbers[places], -1)


def _same_caches(schema: pa.Schema, found: pa.Schema, uri: str) -> None:
    names = ["latents", "text_features", "image_features"]
    if POOLED.name in schema.names and POOLED.name in found.names:
        names.append(POOLED.name)
    elif POOLED.name in schema.names + found.names:
        raise UsageError(
            f"{uri}: either it or the first file has no {POOLED.name}; run the encode stage over all of them again"
        )
    for name in names:
        ours, theirs = (
            {key: value for key, value in (field.metadata or {}).items() if not key.startswith(b"PARQUET:")}
            for field in (schema.field(name), found.field(name))
        )
        if ours != theirs:
            differ = next(
                key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)
            ).decode()
            what = "come from another model" if differ == "model" else f"were made with another {differ}"
            raise UsageError(
                f"{uri}: its cached {name} {what} than those of the first file; run the encode stage over all of them again"
            )
