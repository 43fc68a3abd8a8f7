"""Units of a corpus, read from its listings, its tables of URLs and its table of captions."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.stage import StageInput
from realcustom.preprocessing.engine.unit import InputFile, Unit, UnitKind, identity_of
from realcustom.preprocessing.ingest.folder import SIDECARS, sidecar_name
from realcustom.preprocessing.ingest.metadata import Describe, describer
from realcustom.preprocessing.ingest.parquet import check_source_table
from realcustom.preprocessing.ingest.sample import is_text
from realcustom.preprocessing.ingest.url_units import is_url_table, url_units
from realcustom.preprocessing.inputs import file_unit, files_of, sorted_units
from realcustom.preprocessing.pictures import EXTENSIONS, UNDECODED_EXTENSIONS
from realcustom.preprocessing.settings import IngestSettings, PreprocessSettings, SourceKind
from realcustom.storage import FileEntry
from realcustom.store import Store

_FINGERPRINTED = re.compile(r"[a-z_]+@[0-9a-f]{12}")  # the name of a stage's directory


def open_corpus(uri: str, settings: PreprocessSettings, store: Store) -> StageInput:
    """The corpus at `uri` as the input of a source stage.

    Raises:
        UsageError: it holds nothing to read, a mixture, or tables without the columns that the settings name.
    """
    units = _units(uri, settings.ingest, store)
    name = settings.ingest.corpus if settings.ingest.corpus is not None else storage.absolute(uri)
    return StageInput(units=sorted_units(units), upstream=f"corpus {name}", description=None, finished=True)


def _units(uri: str, settings: IngestSettings, store: Store) -> list[Unit]:
    entries = _without_stages(files_of(uri, store))
    names = {entry.name for entry in entries}
    # the shards of `export` are a corpus
    if "stage.json" in names and not any(name.endswith(".tar") for name in names):
        raise UsageError(f"{uri} is what a stage wrote, and ingest reads a corpus: give what that one came from")
    entries = [entry for entry in entries if not posixpath.basename(entry.name).startswith(".")]
    kind, files = _source(uri, entries, settings, store)
    if kind is not SourceKind.PICTURES and (settings.metadata or settings.caption_template):
        name = "metadata" if settings.metadata else "caption_template"
        raise UsageError(f"ingest.{name} describes the pictures of a folder, and {uri} is read as {kind.value}")
    if kind is SourceKind.PICTURES:
        sidecars = {sidecar_name(entry.name): entry for entry in entries if sidecar_name(entry.name)}
        return list(_picture_units(files, sidecars, describer(settings, store), settings.unit_size))
    unreadable = next((entry.name for entry in files if not is_text(entry.name)), None)
    if unreadable is not None:
        raise UsageError(f"the name of {unreadable!a} in {uri} is not UTF-8: rename it")
    if kind is SourceKind.URLS:
        return url_units(files, settings, store)
    if kind is SourceKind.PARQUET:
        first, schema = tables.first_schema(files, store)
        check_source_table(schema, settings, first.name)
    return [file_unit(entry, UnitKind.TAR if kind is SourceKind.WEBDATASET else UnitKind.TABLE) for entry in files]


def _without_stages(entries: Sequence[FileEntry]) -> list[FileEntry]:
    """The files that are not in a stage's directory below the corpus."""
    homes = {posixpath.dirname(entry.name) for entry in entries if posixpath.basename(entry.name) == "stage.json"}
    stages = tuple(f"{home}/" for home in homes if _FINGERPRINTED.fullmatch(posixpath.basename(home)))
    return [entry for entry in entries if not entry.name.startswith(stages)]


def _source(
    uri: str, entries: Sequence[FileEntry], settings: IngestSettings, store: Store
) -> tuple[SourceKind, list[FileEntry]]:
    """The kind of the corpus, and its files."""
    parquet = [entry for entry in entries if entry.name.endswith(".parquet")]
    sheets = [entry for entry in entries if entry.name.endswith(".csv")]
    by_kind = {
        SourceKind.WEBDATASET: [entry for entry in entries if entry.name.endswith(".tar")],
        SourceKind.PARQUET: parquet,
        SourceKind.PICTURES: [
            entry for entry in entries if _extension(entry.name) in (*EXTENSIONS, *UNDECODED_EXTENSIONS)
        ],
        SourceKind.URLS: [*parquet, *sheets],
    }
    kind = settings.source
    if kind is SourceKind.AUTO:
        kind = _detect(uri, by_kind, settings, store)
    if not by_kind[kind]:
        known = f".tar shards, .parquet or .csv tables, or pictures (.{', .'.join(EXTENSIONS)})"
        wanted = known if settings.source is SourceKind.AUTO else f"{kind.value} files"
        raise UsageError(f"{uri} is an empty corpus: no {wanted} among its {len(entries)} files")
    return kind, by_kind[kind]


def _detect(uri: str, by_kind: dict[SourceKind, list[FileEntry]], settings: IngestSettings, store: Store) -> SourceKind:
    """By the names of the files; a table is one of URLs if it has such a column and none of pictures. A .csv counts
    only where there is nothing else: beside pictures it is a list of them."""
    found = [kind for kind, files in by_kind.items() if files and kind is not SourceKind.URLS]
    if len(found) > 1:
        counts = ", ".join(f"{len(by_kind[kind])} of {kind.value}" for kind in found)
        raise UsageError(f"{uri} holds {counts}: say which is meant with ingest.source={found[0].value}")
    if not found:
        return SourceKind.URLS if by_kind[SourceKind.URLS] else SourceKind.PICTURES
    if found == [SourceKind.PARQUET]:
        _, schema = tables.first_schema(by_kind[SourceKind.PARQUET], store)
        return SourceKind.URLS if is_url_table(schema, settings) else SourceKind.PARQUET
    return found[0]


def _picture_units(
    files: Sequence[FileEntry], sidecars: dict[str, FileEntry], describe: Describe | None, unit_size: int
) -> Iterator[Unit]:
    for number, first in enumerate(range(0, len(files), unit_size)):
        inputs: list[InputFile] = []
        identities: list[list[str | int]] = []
        for entry in files[first : first + unit_size]:
            said = describe(entry.name) if describe is not None else None
            caption, unlisted = (said.caption, said.unlisted) if said is not None else (None, "")
            inputs.append(
                InputFile(name=entry.name, uri=entry.uri, size=entry.size, caption=caption, unlisted=unlisted)
            )
            identities.append([entry.name, entry.size, entry.version])
            if said is not None:
                identities[-1] += [caption or "", unlisted]
            stem = posixpath.splitext(entry.name)[0]
            for beside in (sidecars[stem + kind] for kind in SIDECARS if stem + kind in sidecars):
                inputs.append(InputFile(name=beside.name, uri=beside.uri, size=beside.size))
                identities.append([beside.name, beside.size, beside.version])
        name = f"pictures-{number:05d}"
        yield Unit(name=name, identity=identity_of(identities), kind=UnitKind.PICTURES, files=tuple(inputs))


def check_tables(units: Sequence[Unit], settings: IngestSettings, store: Store) -> None:
    """Raise UsageError if one of a source's tables lacks a column that the settings name. Reads every footer."""

    def check(unit: Unit) -> None:
        file = unit.files[0]
        try:
            schema = store.call(tables.read_schema, file.uri)
        except pa.ArrowInvalid:  # reported where it is read
            return
        check_source_table(schema, settings, file.name)

    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(check, (unit for unit in units if unit.kind is UnitKind.TABLE)))


def _extension(name: str) -> str:
    return posixpath.splitext(name)[1].removeprefix(".").lower()
