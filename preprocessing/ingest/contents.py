"""The files of a corpus sorted by what they are, and the kind of source that they make."""

from __future__ import annotations

import heapq
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from realcustom.entries import Entries
from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.ingest.columns import URLS, find_column
from realcustom.preprocessing.ingest.compressed import open_plain, plain_name
from realcustom.preprocessing.ingest.csv_table import LIST
from realcustom.preprocessing.ingest.listing import PICTURE_NAME, kind_of, pictures_among
from realcustom.preprocessing.ingest.sidecars import Sidecars, find_pairs
from realcustom.preprocessing.ingest.table_kinds import Holds, refuse_names, what_it_holds
from realcustom.preprocessing.ingest.text_table import TABLES
from realcustom.preprocessing.pictures import EXTENSIONS
from realcustom.preprocessing.settings import IngestSettings, SourceKind
from realcustom.storage import FileEntry
from realcustom.store import OF_ONE_FILE, Store

_STATS = "_stats.json"  # of img2dataset, beside each shard
_KINDS = 5  # of files that are named where there is nothing to read
_BEGINNING = 4096  # bytes of a text that are looked at


@dataclass(kw_only=True)
class Contents:
    """Files by what their names say."""

    shards: list[FileEntry] = field(default_factory=list)
    parquet: list[FileEntry] = field(default_factory=list)
    sheets: list[FileEntry] = field(default_factory=list)  # tables in text files
    pictures: Entries  # so many that no list is made of them
    sidecars: Sidecars  # and of the texts beside them
    others: list[FileEntry] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)  # names of those that were looked into and may not be read

    @classmethod
    def of(cls, entries: Entries, settings: IngestSettings) -> Contents:
        """Sort them; `entries` are empty afterwards."""
        is_picture = entries.matches(PICTURE_NAME)
        pairs = find_pairs(entries, is_picture, settings)
        pictures, texts, rest = entries.parted(is_picture, pairs.is_text, ~is_picture & ~pairs.is_text)
        found = cls(pictures=pictures, sidecars=Sidecars(texts, pairs))
        for entry in rest:
            name = plain_name(entry.name)
            if name.endswith(".tar"):
                found.shards.append(entry)
            elif name.endswith(".parquet"):
                found.parquet.append(entry)
            elif name.endswith(TABLES):
                found.sheets.append(entry)
            else:
                found.others.append(entry)
        return found

    def rest(self) -> list[FileEntry]:
        """All files but the pictures and the texts beside them, by name."""
        return sorted((*self.shards, *self.parquet, *self.sheets, *self.others), key=lambda entry: entry.name)

    def all(self) -> Iterator[FileEntry]:
        """All files, by name."""
        return heapq.merge(self.rest(), self.sidecars.texts, self.pictures, key=lambda entry: entry.name)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is read of a corpus."""

    kind: SourceKind
    files: Sequence[FileEntry]
    beside: list[FileEntry] = field(default_factory=list)  # files that a tool wrote with these


def find_source(uri: str, found: Contents, settings: IngestSettings, store: Store) -> Source:
    """What is to be read. Raises UsageError for nothing, or for several kinds, with the way out."""
    if settings.source is SourceKind.AUTO:
        source = _detect(uri, found, settings, store)
    else:
        source = _named(settings.source, found, store)
    if not source.files:
        kinds = Counter(kind_of(entry.name) for entry in found.all())
        there = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common(_KINDS)) or "no file"
        known = f".tar shards, .parquet, .csv, .tsv or .jsonl tables, .txt lists of URLs, or pictures (.{', .'.join(EXTENSIONS)})"
        wanted = known if settings.source is SourceKind.AUTO else f"{settings.source.value} files"
        raise UsageError(f"{uri} is an empty corpus: no {wanted}, but {there}")
    return source


def _named(kind: SourceKind, found: Contents, store: Store) -> Source:
    """The files of the kind that a setting names."""
    if kind is SourceKind.WEBDATASET:
        return Source(kind=kind, files=found.shards, beside=_written_with(_stems(found.shards), found))
    if kind is SourceKind.PARQUET:
        return Source(kind=kind, files=found.parquet, beside=_stats_of(_stems(found.parquet), found))
    if kind is SourceKind.URLS:
        return Source(kind=kind, files=[*found.parquet, *found.sheets] or _lists(found.others, store))
    folders = {posixpath.dirname(name) for name in found.pictures.names()} if found.parquet or found.others else set()
    pictures = found.pictures or pictures_among(found.others, store, found.refused)
    return Source(kind=kind, files=pictures, beside=_written_with(folders, found))


def _detect(uri: str, found: Contents, settings: IngestSettings, store: Store) -> Source:
    """By the names of the files; a table is one of URLs if it has such a column and none of pictures. A table in a text
    file counts only where there is nothing else: beside pictures it describes them."""
    source = _named(SourceKind.WEBDATASET if found.shards else SourceKind.PICTURES, found, store)
    left = [entry for entry in found.parquet if entry not in source.beside]
    if found.shards and (left or found.pictures):
        _refuse(uri, [("webdataset", found.shards), ("parquet", left), ("pictures", found.pictures)])
    if left:
        first, schema = tables.first_schema(left, store)
        holds = what_it_holds(first, schema, settings, store)
        kind = SourceKind.URLS if holds is Holds.URLS else SourceKind.PARQUET
        if not found.pictures:
            if holds is Holds.NAMES:
                refuse_names(first)
            return (
                _named(SourceKind.PARQUET, found, store)
                if kind is SourceKind.PARQUET
                else Source(kind=kind, files=left)
            )
        if holds in (Holds.BYTES, Holds.BASE64, Holds.URLS):
            _refuse(uri, [(kind.value, left), ("pictures", found.pictures)])
    lists = [] if source.files else found.sheets or _lists(found.others, store)
    return Source(kind=SourceKind.URLS, files=lists) if lists else source


def _refuse(uri: str, kinds: Sequence[tuple[str, Sequence[FileEntry]]]) -> NoReturn:
    there = [(name, files) for name, files in kinds if files]
    counts = ", ".join(f"{len(files)} of {name}" for name, files in there)
    hints = " or ".join(f"--set preprocess.ingest.source={name}" for name, _ in there)
    raise UsageError(f"{uri} holds {counts}: say which is meant with {hints}; the others are then counted as not read")


def _written_with(stems: set[str], found: Contents) -> list[FileEntry]:
    """What img2dataset writes beside a shard or folder of each of these names: NAME.parquet and NAME_stats.json."""
    return [entry for entry in found.parquet if _stem(entry) in stems] + _stats_of(stems, found)


def _stats_of(stems: set[str], found: Contents) -> list[FileEntry]:
    named = [entry for entry in found.others if entry.name.endswith(_STATS)]
    return [entry for entry in named if entry.name.removesuffix(_STATS) in stems]


def _stems(entries: Iterable[FileEntry]) -> set[str]:
    return {_stem(entry) for entry in entries}


def _stem(entry: FileEntry) -> str:
    return entry.name[: len(posixpath.splitext(plain_name(entry.name))[0])]


def _lists(others: Iterable[FileEntry], store: Store) -> list[FileEntry]:
    """The .txt files that are lists of URLs: those whose first line, or the one after a header, holds one."""
    texts = [entry for entry in others if plain_name(entry.name).endswith(LIST) and entry.size]

    def is_list(entry: FileEntry) -> bool:
        try:
            return _is_list(open_plain(entry.uri, store, _BEGINNING).read(0, _BEGINNING).decode("utf-8-sig", "replace"))
        except OF_ONE_FILE:
            return False

    return [entry for entry in texts if is_list(entry)]


def _is_list(beginning: str) -> bool:
    """Whether the first line of a text, or the one after a header, holds a URL; blank ones and comments do not count."""
    lines = (line for line in beginning.splitlines() if "://" in line or not (line.startswith("#") or not line.strip()))
    first = next(lines, "")
    columns = [name.strip(' "') for name in re.split(r"[\t,;|]", first)]
    has_header = find_column(columns, URLS[0], URLS) is not None
    return "://" in first or (has_header and "://" in next(lines, ""))
