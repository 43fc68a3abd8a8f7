"""The global phase of `select`: over the small columns of the whole corpus, which pictures are copies of which.

    global/signatures, pairs                steps of the search (partitions.py), each a directory of units
    global/shuffle, links, groups, gather   more of them for a large corpus
    global/duplicates                       for each block the pictures that are dropped, and which ones are kept
    global/clusters.json                    how many sets of copies of each size there are

Every step's units are planned against what is there, as a stage's are: a kill loses only the units being processed, and
unchanged units are not done again. The survivors are chosen in the driver; its memory grows with the number of copies.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from realcustom import storage
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.directory import StageDirectory, to_json_bytes
from realcustom.preprocessing.engine.executors import Executor
from realcustom.preprocessing.engine.plan import make_plan
from realcustom.preprocessing.engine.stage import Prepared, StageInput
from realcustom.preprocessing.engine.steps import clear, groups_of_output, run_step, step_uri
from realcustom.preprocessing.engine.unit import Counts, InputFile, SealedUnit, Unit, UnitKind, identity_of
from realcustom.preprocessing.engine.worker import StageJob
from realcustom.preprocessing.select import partitions
from realcustom.preprocessing.select.components import GROUPS, groups_of
from realcustom.preprocessing.select.duplicates import ROW_BITS, priorities_of
from realcustom.preprocessing.select.evaluation import prepare_evaluation
from realcustom.preprocessing.select.partitions import (
    HASHED_ROWS,
    BitTable,
    Part,
    bit_tables,
    block_units,
    bucket_units,
    fitted,
    gather_units,
    pair_units,
    shuffle_units,
)
from realcustom.preprocessing.select.steps import (
    BlockExclusions,
    evaluation_uri,
    load_gather,
    load_links,
    load_pairs,
    load_shuffle,
    load_signatures,
    read_exclusions,
)
from realcustom.preprocessing.select.survivors import Copies, resolve
from realcustom.preprocessing.select.uids import check_uids

logger = logging.getLogger(__name__)

EXACT = "exact_duplicate"
NEAR = "near_duplicate"
EVALUATION = "in_evaluation_folder"
# The columns of a block's duplicates, in the corpus's order; then the copies of evaluation pictures.
DUPLICATES = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("survivor", pa.string(), nullable=False),  # its key, or the file in the evaluation folder
    ]
)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The result of the search. m survivors."""

    copies: Copies
    survivors: np.ndarray  # int64 (m,), sorted numbers
    keys: pa.LargeStringArray  # their uids or keys


def find_copies(job: StageJob, source: StageInput, executor: Executor) -> Prepared:
    """Find the copies among all units' rows, unless that is done: `prepare` of stage `select`.

    Returns:
        The units with one more file, the duplicates of their block, whose hash is part of their identity; and how many
        sets of copies of each size there are (survivor included).
    Raises:
        UsageError: two rows have one uid; or a picture of the evaluation folder cannot be read.
    """
    evaluation = prepare_evaluation(job)
    if evaluation is not None:
        job.store.write(evaluation_uri(job.directory), evaluation)
    units = source.units
    blocks = block_units(units)
    corpus = identity_of([[unit.name, unit.identity] for unit in units])
    place = StageDirectory(step_uri(job.directory, "duplicates"), job.store)
    wanted = [Unit(name=block.name, identity=corpus, kind=UnitKind.PART, files=()) for block in blocks]
    present = place.rows_present()
    plan = make_plan(wanted, place.manifests(), present)
    clusters_uri = storage.join(job.directory, "global", "clusters.json")
    if plan.todo or plan.gone or not job.store.exists(clusters_uri):
        if not _has_uids_of_ingest(source):
            check_uids(units, job.store)
        signatures = run_step("signatures", load_signatures, blocks, job, executor)
        found = _search(signatures, job, executor)
        clear(place, plan, present, wanted)
        job.store.write(clusters_uri, to_json_bytes(found.copies.cluster_sizes()))
        todo = {unit.name for unit in plan.todo}
        for unit, block in zip(wanted, signatures, strict=True):
            if unit.name in todo:
                place.commit(unit, _seal(block, found, job))
    outputs = {manifest.unit: manifest.output for manifest in place.manifests()}
    selected = []
    for number, unit in enumerate(units):
        block_name = blocks[number // partitions.UNITS_PER_BLOCK].name
        file = InputFile(name=f"{block_name}.parquet", uri=place.rows_uri(block_name), size=0)
        identity = identity_of(unit.identity, outputs[block_name])
        selected.append(replace(unit, identity=identity, files=(*unit.files, file)))
    return Prepared(units=tuple(selected), report={"clusters": json.loads(job.store.read(clusters_uri))})


def _has_uids_of_ingest(source: StageInput) -> bool:
    """Whether `ingest` made the rows' uids, which are then unique; else they are a user's."""
    upstream = source.upstream if source.description is None else str(source.description["upstream"])
    return upstream.startswith("ingest@")


def _search(signatures: Sequence[Unit], job: StageJob, executor: Executor) -> _Found:
    settings = job.settings.select
    edges: list[Unit] = []
    if settings.exact_duplicates or settings.near_duplicate_radius is not None:
        edges = _pairs(signatures, job, executor)
    found = (tables.from_parquet(job.store.read(unit.files[0].uri)) for unit in edges)
    copies = resolve(found, (_exclusions(block, job).twins for block in signatures))
    survivors = np.unique(copies.survivors)

    def keys_in(block: Unit) -> pa.ChunkedArray:
        wanted = survivors[_numbers_in(block, survivors)]
        if not len(wanted):
            return pa.chunked_array([], pa.large_string())
        numbers, keys = _named(block, "key", job)
        return keys.take(pa.array(np.searchsorted(numbers, wanted)))

    with ThreadPoolExecutor(max_workers=4) as pool:  # each holds a block's keys
        chunks = [chunk for keys in pool.map(keys_in, signatures) for chunk in keys.chunks]
    keys = pa.chunked_array(chunks, pa.large_string()).combine_chunks()
    return _Found(copies=copies, survivors=survivors, keys=keys)


def _exclusions(block: Unit, job: StageJob) -> BlockExclusions:
    directory = StageDirectory(step_uri(job.directory, "signatures"), job.store)
    return read_exclusions(job.store.read(directory.excluded_uri(block.name)))


def _named(block: Unit, column: str, job: StageJob) -> tuple[np.ndarray, pa.ChunkedArray]:
    """Sorted numbers, int64 (n,), and uids or keys of a block's pictures that are not twins, from its signatures."""
    columns = [column, "rank"]
    table = job.store.call(lambda uri: tables.read_columns(uri, columns), block.files[0].uri)
    return priorities_of(table["rank"])[:, 1].astype(np.int64), table[column].cast(pa.large_string())


def _numbers_in(block: Unit, numbers: np.ndarray) -> slice:
    """The range of a block's pictures among sorted numbers."""
    number = block.files[0].number
    assert number is not None, block.name
    first = partitions.UNITS_PER_BLOCK * number
    bounds = np.array([first, first + partitions.UNITS_PER_BLOCK], np.int64) << ROW_BITS
    return slice(*np.searchsorted(numbers, bounds).tolist())


def _pairs(signatures: Sequence[Unit], job: StageJob, executor: Executor) -> list[Unit]:
    """The pairs of copies among all blocks."""
    settings = job.settings.select
    parts, blocks = list[Part](), list[Part]()
    for block in signatures:
        uri, lengths = block.files[0].uri, [length for _, length in groups_of_output(block, job)]
        blocks.append(Part(uri=uri, content=block.identity, group=0, rows=sum(lengths)))
        for group, length in enumerate(lengths):
            parts.append(Part(uri=uri, content=block.identity, group=group, rows=length))
    number = sum(part.rows for part in parts)
    if number <= settings.exact_search_rows:
        return run_step("pairs", load_pairs, pair_units(parts, settings), job, executor)
    larger = fitted(blocks, settings)
    if larger != settings:
        logger.info(
            "%s: partitions of %s rows instead of select.partition_rows=%s, so that %s rows make few enough parts",
            *(job.name, larger.partition_rows, settings.partition_rows, number),
        )
        settings = larger
        job = replace(job, settings=replace(job.settings, select=larger))
    units = shuffle_units(blocks, bit_tables(number, settings), settings.partition_rows)
    buckets = _labelled(run_step("shuffle", load_shuffle, units, job, executor), job)
    links = run_step("links", load_links, bucket_units(buckets, HASHED_ROWS * settings.partition_rows), job, executor)
    found = gather_units(signatures, _assigned(signatures, links, job))
    groups = _labelled(run_step("gather", load_gather, found, job, executor), job)
    return run_step("pairs", load_pairs, bucket_units(groups, settings.partition_rows), job, executor)


def _labelled(units: Sequence[Unit], job: StageJob) -> dict[tuple[int, int], list[Part]]:
    """The row groups of a step's outputs by their labels: those of a table, (table, label); else (0, label)."""
    parts: dict[tuple[int, int], list[Part]] = {}
    for unit in units:
        table = 0 if unit.bits is None else BitTable.of(unit).shift
        for group, (label, length) in enumerate(groups_of_output(unit, job)):
            part = Part(uri=unit.files[0].uri, content=unit.identity, group=group, rows=length)
            parts.setdefault((table, label), []).append(part)
    return parts


def _assigned(signatures: Sequence[Unit], links: Sequence[Unit], job: StageJob) -> list[Unit]:
    """For each block the groups of its pictures that are linked: a step whose work is done here."""
    numbers, groups = groups_of(
        (tables.from_parquet(job.store.read(unit.files[0].uri)) for unit in links), job.settings.select.partition_rows
    )
    place = StageDirectory(step_uri(job.directory, "groups"), job.store)
    found = dict[str, SealedUnit]()
    for block in signatures:
        here = _numbers_in(block, numbers)
        table = pa.table({"number": numbers[here], "group": groups[here]}, schema=GROUPS)
        counts = Counts(rows_in=len(table), kept=len(table), rows_out=len(table))
        found[block.name] = SealedUnit(rows=tables.to_parquet(table), excluded=b"", counts=counts)
    units = [
        Unit(name=name, identity=identity_of(hashlib.sha256(sealed.rows).hexdigest()), kind=UnitKind.PART, files=())
        for name, sealed in found.items()
    ]
    present = place.rows_present()
    plan = make_plan(units, place.manifests(), present)
    clear(place, plan, present, units)
    for unit in plan.todo:
        place.commit(unit, found[unit.name])
    files = (InputFile(name=f"{unit.name}.parquet", uri=place.rows_uri(unit.name), size=0) for unit in units)
    return [replace(unit, files=(file,)) for unit, file in zip(units, files, strict=True)]


def _seal(block: Unit, found: _Found, job: StageJob) -> SealedUnit:
    """A block's pictures that are dropped."""
    here, exclusions = _numbers_in(block, found.copies.numbers), _exclusions(block, job)
    numbers, uids = _named(block, "uid", job)
    numbers = np.concatenate([numbers, exclusions.twins.numbers])
    uids = pa.chunked_array([*uids.chunks, pa.array(exclusions.uids, pa.large_string())])
    order = np.argsort(numbers)
    dropped = order[np.searchsorted(numbers[order], found.copies.numbers[here])]
    survivors = np.searchsorted(found.survivors, found.copies.survivors[here])
    exact = job.settings.select.exact_duplicates
    reasons = [EXACT if exact and equal else NEAR for equal in found.copies.equal[here].tolist()]
    table = pa.table(
        {
            "uid": [*uids.take(pa.array(dropped)).to_pylist(), *exclusions.evaluation],
            "reason": [*reasons, *[EVALUATION] * len(exclusions.evaluation)],
            "survivor": [*found.keys.take(pa.array(survivors)).to_pylist(), *exclusions.evaluation.values()],
        },
        schema=DUPLICATES,
    )
    counts = {count["values"]: count["counts"] for count in pc.value_counts(table["reason"]).to_pylist()}
    counted = Counts(rows_in=table.num_rows, dropped=counts, rows_out=table.num_rows)
    return SealedUnit(rows=tables.to_parquet(table), excluded=b"", counts=counted)
