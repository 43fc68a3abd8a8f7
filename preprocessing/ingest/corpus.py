"""Units of a corpus, read from its listing, its tables of URLs and its tables of captions."""

from __future__ import annotations

import contextlib
import itertools
import logging
import posixpath
import re
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from realcustom import storage
from realcustom.entries import Entries
from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.stage import StageInput
from realcustom.preprocessing.engine.unit import Unit, UnitKind
from realcustom.preprocessing.ingest.any_table import columns_of
from realcustom.preprocessing.ingest.caption_documents import warn_of_choices
from realcustom.preprocessing.ingest.caption_tables import CaptionTables, read_caption_tables
from realcustom.preprocessing.ingest.columns import by_rule
from realcustom.preprocessing.ingest.compressed import plain_name
from realcustom.preprocessing.ingest.contents import Contents, Source, find_source
from realcustom.preprocessing.ingest.listing import (
    UNNAMED,
    UNREADABLE,
    NotRead,
    is_addressable,
    kind_of,
    list_corpus,
    pictures_among,
)
from realcustom.preprocessing.ingest.metadata import Describe, Described, JoinedTable, describer
from realcustom.preprocessing.ingest.parquet import check_source_table, table_units
from realcustom.preprocessing.ingest.picture_units import picture_units
from realcustom.preprocessing.ingest.sample import is_text
from realcustom.preprocessing.ingest.sidecars import found_beside, merged, sidecar_name, sidecar_names
from realcustom.preprocessing.ingest.text_table import WITH_COLUMNS
from realcustom.preprocessing.ingest.url_units import url_units
from realcustom.preprocessing.inputs import file_unit, sorted_units
from realcustom.preprocessing.settings import IngestSettings, PreprocessSettings, SourceKind
from realcustom.storage import FileEntry
from realcustom.store import OF_ONE_FILE, Store

logger = logging.getLogger(__name__)

_MANY = 10_000_000  # single files: listing them takes a driver minutes and gigabytes, and each is a request of its own
_FINGERPRINTED = re.compile(r"[a-z_]+@[0-9a-f]{12}")  # the name of a stage's directory


def open_corpus(uri: str, settings: PreprocessSettings, store: Store) -> StageInput:
    """The corpus at `uri` as the input of a source stage.

    Raises:
        UsageError: it holds nothing to read, a mixture, or tables without the columns that the settings name.
    """
    units, account = _open(uri, settings.ingest, store)
    name = settings.ingest.corpus if settings.ingest.corpus is not None else storage.absolute(uri)
    return StageInput(
        units=sorted_units(units),
        upstream=f"corpus {name}",
        description=None,
        finished=True,
        account=account,
        rows=_known_rows(units, account),
    )


def _known_rows(units: Sequence[Unit], account: dict[str, Any]) -> int | None:
    """The rows of a folder or of tables of URLs; those of a shard or of a small table are known when it is read."""
    kind = units[0].kind if units else None
    if kind is UnitKind.PICTURES:
        return int(account["files"]["read"])
    return sum(unit.count or 0 for unit in units) if kind is UnitKind.URLS else None


def _open(uri: str, settings: IngestSettings, store: Store) -> tuple[list[Unit], dict[str, Any]]:
    not_read = NotRead()
    contents = Contents.of(_without_stages(list_corpus(uri, store, not_read)), settings)
    # the shards of `export` are a corpus
    if not contents.shards and any(entry.name == "stage.json" for entry in contents.others):
        raise UsageError(f"{uri} is what a stage wrote, and ingest reads a corpus: give what that one came from")
    for kind in ("parquet", "sheets", "others"):
        setattr(contents, kind, _addressable(getattr(contents, kind), not_read))
    source = find_source(uri, contents, settings, store)
    _check_settings(uri, source, settings)
    if source.kind is SourceKind.PICTURES:
        return _folder(uri, contents, source, settings, store, not_read)
    unreadable = next((entry.name for entry in source.files if not is_text(entry.name)), None)
    if unreadable is not None:
        raise UsageError(f"the name of {unreadable!a} in {uri} is not UTF-8: rename it")
    own = (*source.files, *source.beside)
    account = _account(contents.all(), len(source.files), own, contents.refused, not_read)
    if source.kind is SourceKind.URLS:
        units = url_units(source.files, settings, store)
        warn_of_choices(source.files[0].name, _columns_of(source.files, settings, store), settings, urls=True)
        return units, account
    if source.kind is SourceKind.PARQUET:
        first, schema = tables.first_schema(source.files, store)
        check_source_table(schema, settings, first.name)
        warn_of_choices(first.name, schema.names, settings)
        return [unit for entry in source.files for unit in table_units(entry, store)], account
    return [file_unit(entry, UnitKind.TAR) for entry in source.files], account


def _columns_of(files: Sequence[FileEntry], settings: IngestSettings, store: Store) -> list[str]:
    """The columns of the first table that can be read."""
    for entry in files:
        with contextlib.suppress(UsageError, *OF_ONE_FILE):  # a torn one is a fault of its own
            return columns_of(entry.uri, store, settings.columns)
    return []


def _check_settings(uri: str, source: Source, settings: IngestSettings) -> None:
    """Refuse settings for a source of another kind."""
    given = [name for name in ("metadata", "caption_template") if getattr(settings, name)]
    if given and source.kind is not SourceKind.PICTURES:
        raise UsageError(
            f"ingest.{given[0]} describes the pictures of a folder, and {uri} is read as {source.kind.value}"
        )
    without_other = source.kind in (SourceKind.WEBDATASET, SourceKind.PICTURES)
    if settings.keep_columns is not None and without_other:
        raise UsageError(
            f"ingest.keep_columns is about a table's other columns, and {uri} is read as {source.kind.value}: it has none"
        )
    if settings.columns and not _has_columns(source, settings):
        raise UsageError(
            f"ingest.columns names the columns of a .csv, .tsv or .txt without a header line, and {uri} is read as "
            f"{source.kind.value}{', with a template' if settings.caption_template else ''}: there is none"
        )
    members = [name for name in ("image_member", "caption_member") if getattr(settings, name)]
    if members and source.kind is not SourceKind.WEBDATASET:
        raise UsageError(
            f"ingest.{members[0]} is about the members of tar shards, and {uri} is read as {source.kind.value}"
        )


def _has_columns(source: Source, settings: IngestSettings) -> bool:
    """Whether there can be a table whose columns `ingest.columns` names."""
    if source.kind is SourceKind.PICTURES:  # by a table beside them, which is looked for
        named = settings.metadata
        return plain_name(named).endswith(WITH_COLUMNS) if named is not None else settings.caption_template is None
    tables_of_urls = source.files if source.kind is SourceKind.URLS else ()
    return any(plain_name(entry.name).endswith(WITH_COLUMNS) for entry in tables_of_urls)


def _without_stages(entries: Entries) -> Entries:
    """The files that are not in a stage's directory below the corpus: they were not there before a run wrote them."""
    descriptions, _ = entries.where("/stage\\.json$")
    homes = {posixpath.dirname(entry.name) for entry in descriptions}
    stages = [re.escape(home) for home in homes if _FINGERPRINTED.fullmatch(posixpath.basename(home))]
    return entries.where(f"^(?:{'|'.join(stages)})/".encode("utf-8", "surrogateescape"))[1] if stages else entries


def _addressable(entries: Sequence[FileEntry], not_read: NotRead) -> list[FileEntry]:
    """The files that can be opened. Pictures and shards are not asked: those that cannot are quarantined by name."""
    kept = []
    for entry in entries:
        if is_addressable(entry.name) or not is_text(entry.name):
            kept.append(entry)
        else:
            not_read.add(UNNAMED, entry.name)
    return kept


def _account(
    entries: Iterable[FileEntry],
    read: int,
    own: Iterable[FileEntry],
    refused: Collection[str],
    not_read: NotRead,
    more: int = 0,
) -> dict[str, Any]:
    """What report.json says of the files: those that are read, those that belong to them, and all others by kind.

    Args:
        read: number of files that are read.
        own: those of `entries` that are read or belong to one that is; `more` of the latter are not among `entries`.
        refused: names of those that may not be read.
    """
    names = {entry.name for entry in own}
    known = 0
    for entry in entries:
        if entry.name in names:
            known += 1
        else:
            not_read.add(UNREADABLE if entry.name in refused else kind_of(entry.name), entry.name)
    return {"files": {"read": read, "beside": known + more - read}, "not_read": not_read.to_dict()}


# a folder of pictures


def _folder(
    uri: str, contents: Contents, source: Source, settings: IngestSettings, store: Store, not_read: NotRead
) -> tuple[list[Unit], dict[str, Any]]:
    """The units of a folder of pictures."""
    others = contents.rest()
    found = {entry.name for entry in (*source.beside, *([] if contents.pictures else source.files))}
    left = [entry for entry in others if entry.name not in found]
    texts = {sidecar_name(entry.name, settings): entry for entry in left if sidecar_name(entry.name, settings)}
    unknown = (entry for entry in left if not sidecar_name(entry.name, settings))
    more = pictures_among(unknown, store, contents.refused)
    few = sorted([*more, *([] if contents.pictures else source.files)], key=lambda entry: entry.name)
    if few:  # they share texts with the pictures that are known by name
        wanted = {name for entry in few for name in sidecar_names(entry.name, settings)}
        shared = (entry for entry in contents.sidecars.texts if sidecar_name(entry.name, settings) in wanted)
        texts |= {sidecar_name(entry.name, settings): entry for entry in shared}
    number = len(contents.pictures) + len(few)
    few_with_texts = list(found_beside(few, texts, settings))
    beside = [one for _, those in few_with_texts for one in those]
    own = [*source.beside, *more, *beside]
    describe = describer(settings, store)
    captions = CaptionTables()
    if describe is None:
        known = {entry.name for entry in own}
        rest = [entry for entry in left if entry.name not in known]
        names = itertools.chain(contents.pictures.names(), (entry.name for entry in few))
        captioned = bool(beside) or len(contents.sidecars.texts) > 0
        captions = read_caption_tables(rest, names, settings, store, captioned=captioned)
        describe = _said_by(captions, settings)
    own += captions.files
    if settings.metadata is not None:
        table = storage.absolute(settings.metadata)
        own += [entry for entry in others if storage.absolute(entry.uri) == table]
    if number > _MANY:
        logger.warning(
            "%s holds %d pictures in single files: listing them takes long and the driver's memory; "
            "put them into .tar shards or Parquet tables",
            uri,
            number,
        )
    own += [] if contents.pictures else source.files
    not_listed = len(contents.pictures) + len(contents.sidecars.texts)
    account = _account(others, number, own, contents.refused, not_read, more=not_listed)
    files = merged(contents.sidecars.with_pictures(contents.pictures), few_with_texts)
    units = list(picture_units(files, describe, settings.unit_size))
    said = describe.account() if isinstance(describe, JoinedTable) else captions.account()
    return units, {**account, **said}


def _said_by(captions: CaptionTables, settings: IngestSettings) -> Describe | None:
    """The captions of the tables that were found. A picture that none of them knows stays, with what lies beside it."""
    if not captions.files:
        return None

    def describe(path: str) -> Described:
        first, others = by_rule(captions.captions.get(path, []), settings.caption_rule)
        return Described(caption=first, others=others)

    return describe


def check_tables(units: Sequence[Unit], settings: IngestSettings, store: Store) -> None:
    """Raise UsageError if one of a source's tables lacks a column that the settings name. Reads every footer."""

    def check(unit: Unit) -> None:
        file = unit.files[0]
        try:
            schema = store.call(tables.read_schema, file.uri)
        except (pa.ArrowInvalid, *OF_ONE_FILE):  # reported where it is read
            return
        check_source_table(schema, settings, file.name)

    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(check, (unit for unit in units if unit.kind is UnitKind.TABLE and not unit.first)))
