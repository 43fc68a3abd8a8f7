"""The order of training records: an index over their Parquet files, and the permutation of an epoch. No tensors.

The order is a function of (seed, epoch) alone and the position in it is the optimizer step, so a resumed run, on any
number of workers, continues with exactly the next records: each once per epoch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from realcustom.errors import MissingFile, UsageError
from realcustom.parquet import ParquetFile
from realcustom.record import check_schema
from realcustom.store import Store
from realcustom.training.draws import uniform


@dataclass(frozen=True, kw_only=True)
class RecordIndex:
    """The place of each training record: record number i is row `row[i]` of file `files[file[i]]`."""

    files: tuple[str, ...]  # uris, sorted by name
    schema: pa.Schema  # schema of the first file, with its metadata (which model made which cache)
    uids: pa.ChunkedArray  # (N,) of string
    parent_uids: pa.ChunkedArray  # (N,) of string
    view_uids: pa.ChunkedArray  # (N,) of list of string
    file: np.ndarray  # (N,) int32
    row: np.ndarray  # (N,) int32
    identity: str  # hash over the uids in order and the files' sizes, 16 hex digits

    def __len__(self) -> int:
        return len(self.file)

    def uid(self, number: int) -> str:
        """uid of record `number`."""
        return str(self.uids[number].as_py())


def open_index(records: str, store: Store | None = None) -> RecordIndex:
    """Read the index of all Parquet files below `records` (a folder, a file, or a storage URI).

    Raises:
        MissingFile: `records` does not exist.
        UsageError: no Parquet file, another schema, no rows, or a uid that occurs twice.
    """
    store = store or Store()
    files, sizes = _parquet_files(records, store)
    columns: list[pa.Table] = []
    schema: pa.Schema | None = None
    for uri in files:
        parquet = ParquetFile(uri, store)
        try:
            check_schema(parquet.schema)
        except UsageError as error:
            raise UsageError(f"{uri}: {error}") from error
        columns.append(parquet.read(["uid", "parent_uid", "view_uids"]))
        schema = parquet.schema if schema is None else schema
        _same_caches(schema, parquet.schema, uri)
    assert schema is not None  # there is at least one file
    table = pa.concat_tables(columns)
    if len(table) == 0:
        raise UsageError(f"{records} holds no training record: its {len(files)} Parquet file(s) have no rows")
    if pc.count_distinct(table["uid"]).as_py() != len(table):
        counts = table.group_by("uid").aggregate([("uid", "count")])
        twice = counts.filter(pc.greater(counts["uid_count"], 1))["uid"][0]
        raise UsageError(f"{records}: the uid {twice} occurs more than once; is a file there twice?")
    lengths = [len(part) for part in columns]
    digest = hashlib.sha256(repr(sizes).encode())
    for chunk in table["uid"].chunks:
        digest.update("\n".join(chunk.to_pylist()).encode())
    return RecordIndex(
        files=tuple(files),
        schema=schema,
        uids=table["uid"],
        parent_uids=table["parent_uid"],
        view_uids=table["view_uids"],
        file=np.repeat(np.arange(len(files), dtype=np.int32), lengths),
        row=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        identity=digest.hexdigest()[:16],
    )


def _parquet_files(records: str, store: Store) -> tuple[list[str], list[int]]:
    if not store.exists(records):
        raise MissingFile(f"no training records at {records}: no such folder")
    if records.endswith(".parquet") and not store.is_dir(records):
        return [records], [store.size(records)]
    entries = [entry for entry in store.list_files(records) if entry.name.endswith(".parquet")]
    if not entries:
        raise UsageError(f"{records} holds no .parquet file; give the directory that the last stage printed")
    return [entry.uri for entry in entries], [entry.size for entry in entries]


def _same_caches(schema: pa.Schema, found: pa.Schema, uri: str) -> None:
    for name in ("latents", "text_features", "image_features"):
        ours, theirs = (
            {key: value for key, value in (field.metadata or {}).items() if not key.startswith(b"PARQUET:")}
            for field in (schema.field(name), found.field(name))
        )
        if ours != theirs:
            raise UsageError(f"{uri}: its cached {name} come from another model than those of the first file")


def split(index: RecordIndex, fraction: float, at_most: int) -> tuple[np.ndarray, np.ndarray]:
    """Record numbers (training, validation), each ascending. A picture's records are all on one side.

    Held out are the pictures whose hash is below `fraction`, in order of the hash, up to `at_most` records; the picture
    with the smallest hash always is.

    Raises UsageError if no record is left to train on.
    """
    parents = index.parent_uids.to_pylist()
    ranks = {parent: uniform("validation", parent) for parent in set(parents)}
    by_parent: dict[str, list[int]] = {}
    for number, parent in enumerate(parents):
        by_parent.setdefault(parent, []).append(number)
    held_out: list[int] = []
    for parent in sorted(ranks, key=lambda parent: (ranks[parent], parent)):
        if held_out and (ranks[parent] >= fraction or len(held_out) + len(by_parent[parent]) > at_most):
            break
        held_out.extend(by_parent[parent])
    validation = np.array(sorted(held_out[:at_most]), dtype=np.int64)
    training = np.setdiff1d(np.arange(len(index)), np.array(held_out))
    if len(training) == 0:
        raise UsageError(
            f"{len(index)} training record(s) of {len(ranks)} picture(s): too few, one picture is held out"
        )
    return training, validation


def epoch_order(index: RecordIndex, numbers: np.ndarray, seed: int, epoch: int, open_files: int) -> np.ndarray:
    """The record numbers `numbers` in the order of an epoch, (N,): a permutation that belongs to (seed, epoch).

    Files are permuted; rows are mixed within `open_files` consecutive ones, so that reading stays sequential.
    """
    random = np.random.default_rng([seed, epoch])
    by_file = np.split(numbers, np.flatnonzero(np.diff(index.file[numbers])) + 1)  # numbers ascend, so files do
    files = random.permutation(len(by_file))
    groups = [files[start : start + open_files] for start in range(0, len(files), open_files)]
    return np.concatenate([random.permutation(np.concatenate([by_file[file] for file in group])) for group in groups])


@dataclass(frozen=True, kw_only=True)
class Share:
    """A worker's share of a step: some of the batch's records."""

    epoch: int
    numbers: np.ndarray  # (n,) record numbers; n is the same on every worker, in every step
    weights: np.ndarray  # (n,) float32: 1, or 0 for padding
    total_weight: float  # sum of the weights of the whole batch, over all workers


class DataOrder:
    """The stateless order of the records: (step, worker) -> that worker's share of the step's batch."""

    def __init__(self, index: RecordIndex, numbers: np.ndarray, batch_size: int, seed: int, open_files: int) -> None:
        self.index, self.numbers, self.batch_size = index, numbers, batch_size
        self.seed, self.open_files = seed, open_files
        self.steps_per_epoch = -(-len(numbers) // batch_size)
        self._epoch, self._order = -1, numbers

    def share(self, step: int, rank: int, world_size: int) -> Share:
        """The share of worker `rank` of `world_size` in optimizer step `step` (from 0).

        The epoch's last batch, and one that does not divide by the number of workers, is padded with rows of weight
        zero.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = epoch_order(self.index, self.numbers, self.seed, epoch, self.open_files)
            self._epoch = epoch
        batch = self._order[position * self.batch_size : (position + 1) * self.batch_size]
        size = -(-self.batch_size // world_size)
        mine = batch[rank * size : (rank + 1) * size]
        padded = np.concatenate([mine, np.full(size - len(mine), batch[0])])
        weights = (np.arange(size) < len(mine)).astype(np.float32)
        return Share(epoch=epoch, numbers=padded, weights=weights, total_weight=float(len(batch)))


class Views:
    """Which other records show the same subject, as record numbers."""

    def __init__(self, index: RecordIndex, allowed: np.ndarray) -> None:
        """`allowed`: record numbers that may serve as a reference; others, and unknown uids, are left out."""
        number_of = {index.uid(int(number)): int(number) for number in allowed}
        self._views: dict[int, list[int]] = {}
        for number, uids in enumerate(index.view_uids.to_pylist()):
            known = sorted(number_of[uid] for uid in uids or () if uid in number_of)
            if known:
                self._views[number] = known

    def of(self, number: int) -> list[int]:
        """Record numbers of the other views of record `number`'s subject, ascending; may be empty."""
        return self._views.get(number, [])
