"""The global phase of `select`: over the small columns of the whole corpus, who is a copy of whom.

    global/signatures, shuffle, pairs       steps of the search (partitions.py), each a directory of units
    global/duplicates                       for each block its pictures that are dropped, and which ones stay instead

Every step's units are planned against what is there, as a stage's are: a kill loses the units in flight, and what did
not change is not done again. The last step runs where the driver is; its memory grows with the number of copies.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pyarrow as pa

from preprocessing import rows
from preprocessing.access import access
from preprocessing.duplicates import DUPLICATES, Duplicate, Twin, cluster_sizes, resolve
from preprocessing.entry import read, unsupported
from preprocessing.errors import DataError, retry
from preprocessing.folder import SIDECARS
from preprocessing.hashes import BASE_SIDE, signature
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
from preprocessing.pictures import EXTENSIONS, UNDECODED_EXTENSIONS, decode
from preprocessing.planning import make_plan
from preprocessing.progress import Progress
from preprocessing.steps import evaluation_uri, read_aside
from preprocessing.uids import check_uids
from preprocessing.unit import Counts, InputFile, SealedUnit, StageDirectory, Step, Unit, UnitKind, identity_of
from preprocessing.worker import Job
from realcustom import storage

RunUnits = Callable[[Job, Sequence[Unit]], Iterable[Counts]]


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
        by_block: dict[str, list[Duplicate]] = {block.name: [] for block in blocks}
        for entry in found:
            by_block[entry.block].append(entry)
        for unit in plan.todo:
            place.commit(unit, _seal(by_block[unit.name]))
    outputs = {manifest.unit: manifest.output for manifest in place.manifests()}
    selected = []
    for number, unit in enumerate(units):
        block = blocks[number // UNITS_PER_BLOCK].name
        file = InputFile(name=f"{block}.parquet", uri=place.rows_uri(block), size=0)
        identity = identity_of(unit.identity, outputs[block])
        selected.append(replace(unit, identity=identity, files=(*unit.files, file)))
    return tuple(selected)


def count_clusters(job: Job) -> dict[str, int]:
    """Size of a set of copies (survivor included) -> how many there are."""
    place = _duplicates(job)
    return cluster_sizes(rows.from_parquet(place.read(place.rows_uri(item.unit))) for item in place.manifests())


def _duplicates(job: Job) -> StageDirectory:
    return StageDirectory(storage.join(job.directory, "global", "duplicates"), job.settings.execution)


def _search(blocks: Sequence[Unit], job: Job, run: RunUnits) -> list[Duplicate]:
    """All duplicates of the corpus, by uid."""
    settings = job.settings.select
    signatures = _run_step(Step.SIGNATURES, blocks, job, run)
    directory = StageDirectory(replace(job, step=Step.SIGNATURES).place, job.settings.execution)
    found: list[Duplicate] = []
    twins: list[Twin] = []
    for block in signatures:
        out_of, alike = read_aside(directory.read(directory.aside_uri(block.name)))
        found += out_of
        twins += alike
    edges: list[Unit] = []
    if settings.exact_duplicates or settings.near_duplicate_radius is not None:
        edges = _run_step(Step.PAIRS, _pair_units(signatures, job, run), job, run)
    tables = (rows.from_parquet(directory.read(unit.files[0].uri)) for unit in edges)
    return [*found, *resolve(tables, twins, settings.exact_duplicates)]


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


def _seal(duplicates: Sequence[Duplicate]) -> SealedUnit:
    names = DUPLICATES.names
    lines = [{name: getattr(entry, name) for name in names} for entry in sorted(duplicates, key=lambda e: e.uid)]
    reasons = [entry.reason for entry in duplicates]
    dropped = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    counts = Counts(rows_in=len(lines), dropped=dropped, rows_out=len(lines))
    return SealedUnit(rows=rows.to_parquet(pa.Table.from_pylist(lines, schema=DUPLICATES)), aside=b"", counts=counts)


def prepare_evaluation(job: Job) -> bytes | None:
    """The signatures of the evaluation folder's pictures as a table's bytes; None if there is no folder, or they are there.

    Raises ValueError for a picture that cannot be read: it could not be kept out of the corpus.
    """
    folder = job.settings.select.evaluation_folder
    if folder is None or storage.exists(evaluation_uri(job.directory)):
        return None
    found = []
    for entry in storage.list_files(folder):
        extension = posixpath.splitext(entry.name)[1].removeprefix(".").lower()
        if posixpath.basename(entry.name).startswith(".") or f".{extension}" in (*SIDECARS, ".csv"):
            continue
        if extension not in (*EXTENSIONS, *UNDECODED_EXTENSIONS):
            raise ValueError(
                f"select.evaluation_folder: {entry.uri} has no picture's extension, and if it is one its copies could "
                f"not be found; rename it or take it away"
            )
        try:
            if extension in UNDECODED_EXTENSIONS:
                raise unsupported(extension)
            picture = signature(decode(read(entry.uri, job.settings.execution), draft_side=BASE_SIDE))
        except DataError as error:
            raise ValueError(
                f"select.evaluation_folder: {entry.uri} cannot be read ({error.fault.value}: {error.message}), and so "
                f"its copies could not be found; repair it or take it away"
            ) from error
        found.append({"name": entry.name, **dataclasses.asdict(picture)})
    if not found:
        raise ValueError(f"select.evaluation_folder: no picture in {folder}")
    schema = pa.schema([pa.field("name", pa.string(), nullable=False), *rows.SIGNATURE_FIELDS])
    return rows.to_parquet(pa.Table.from_pylist(found, schema=schema))
