"""The steps of the search for copies, each on one unit: the code that runs in a worker.

partitions.py cuts the units.
"""

from __future__ import annotations

import itertools
import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from realcustom import storage
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.unit import Counts, SealedUnit, Unit
from realcustom.preprocessing.engine.worker import StageJob, Work
from realcustom.preprocessing.select.compact import compacted, hashes_of, restored
from realcustom.preprocessing.select.components import LINKS, find_links
from realcustom.preprocessing.select.duplicates import (
    COLUMNS,
    EDGES,
    SIGNATURES,
    Twins,
    arrays_of,
    collapse,
    find_edges,
    find_in_evaluation,
    numbers_of,
    priorities_of,
    signatures_of,
)
from realcustom.preprocessing.select.partitions import HASHED_ROWS, BitTable, Part, pack, parts_of
from realcustom.preprocessing.select.thresholds import COLUMNS as THRESHOLD_COLUMNS
from realcustom.preprocessing.select.thresholds import failed_threshold
from realcustom.preprocessing.settings import SelectSettings
from realcustom.store import Store


def evaluation_uri(directory: str) -> str:
    """The file with the signatures of the evaluation folder's pictures. `directory` is the stage's."""
    return storage.join(directory, "global", "evaluation.parquet")


def load_signatures(job: StageJob) -> Work:
    """Step `signatures`, ready for units. `job.directory` is the step's."""
    settings, store, evaluation = job.settings.select, job.store, None
    if settings.evaluation_folder is not None:
        stage = posixpath.dirname(posixpath.dirname(job.directory))
        evaluation = tables.from_parquet(store.read(evaluation_uri(stage)))
    return lambda unit, data: _signatures(unit, settings, store, evaluation)


def load_shuffle(job: StageJob) -> Work:
    """Step `shuffle`, ready for units."""
    return lambda unit, data: _shuffle(unit, job.store)


def load_links(job: StageJob) -> Work:
    """Step `links`, ready for units."""
    return lambda unit, data: _links(unit, job.settings.select, job.store)


def load_gather(job: StageJob) -> Work:
    """Step `gather`, ready for units."""
    return lambda unit, data: _gather(unit, job.store)


def load_pairs(job: StageJob) -> Work:
    """Step `pairs`, ready for units."""
    return lambda unit, data: _pairs(unit, job.settings.select, job.store)


@dataclass(frozen=True, kw_only=True)
class BlockExclusions:
    """The rows that step `signatures` excluded from a block."""

    twins: Twins
    uids: list[str]  # of the twins
    evaluation: dict[str, str]  # uid of a copy of an evaluation picture -> the evaluation picture's name


def read_exclusions(data: bytes) -> BlockExclusions:
    """The file that step `signatures` wrote beside a block's rows."""
    rows = [json.loads(line) for line in data.splitlines()]  # bytes: in a text other characters end a line as well
    twins = [row for row in rows if "of" in row]
    numbers, of = (np.array([row[name] for row in twins], np.int64) for name in ("number", "of"))
    return BlockExclusions(
        twins=Twins(numbers=numbers, of=of, equal=np.array([row["equal"] for row in twins], bool)),
        uids=[row["uid"] for row in twins],
        evaluation={row["uid"]: row["evaluation"] for row in rows if "evaluation" in row},
    )


def _signatures(unit: Unit, settings: SelectSettings, store: Store, evaluation: pa.Table | None) -> SealedUnit:
    """A block's files -> row groups of `SIGNATURES`, at most a partition each."""
    counts, excluded = Counts(), list[dict[str, int | bool | str]]()
    rows = tables.to_parquet_groups(_kept(unit, settings, store, evaluation, counts, excluded), SIGNATURES)
    counts.kept = counts.rows_in - sum(counts.dropped.values())
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in excluded)
    return SealedUnit(rows=rows, excluded=lines.encode(), counts=counts)


def _kept(
    unit: Unit,
    settings: SelectSettings,
    store: Store,
    evaluation: pa.Table | None,
    counts: Counts,
    excluded: list[dict[str, int | bool | str]],
) -> Iterator[pa.Table]:
    """The signatures to be compared, a partition at a time: they are written before the next are read. The others are added to
    `excluded`."""
    for table in _batches(unit, settings, store, counts):
        if evaluation is not None:
            found = find_in_evaluation(table, evaluation, settings)
            uids = table["uid"].to_pylist()
            excluded += [{"uid": uids[index], "evaluation": name} for index, name in sorted(found.items())]
            table = table.filter(pa.array([index not in found for index in range(table.num_rows)], pa.bool_()))
        if settings.exact_duplicates or settings.near_duplicate_radius is not None:
            uids = dict(zip(priorities_of(table["rank"])[:, 1].tolist(), table["uid"].to_pylist(), strict=True))
            table, twins = collapse(table, settings)
            for number, of, equal in zip(*(column.tolist() for column in vars(twins).values()), strict=True):
                excluded.append({"uid": uids[number], "number": number, "of": of, "equal": equal})
        counts.rows_out += table.num_rows
        yield table


def _batches(unit: Unit, settings: SelectSettings, store: Store, counts: Counts) -> Iterator[pa.Table]:
    """The signatures of a block's rows that pass the thresholds, a partition at a time; the others are counted."""
    waiting: list[pa.Table] = []
    for file in unit.files:
        assert file.number is not None, unit.name
        table = store.call(_read_scored, file.uri)
        tables.require_filled(table, (name for name in COLUMNS if name != "alt_text"), file.uri)
        reasons = failed_threshold(table, settings)
        counts.rows_in += table.num_rows
        for reason in reasons:
            if reason is not None:
                counts.dropped[reason] = counts.dropped.get(reason, 0) + 1
        passed = np.array([reason is None for reason in reasons], bool)
        waiting.append(signatures_of(table.filter(pa.array(passed)), numbers_of(file.number, len(passed))[passed]))
        while sum(other.num_rows for other in waiting) >= settings.partition_rows:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, settings.partition_rows)
            waiting = [whole.slice(settings.partition_rows)]
    yield pa.concat_tables(waiting)


def _read_scored(uri: str) -> pa.Table:
    return tables.read_columns(uri, sorted({*COLUMNS, *THRESHOLD_COLUMNS}), (*tables.HASHED, *tables.SCORE_FIELDS))


def _shuffle(unit: Unit, store: Store) -> SealedUnit:
    """Some blocks' signatures -> row groups of `HASHES` by the bits of one table, labelled with them.

    A picture is in the group of each of its views, so that it is compared with pictures whose whole is like one of its
    insets.
    """
    blocks = [tables.from_parquet(store.read(file.uri)) for file in unit.files]
    whole = pa.concat_tables(blocks).combine_chunks()  # once here, not in each `take` below
    keys = BitTable.of(unit).keys(arrays_of(whole).short)  # (n, V)
    index, first = np.arange(len(keys)).repeat(keys.shape[1]), keys.ravel()
    pairs = np.unique(np.stack([first, index], axis=1), axis=0)  # (bits, row), sorted
    return _labelled(hashes_of(whole), pairs)


def _links(unit: Unit, settings: SelectSettings, store: Store) -> SealedUnit:
    """Which of a unit's pictures are connected by their hashes."""
    packed = list(pack(parts_of(unit, right=False), HASHED_ROWS * settings.partition_rows))
    found = [LINKS.empty_table()]
    for number, ours in enumerate(packed):
        table = _once(_read(ours, store))
        found.append(find_links(table, None, settings))
        found += (find_links(table, _once(_read(theirs, store)), settings) for theirs in packed[number + 1 :])
    return _sealed(unit, pa.concat_tables(found))


def _gather(unit: Unit, store: Store) -> SealedUnit:
    """A block's signatures that are in groups -> row groups of `COMPACT`, labelled with them."""
    block, groups = (tables.from_parquet(store.read(file.uri)) for file in unit.files)
    numbers = priorities_of(block["rank"])[:, 1].astype(np.int64)  # sorted
    group = groups["group"].to_numpy()
    order = np.argsort(group, kind="stable")
    rows = np.searchsorted(numbers, groups["number"].to_numpy()[order])
    pairs = np.stack([group[order], np.arange(len(order))], axis=1)
    sealed = _labelled(compacted(block.take(pa.array(rows)).combine_chunks()), pairs)
    return replace(sealed, counts=Counts(rows_in=len(block), kept=len(block), rows_out=len(pairs)))


def _labelled(table: pa.Table, pairs: np.ndarray) -> SealedUnit:
    """Row groups of a table's rows by pairs (label, row), int64 (k, 2), sorted."""
    labels, starts = np.unique(pairs[:, 0], return_index=True)
    bounds = itertools.pairwise([*starts.tolist(), len(pairs)])
    groups = (table.take(pa.array(pairs[low:high, 1])) for low, high in bounds)
    data = tables.to_parquet_groups(groups, table.schema, labels=labels.tolist())
    return SealedUnit(rows=data, excluded=b"", counts=Counts(rows_in=len(table), kept=len(table), rows_out=len(pairs)))


def _pairs(unit: Unit, settings: SelectSettings, store: Store) -> SealedUnit:
    """The copies among a unit's parts, two partitions in memory at a time."""
    left = list(pack(parts_of(unit, right=False), settings.partition_rows))
    right = list(pack(parts_of(unit, right=True), settings.partition_rows))
    found = [EDGES.empty_table()]
    for number, ours in enumerate(left):
        table = restored(_read(ours, store))
        if not right:
            found.append(find_edges(table, None, settings))
        for theirs in right or left[number + 1 :]:
            found.append(find_edges(table, restored(_read(theirs, store)), settings))
    return _sealed(unit, pa.concat_tables(found))


def _sealed(unit: Unit, found: pa.Table) -> SealedUnit:
    """What was found among a unit's parts."""
    size = sum(file.rows or 0 for file in unit.files)
    counts = Counts(rows_in=size, kept=size, rows_out=found.num_rows)
    return SealedUnit(rows=tables.to_parquet(found), excluded=b"", counts=counts)


def _read(parts: list[Part], store: Store) -> pa.Table:
    """The rows of some parts."""
    return tables.read_row_groups(((part.uri, part.group) for part in parts), store)


def _once(table: pa.Table) -> pa.Table:
    """The rows of `HASHES` sorted by their numbers, each picture once: it may be in several bit patterns."""
    _, first = np.unique(table["number"].to_numpy(), return_index=True)
    return table.take(pa.array(first))
