"""The input of a stage: a corpus, the directory that another stage wrote, or a user's own table, as units.

Made from listings: no picture or manifest is opened here. The footer of one table is read (of tables of URLs the footer
of each), and a CSV is read completely, because no file stores its number of lines.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import pyarrow as pa

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.directory import StageDirectory, read_description
from realcustom.preprocessing.engine.stage import Stage, StageInput
from realcustom.preprocessing.engine.unit import InputFile, Unit, UnitKind, identity_of, unit_name
from realcustom.preprocessing.settings import PreprocessSettings
from realcustom.storage import FileEntry
from realcustom.store import Store


def open_input(stage: Stage, uri: str, settings: PreprocessSettings, store: Store) -> StageInput:
    """List the units of `uri` for `stage`.

    Raises:
        UsageError: nothing is there, nothing in it can be read, or it is what another stage writes.
    """
    if not store.exists(uri):
        raise UsageError(f"no input at {uri}: there is no such file or folder")
    if stage.open_source is not None:
        return stage.open_source(uri, settings, store)
    if store.is_dir(uri) and store.exists(storage.join(uri, "stage.json")):
        return _open_stage(stage, uri, store)
    return _open_table(stage, uri, store)


def _open_stage(stage: Stage, uri: str, store: Store) -> StageInput:
    description = read_description(uri, store)
    wrote = str(description["stage"])
    if wrote not in stage.reads:
        raise UsageError(f"{stage.name} reads what {' or '.join(stage.reads)} wrote, and {uri} was written by {wrote}")
    directory = StageDirectory(uri, store)
    units = []
    for manifest in directory.manifests():
        file = InputFile(name=f"{manifest.unit}.parquet", uri=directory.rows_uri(manifest.unit), size=0)
        units.append(Unit(name=manifest.unit, identity=manifest.output, kind=UnitKind.PART, files=(file,)))
    if not units:
        raise UsageError(f"{uri}: {wrote} has finished no unit yet; run it first")
    finished = store.exists(storage.join(uri, "report.json"))
    upstream = f"{wrote}@{description['fingerprint']}"
    return StageInput(units=sorted_units(units), upstream=upstream, description=description, finished=finished)


def check_columns(stage: Stage, source: StageInput, store: Store) -> None:
    """Raise UsageError if a table that another stage wrote lacks a column that the stage needs.

    A stage passes on what it read, and columns may be missing in a user's own table.
    """
    uri = source.units[0].files[0].uri
    try:
        schema = store.call(tables.read_schema, uri)
    except pa.ArrowInvalid:  # reported where it is read
        return
    tables.require_columns(schema, stage.needs, f"{stage.name} cannot read {uri}")


def _open_table(stage: Stage, uri: str, store: Store) -> StageInput:
    entries = [entry for entry in files_of(uri, store) if entry.name.endswith(".parquet")]
    nested = sorted({entry.name.split("/")[0] for entry in entries if "@" in entry.name.split("/")[0]})
    if nested:
        raise UsageError(f"{uri} is not a stage's directory but holds some: give one of {', '.join(nested)}")
    if not entries:
        raise UsageError(f"{uri} is neither a stage's directory (no stage.json) nor a folder of .parquet tables")
    first, schema = tables.first_schema(entries, store)
    tables.require_columns(schema, stage.needs, f"{stage.name} cannot read {first.uri}")
    units = [file_unit(entry, UnitKind.PART) for entry in entries]
    return StageInput(
        units=sorted_units(units), upstream=f"table {storage.absolute(uri)}", description=None, finished=True
    )


def file_unit(entry: FileEntry, kind: UnitKind) -> Unit:
    """A file that is a unit by itself."""
    file = InputFile(name=entry.name, uri=entry.uri, size=entry.size)
    identity = identity_of(entry.size, entry.version)
    return Unit(name=unit_name(entry.name), identity=identity, kind=kind, files=(file,))


def files_of(uri: str, store: Store) -> list[FileEntry]:
    """The files below a folder; or the one file at `uri`."""
    if store.is_dir(uri):
        return store.list_files(uri)
    folder, name = posixpath.split(uri.rstrip("/"))  # of /table.parquet the folder is /
    return [entry for entry in store.list_files(folder or ".", recursive=False) if entry.name == name]


def sorted_units(units: Sequence[Unit]) -> tuple[Unit, ...]:
    """Units by name. Raises UsageError if two have the same."""
    names = [unit.name for unit in units]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise UsageError(f"two inputs give one unit name '{twice}': a unit was committed twice, or files clash")
    return tuple(sorted(units, key=lambda unit: unit.name))
