"""The global phase of `select`: over the small columns of the whole corpus, who is a copy of whom.

    global/signatures, shuffle, pairs       steps of the search (partitions.py), each a directory of units
    global/duplicates                       for each block its pictures that are dropped, and which ones stay instead
    global/clusters.json                    how many sets of copies of each size there are

Every step's units are planned against what is there, as a stage's are: a kill loses the units in flight, and what did
not change is not done again. Who survives is decided where the driver is; its memory grows with the number of copies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing import rows
from preprocessing.access import access
from preprocessing.duplicates import ROW_BITS, Twins, ranks_of
from preprocessing.errors import retry
from preprocessing.partitions import (
    UNITS_PER_BLOCK,
    BitTable,
    Part,
    bit_tables,
    block_units,
    bucket_units,
    pair_units,
    shuffle_units,
)
from preprocessing.planning import make_plan
from preprocessing.progress import Progress
from preprocessing.steps import read_aside
from preprocessing.survivors import Copies, resolve
from preprocessing.uids import check_uids
from preprocessing.unit import (
    Counts,
    InputFile,
    SealedUnit,
    StageDirectory,
    Step,
    Unit,
    UnitKind,
    identity_of,
    to_json_bytes,
)
from preprocessing.worker import Job
from realcustom import storage

RunUnits = Callable[[Job, Sequence[Unit]], Iterable[Counts]]

EXACT = "exact_duplicate"
NEAR = "near_duplicate"
EVALUATION = "in_evaluation_folder"
# What `select` needs to know of a block, sorted by number.
DUPLICATES = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("survivor", pa.string(), nullable=False),  # uid, or the file in the evaluation folder
    ]
)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What the search came to. m survivors."""

    copies: Copies
    survivors: np.ndarray  # int64 (m,), sorted numbers
    uids: pa.LargeStringArray  # theirs
    evaluation: dict[str, dict[int, str]]  # block -> number of a copy of an evaluation picture -> that one's name


def run_global_phase(units: Sequence[Unit], job: Job, run: RunUnits, own_uids: bool) -> tuple[Unit, ...]:
    """Find the copies among all units' rows (or see that it is done) and give the units what `select` needs of it.

    Args:
        own_uids: the rows' identities are a user's, not those that `ingest` gave.
    Returns:
        The units with one more file, the duplicates of their block, whose hash is part of their identity.
    Raises:
        ValueError: two rows have one uid.
    """
    blocks = block_units(units)
    corpus = identity_of([[unit.name, unit.identity] for unit in units])
    place = _duplicates(job)
    wanted = [Unit(name=block.name, identity=corpus, kind=UnitKind.PART, files=()) for block in blocks]
    plan = make_plan(wanted, place.manifests(), place.rows_present())
    if plan.todo or plan.gone:
        if own_uids:
            check_uids(units, job.settings.execution)
        found = _search(blocks, job, run)
        place.remove(plan.stale)
        place.remove(plan.gone, with_outputs=True)
        place.write(_clusters_uri(job), to_json_bytes(found.copies.cluster_sizes()))
        for unit in plan.todo:
            place.commit(unit, _seal(unit.name, found, job.settings.select.exact_duplicates))
    outputs = {manifest.unit: manifest.output for manifest in place.manifests()}
    selected = []
    for number, unit in enumerate(units):
        block = blocks[number // UNITS_PER_BLOCK].name
        file = InputFile(name=str(number), uri=place.rows_uri(block), size=0)  # by the number its rows are known there
        identity = identity_of(unit.identity, outputs[block], number)
        selected.append(replace(unit, identity=identity, files=(*unit.files, file)))
    return tuple(selected)


def count_clusters(job: Job) -> dict[str, int]:
    """Size of a set of copies (survivor included) -> how many there are."""
    sizes: dict[str, int] = json.loads(_duplicates(job).read(_clusters_uri(job)))
    return sizes


def _duplicates(job: Job) -> StageDirectory:
    return StageDirectory(storage.join(job.directory, "global", "duplicates"), job.settings.execution)


def _clusters_uri(job: Job) -> str:
    return storage.join(job.directory, "global", "clusters.json")


def _search(blocks: Sequence[Unit], job: Job, run: RunUnits) -> _Found:
    settings = job.settings.select
    signatures = _run_step(Step.SIGNATURES, blocks, job, run)
    directory = StageDirectory(replace(job, step=Step.SIGNATURES).place, job.settings.execution)
    evaluation: dict[str, dict[int, str]] = {}
    twins: list[Twins] = []
    for block in signatures:
        evaluation[block.name], alike = read_aside(directory.read(directory.aside_uri(block.name)))
        twins.append(alike)
    edges: list[Unit] = []
    if settings.exact_duplicates or settings.near_duplicate_radius is not None:
        edges = _run_step(Step.PAIRS, _pair_units(signatures, job, run), job, run)
    tables = (rows.from_parquet(directory.read(unit.files[0].uri)) for unit in edges)
    copies = resolve(tables, twins)
    survivors = np.unique(copies.survivors)
    uids = _uids(survivors, signatures, job)
    return _Found(copies=copies, survivors=survivors, uids=uids, evaluation=evaluation)


def _uids(numbers: np.ndarray, signatures: Sequence[Unit], job: Job) -> pa.LargeStringArray:
    """The uids of pictures, sorted numbers int64 (m,), from their blocks' signatures."""
    execution = job.settings.execution

    def of_block(block: Unit) -> pa.ChunkedArray:
        wanted = numbers[_within(block.name, numbers)]
        if not len(wanted):
            return pa.chunked_array([], pa.large_string())
        uri = block.files[0].uri
        with access("read", uri):
            table = retry(partial(rows.read_columns, uri, ["uid", "rank"]), execution.attempts, execution.backoff)
        there = ranks_of(table["rank"])[:, 1].astype(np.int64)  # in the corpus's order, hence sorted
        return table["uid"].cast(pa.large_string()).take(pa.array(np.searchsorted(there, wanted)))

    with ThreadPoolExecutor(max_workers=16) as pool:
        chunks = [chunk for uids in pool.map(of_block, signatures) for chunk in uids.chunks]
    return pa.chunked_array(chunks, pa.large_string()).combine_chunks()


def _within(block: str, numbers: np.ndarray) -> slice:
    """Where a block's pictures are among sorted numbers."""
    first = UNITS_PER_BLOCK * int(block.rpartition("-")[2])
    bounds = np.array([first, first + UNITS_PER_BLOCK], np.int64) << ROW_BITS
    return slice(*np.searchsorted(numbers, bounds).tolist())


def _pair_units(signatures: Sequence[Unit], job: Job, run: RunUnits) -> list[Unit]:
    settings = job.settings.select
    parts, blocks = list[Part](), list[Part]()
    for block in signatures:
        uri, lengths = block.files[0].uri, [length for _, length in _groups(block, job)]
        blocks.append(Part(uri=uri, content=block.identity, group=0, rows=sum(lengths)))
        for group, length in enumerate(lengths):
            parts.append(Part(uri=uri, content=block.identity, group=group, rows=length))
    number = sum(part.rows for part in parts)
    if number <= settings.exact_search_rows:
        return pair_units(parts, settings)
    units = shuffle_units(blocks, bit_tables(number, settings), settings.partition_rows)
    shuffled = _run_step(Step.SHUFFLE, units, job, run)
    buckets: dict[tuple[int, int], list[Part]] = {}
    for unit in shuffled:
        for group, (bits, length) in enumerate(_groups(unit, job)):
            part = Part(uri=unit.files[0].uri, content=unit.identity, group=group, rows=length)
            buckets.setdefault((BitTable.of_unit(unit.name).number, bits), []).append(part)
    return bucket_units(buckets, settings.partition_rows)


def _groups(unit: Unit, job: Job) -> list[tuple[int, int]]:
    """Label and length of each row group of a step's output."""
    uri, execution = unit.files[0].uri, job.settings.execution
    with access("read", uri):
        return retry(lambda: rows.read_groups(uri), execution.attempts, execution.backoff)


def _run_step(step: Step, units: Sequence[Unit], job: Job, run: RunUnits) -> list[Unit]:
    """Do what is to do of a step; its outputs as the next one's inputs, in the order of `units`."""
    job = replace(job, step=step)
    directory = StageDirectory(job.place, job.settings.execution)
    plan = make_plan(units, directory.manifests(), directory.rows_present())
    directory.remove(plan.stale)
    directory.remove(plan.gone, with_outputs=True)
    progress = Progress(f"{job.stage.value}, {step.value}", len(units), len(plan.done))
    for counts in run(job, plan.todo):
        progress.unit_done(counts)
    outputs = {manifest.unit: manifest.output for manifest in directory.manifests()}
    return [_output(unit.name, outputs[unit.name], directory) for unit in units]


def _output(name: str, output: str, directory: StageDirectory) -> Unit:
    file = InputFile(name=f"{name}.parquet", uri=directory.rows_uri(name), size=0)
    return Unit(name=name, identity=output, kind=UnitKind.PART, files=(file,))


def _seal(block: str, found: _Found, exact: bool) -> SealedUnit:
    """A block's pictures that are dropped."""
    here, evaluation = _within(block, found.copies.numbers), found.evaluation[block]
    survivors = found.uids.take(pa.array(np.searchsorted(found.survivors, found.copies.survivors[here])))
    table = pa.table(
        {
            "number": np.concatenate([found.copies.numbers[here], np.array(list(evaluation), np.int64)]),
            "reason": [EXACT if exact and equal else NEAR for equal in found.copies.equal[here].tolist()]
            + [EVALUATION] * len(evaluation),
            "survivor": survivors.to_pylist() + list(evaluation.values()),
        },
        schema=DUPLICATES,
    ).sort_by("number")
    reasons = pc.value_counts(table["reason"]).to_pylist()
    dropped = {count["values"]: count["counts"] for count in reasons}
    counts = Counts(rows_in=table.num_rows, dropped=dropped, rows_out=table.num_rows)
    return SealedUnit(rows=rows.to_parquet(table), aside=b"", counts=counts)
