"""The phase of `views` over all units.

    global/embedded   a unit's records -> their vectors, in row groups by a hash of the target word
    global/links      the rows of some words -> pairs of views (neighbours.py), in row groups by block of units
    global/blocks     a block's links, in one file

A worker holds two partitions of vectors (`views.partition_rows` rows of 4 kB at 2 x 768 values in 16 bits, twice that while it
computes) and some 0.1 kB for each record of the most frequent word; the driver a few hundred bytes a unit. Time grows with the
square of a word's records.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.executors import Executor
from realcustom.preprocessing.engine.ledger import RowLedger
from realcustom.preprocessing.engine.stage import Prepared, StageInput
from realcustom.preprocessing.engine.steps import groups_of_output, run_step
from realcustom.preprocessing.engine.unit import Counts, InputFile, SealedUnit, Unit, UnitKind, identity_of
from realcustom.preprocessing.engine.worker import StageJob, Work
from realcustom.preprocessing.errors import naming
from realcustom.preprocessing.pictures import decode
from realcustom.preprocessing.settings import ViewsSettings, fixed_batch
from realcustom.preprocessing.views.neighbours import Rows, mutual_neighbours, quantised
from realcustom.store import Store

if TYPE_CHECKING:
    from realcustom.preprocessing.views.embedder import Embedder

UNITS_PER_BLOCK = 64
_LABELS = 256  # row groups of a file of vectors, at most
_ROW_BITS = 32  # of a record's number: its row in the unit
_EMBEDDED = pa.schema(
    [
        pa.field("number", pa.int64()),
        pa.field("uid", pa.string()),
        pa.field("word", pa.int64()),  # hash of the target word
        pa.field("parent", pa.int64()),  # hash of the picture's uid
        pa.field("vector", pa.binary()),  # int16, little-endian: see neighbours.quantised
    ]
)
_LINKS = pa.schema([pa.field("uid", pa.string()), pa.field("other", pa.string())])


def find_views(job: StageJob, source: StageInput, executor: Executor) -> Prepared:
    """Find the views among all units' records, unless that is done: `prepare` of stage `views`.

    Returns:
        The units, each with the file of its block's links if there are any; and how many records have how many links.
    """
    numbered = [
        replace(unit, files=(replace(unit.files[0], number=number),)) for number, unit in enumerate(source.units)
    ]
    embedded = run_step("embedded", _load_embedded, numbered, job, executor)
    without_models = replace(job, models={}, given={})
    links = run_step("links", _load_links, _word_units(embedded, job), without_models, executor)
    blocks = _block_units(links, job)
    files = {unit.name: unit for unit in run_step("blocks", _load_blocks, blocks, without_models, executor)}
    units = []
    for number, unit in enumerate(source.units):
        block = files.get(_block_name(number // UNITS_PER_BLOCK))
        if block is None:
            units.append(unit)
        else:
            identity = identity_of(unit.identity, block.identity)
            units.append(replace(unit, identity=identity, files=(*unit.files, block.files[0])))
    number_of_links = sum(rows for unit in links for _, rows in groups_of_output(unit, job))
    return Prepared(units=tuple(units), report={"links": number_of_links})


def _load_embedded(job: StageJob) -> Work:
    from realcustom.preprocessing.views.embedder import Embedder  # torch only where a model runs

    runtime = job.runtime()
    assert runtime is not None
    embedder, settings, store = Embedder(job.settings.views, runtime), job.settings.views, job.store
    return lambda unit, data: _embedded(unit, embedder, settings, store, runtime.threads)


def _load_links(job: StageJob) -> Work:
    return lambda unit, data: _links(unit, job.settings.views, job.store)


def _load_blocks(job: StageJob) -> Work:
    return lambda unit, data: _block(unit, job.store)


def _embedded(unit: Unit, embedder: Embedder, settings: ViewsSettings, store: Store, threads: int) -> SealedUnit:
    """A unit's records as `_EMBEDDED`, in row groups labelled by a hash of the word; one whose crop is broken is left out."""
    [file] = unit.files
    assert file.number is not None, unit.name
    columns = ["uid", "parent_uid", "target_word", "subject_image", "subject_box"]
    table = store.call(lambda uri: tables.read_columns(uri, columns), file.uri)
    is_cut = table["subject_image"].is_valid().to_pylist()
    encoded = table["subject_image"]
    if not all(is_cut):  # else the pictures, larger than all the rest, are not read
        whole = store.call(lambda uri: tables.read_columns(uri, ["image"]), file.uri)
        encoded = pc.coalesce(encoded, whole["image"])
    ledger = RowLedger(table.select(columns[:3]).append_column("image", encoded), unit.name)

    def crop(row: int, data: bytes) -> Image.Image:
        picture = decode(data)
        box = None if is_cut[row] else table["subject_box"][row].as_py()
        return picture if box is None else picture.crop(tuple(round(side) for side in box))

    vectors: list[bytes] = []
    size = fixed_batch(settings.batch_size)
    for batch, crops in ledger.prepared_batches(size, crop, threads):
        with naming(ledger.batch_name(batch)):
            vectors += [vector.tobytes() for vector in quantised(embedder(crops, size))]
    kept = ledger.remaining()
    words = [_hash(word.lower()) for word in table["target_word"].to_pylist()]
    rows = pa.table(
        {
            "number": [(file.number << _ROW_BITS) + row for row in kept],
            "uid": [table["uid"][row].as_py() for row in kept],
            "word": [words[row] for row in kept],
            "parent": [_hash(table["parent_uid"][row].as_py()) for row in kept],
            "vector": vectors,
        },
        schema=_EMBEDDED,
    )
    lines = "".join(json.dumps(row.to_dict(), ensure_ascii=False) + "\n" for row in ledger.excluded)
    counts = Counts(rows_in=table.num_rows, kept=len(kept), rows_out=len(kept))
    counts.quarantined = {"crop": len(ledger.excluded)} if ledger.excluded else {}
    return SealedUnit(rows=_by_label(rows, np.asarray(rows["word"]) % _LABELS), excluded=lines.encode(), counts=counts)


def _links(unit: Unit, settings: ViewsSettings, store: Store) -> SealedUnit:
    """The views among the rows of a unit's words, in row groups labelled by block."""
    parts = [functools.partial(_read_rows, files, store) for files in _packed(unit.files, settings.partition_rows)]
    found = mutual_neighbours(parts, settings)
    names = [_read(files, store, ["number", "uid"]) for files in _packed(unit.files, settings.partition_rows)]
    named = pa.concat_tables(names).sort_by("number")
    numbers = np.asarray(named["number"])
    uids = named["uid"].combine_chunks()
    columns = [uids.take(pa.array(np.searchsorted(numbers, side))) for side in (found.numbers, found.others)]
    table = pa.table(dict(zip(_LINKS.names, columns, strict=True)), schema=_LINKS)
    counts = Counts(rows_in=len(numbers), kept=len(numbers), rows_out=table.num_rows)
    labels = (found.numbers >> _ROW_BITS) // UNITS_PER_BLOCK
    return SealedUnit(rows=_by_label(table, labels), excluded=b"", counts=counts)


def _block(unit: Unit, store: Store) -> SealedUnit:
    """A block's links of all words."""
    table = pa.concat_tables(_read_groups([file], store) for file in unit.files)
    counts = Counts(rows_in=table.num_rows, kept=table.num_rows, rows_out=table.num_rows)
    return SealedUnit(rows=tables.to_parquet(table), excluded=b"", counts=counts)


def _by_label(table: pa.Table, labels: np.ndarray) -> bytes:
    """Parquet bytes with a row group for each label that occurs, rows in their order."""
    present = np.unique(labels)
    groups = [table.take(pa.array(np.flatnonzero(labels == label))) for label in present]
    return tables.to_parquet_groups(groups, table.schema, labels=present.tolist())


def _word_units(embedded: Sequence[Unit], job: StageJob) -> list[Unit]:
    """The rows of consecutive labels, about `partition_rows` rows a unit; a label, and so a word, is never cut."""
    parts: dict[int, list[tuple[InputFile, str]]] = {}
    for unit in embedded:
        for group, (label, rows) in enumerate(groups_of_output(unit, job)):
            file = replace(unit.files[0], group=group, rows=rows, number=None)
            parts.setdefault(label, []).append((file, unit.identity))
    units: list[Unit] = []
    packed: list[tuple[InputFile, str]] = []
    first = 0
    for label in sorted(parts):
        if packed and _rows([file for file, _ in packed + parts[label]]) > job.settings.views.partition_rows:
            units.append(_unit(f"words-{first:03d}", packed))
            packed = []
        first = first if packed else label
        packed = packed + parts[label]
    return [*units, _unit(f"words-{first:03d}", packed)] if packed else units


def _block_units(links: Sequence[Unit], job: StageJob) -> list[Unit]:
    """One unit for each block that has links."""
    parts: dict[int, list[tuple[InputFile, str]]] = {}
    for unit in links:
        for group, (block, rows) in enumerate(groups_of_output(unit, job)):
            if rows:
                file = replace(unit.files[0], group=group, rows=rows, number=None)
                parts.setdefault(block, []).append((file, unit.identity))
    return [_unit(_block_name(block), parts[block]) for block in sorted(parts)]


def _unit(name: str, parts: Sequence[tuple[InputFile, str]]) -> Unit:
    identity = identity_of([[content, file.group] for file, content in parts])
    return Unit(name=name, identity=identity, kind=UnitKind.PART, files=tuple(file for file, _ in parts))


def _block_name(number: int) -> str:
    return f"block-{number:05d}"


def _rows(files: Sequence[InputFile]) -> int:
    return sum(file.rows or 0 for file in files)


def _packed(files: Sequence[InputFile], rows: int) -> list[list[InputFile]]:
    """Consecutive row groups, about `rows` rows at a time."""
    packed: list[list[InputFile]] = []
    for file in files:
        if packed and _rows([*packed[-1], file]) <= rows:
            packed[-1].append(file)
        else:
            packed.append([file])
    return packed


def _read_rows(files: Sequence[InputFile], store: Store) -> Rows:
    table = _read(files, store, _EMBEDDED.names)
    vectors = np.frombuffer(b"".join(table["vector"].to_pylist()), "<i2").reshape(table.num_rows, -1)
    numbers, words, parents = (np.asarray(table[name]) for name in ("number", "word", "parent"))
    return Rows(numbers=numbers, words=words, parents=parents, vectors=vectors.astype(np.float32))


def _read(files: Sequence[InputFile], store: Store, columns: Sequence[str]) -> pa.Table:
    """Row groups of files of vectors, by number."""
    return _read_groups(files, store).select(list(columns)).sort_by("number")


def _read_groups(files: Sequence[InputFile], store: Store) -> pa.Table:
    places = list[tuple[str, int]]()
    for file in files:
        assert file.group is not None, file.name
        places.append((file.uri, file.group))
    return tables.read_row_groups(places, store)


def _hash(text: str) -> int:
    """63 bits of a text's sha256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
