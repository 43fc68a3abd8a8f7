"""What there is to do: the units of an input, those that are done, and the directory that a stage writes to.

From listings: nothing of a picture or a manifest is opened here. Of tables the footer of one is, or of those of URLs each,
and a CSV is read whole, for its lines are not counted anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realcustom import record, storage
from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.unit import InputFile, ManifestName, StageDirectory, Unit, UnitKind
from realcustom.preprocessing.errors import retry
from realcustom.preprocessing.ingest.corpus import file_unit, files_of, first_schema, open_corpus
from realcustom.preprocessing.settings import ExecutionSettings, PreprocessSettings, Stage

# Whose output a stage can read.
_READS = {
    Stage.SCORE: (Stage.INGEST,),
    Stage.SELECT: (Stage.SCORE,),
    Stage.CAPTION: (Stage.SELECT, Stage.SCORE, Stage.INGEST),
    Stage.SUBJECTS: (Stage.CAPTION,),
    Stage.ENCODE: (Stage.SUBJECTS,),
    Stage.EXPORT: (Stage.INGEST, Stage.SCORE, Stage.SELECT, Stage.CAPTION),
}
# The columns that a stage needs of a user's own table.
_NEEDS = {
    Stage.SCORE: tuple(tables.INGESTED),
    Stage.SELECT: (*tables.HASHED, *tables.SCORE_FIELDS),
    Stage.CAPTION: tuple(tables.INGESTED),
    Stage.SUBJECTS: (*tables.INGESTED, *tables.CAPTION_FIELDS),
    Stage.ENCODE: tuple(record.SCHEMA),
    Stage.EXPORT: tuple(tables.INGESTED),
}


@dataclass(frozen=True, kw_only=True)
class StageInput:
    """The units that a stage reads."""

    units: tuple[Unit, ...]  # sorted by name
    upstream: str  # what identifies where they come from; part of the fingerprint
    description: dict[str, Any] | None  # stage.json of the stage that wrote them; null: not one of ours
    finished: bool  # whether that stage says it is complete


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a stage has to do in its directory."""

    todo: tuple[Unit, ...]
    done: tuple[ManifestName, ...]
    stale: tuple[ManifestName, ...]  # of units whose input changed: to be removed before they are done again
    gone: tuple[ManifestName, ...]  # of units that are no longer in the input: to be removed with their outputs


def open_input(stage: Stage, uri: str, settings: PreprocessSettings) -> StageInput:
    """List the units of `uri` for `stage`.

    Raises:
        ValueError: nothing is there, nothing in it can be read, or it is what another stage writes.
    """
    if not storage.exists(uri):
        raise UsageError(f"no input at {uri}: there is no such file or folder")
    if stage is Stage.INGEST:
        units = open_corpus(uri, settings.ingest, settings.execution)
        name = settings.ingest.corpus if settings.ingest.corpus is not None else _address(uri)
        return StageInput(units=_sorted(units), upstream=f"corpus {name}", description=None, finished=True)
    if storage.is_dir(uri) and storage.exists(storage.join(uri, "stage.json")):
        return _open_stage(stage, uri, StageDirectory(uri, settings.execution))
    return _open_table(stage, uri, settings.execution)


def make_plan(units: Sequence[Unit], manifests: Sequence[ManifestName], present: Collection[str]) -> Plan:
    """Compare the input's units with what is there. A unit is done if its only manifest fits it.

    Args:
        present: units whose rows are there; one whose rows somebody removed is done again.
    """
    by_unit: dict[str, list[ManifestName]] = {}
    for manifest in manifests:
        by_unit.setdefault(manifest.unit, []).append(manifest)
    todo, done, stale = [], [], []
    for unit in units:
        found = by_unit.pop(unit.name, [])
        if len(found) == 1 and found[0].identity == unit.identity and unit.name in present:
            done.append(found[0])
        else:
            todo.append(unit)
            stale += found
    gone = [manifest for found in by_unit.values() for manifest in found]
    return Plan(todo=tuple(todo), done=tuple(done), stale=tuple(stale), gone=tuple(gone))


def _open_stage(stage: Stage, uri: str, directory: StageDirectory) -> StageInput:
    description = json.loads(directory.read(storage.join(uri, "stage.json")))
    wrote = Stage(description["stage"])
    if wrote not in _READS[stage]:
        allowed = " or ".join(reads.value for reads in _READS[stage])
        raise UsageError(f"{stage.value} reads what {allowed} wrote, and {uri} was written by {wrote.value}")
    manifests = directory.manifests()
    units = []
    for manifest in manifests:
        file = InputFile(name=f"{manifest.unit}.parquet", uri=directory.rows_uri(manifest.unit), size=0)
        units.append(Unit(name=manifest.unit, identity=manifest.output, kind=UnitKind.PART, files=(file,)))
    if not units:
        raise UsageError(f"{uri}: {wrote.value} has finished no unit yet; run it first")
    if stage is Stage.SELECT:  # of a user's own table that was scored, hashes may be missing
        table_uri = units[0].files[0].uri
        schema = retry(lambda: tables.read_schema(table_uri), *directory.retries)
        tables.require_columns(schema, _NEEDS[stage], f"{stage.value} cannot read {table_uri}")
    finished = storage.exists(storage.join(uri, "report.json"))
    upstream = f"{wrote.value}@{description['fingerprint']}"
    return StageInput(units=_sorted(units), upstream=upstream, description=description, finished=finished)


def _open_table(stage: Stage, uri: str, execution: ExecutionSettings) -> StageInput:
    entries = [entry for entry in files_of(uri) if entry.name.endswith(".parquet")]
    nested = sorted({entry.name.split("/")[0] for entry in entries if "@" in entry.name.split("/")[0]})
    if nested:
        raise UsageError(f"{uri} is not a stage's directory but holds some: give one of {', '.join(nested)}")
    if not entries:
        raise UsageError(f"{uri} is neither a stage's directory (no stage.json) nor a folder of .parquet tables")
    first, schema = first_schema(entries, execution)
    tables.require_columns(schema, _NEEDS[stage], f"{stage.value} cannot read {first.uri}")
    units = [file_unit(entry, UnitKind.PART) for entry in entries]
    return StageInput(units=_sorted(units), upstream=f"table {_address(uri)}", description=None, finished=True)


def _sorted(units: Sequence[Unit]) -> tuple[Unit, ...]:
    names = [unit.name for unit in units]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise UsageError(f"two inputs give one unit name '{twice}': a unit was committed twice, or files clash")
    return tuple(sorted(units, key=lambda unit: unit.name))


def _address(uri: str) -> str:
    return uri if storage.is_remote(uri) else str(Path(uri.removeprefix("file://")).absolute())
