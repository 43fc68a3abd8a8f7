"""Tables of captions among the files of a folder of pictures, found by what is in them.

imagefolder's `metadata.jsonl`, `.csv` or `.parquet` (`file_name` and a caption), Flickr's `captions.txt`, and the documents that
caption_documents.py knows. A name in a table is relative to the table's folder. Of a file that names pictures and is no table
of captions as it stands the user is told.
"""

from __future__ import annotations

import itertools
import logging
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from realcustom.errors import MissingFile, UsageError
from realcustom.preprocessing.errors import DamagedFile, DataError
from realcustom.preprocessing.ingest import text_table
from realcustom.preprocessing.ingest.any_table import PARQUET, columns_of, rows_of
from realcustom.preprocessing.ingest.caption_documents import (
    CaptionRow,
    known_columns,
    rows_of_document,
    warn_of_choices,
    warn_unknown,
)
from realcustom.preprocessing.ingest.columns import CAPTIONS, FILES, texts_of
from realcustom.preprocessing.ingest.compressed import plain_name
from realcustom.preprocessing.ingest.csv_table import LIST
from realcustom.preprocessing.ingest.listing import FIRST, shown
from realcustom.preprocessing.ingest.places import NAME, Places, has_extension
from realcustom.preprocessing.settings import IngestSettings
from realcustom.storage import FileEntry
from realcustom.store import StorageRefused, Store

logger = logging.getLogger(__name__)

_MOST = 64  # .json and .txt files that are looked into, of each: those near the top, and of one folder the largest
_LOOKED = 64  # rows of a table that are looked into, to know what it is
# Two words, or some letters of a script that sets no spaces between them; a label or a box is neither.
_CAPTION = re.compile(r"[^\W\d_]\W*\s\W*[^\W\d_]|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u9fff]{4}")


@dataclass(kw_only=True)
class CaptionTables:
    """What the tables say."""

    files: list[FileEntry] = field(default_factory=list)  # the tables
    captions: dict[str, list[str]] = field(default_factory=dict)  # by picture
    without_picture: int = 0  # rows
    first: list[str] = field(default_factory=list)  # their first names
    said_by: dict[str, str] = field(default_factory=dict)  # picture -> table

    def account(self) -> dict[str, Any]:
        """What report.json says of their rows."""
        if not self.files:
            return {}
        found: dict[str, Any] = {"caption_tables": [shown(entry.name) for entry in self.files]}
        return found | rows_without_picture(self.without_picture, self.first)


def rows_without_picture(rows: int, first: Sequence[str]) -> dict[str, Any]:
    """What report.json says of a table's rows about no picture that is there, with the first of their names."""
    return {"table_rows_without_picture": {"rows": rows, "first": list(first)}} if rows else {}


def read_caption_tables(
    entries: Iterable[FileEntry],
    pictures: Iterable[str],
    settings: IngestSettings,
    store: Store,
    *,
    captioned: bool = False,
) -> CaptionTables:
    """The tables of captions among `entries`, and what they say of the pictures.

    Args:
        captioned: pictures have captions beside them.
    Raises:
        UsageError: two tables give a picture different captions, a row's name is that of two pictures, a table cannot be
            read, the only captions seem to be in one without a header line, or `ingest.columns` is about none.
    """
    found = CaptionTables()
    unnamed: list[_Unnamed] = []
    places = Places(pictures)
    for entry in _candidates(entries):
        rows = _rows_of(entry, places, settings, store)
        if isinstance(rows, _Unnamed):
            unnamed.append(rows)
        if rows is None or isinstance(rows, _Unnamed):
            continue
        found.files.append(entry)
        said: dict[str, list[str]] = {}
        for names, value in rows:
            _add(said, names, value, entry, places, found)
        for picture, captions in said.items():
            if found.captions.setdefault(picture, captions) != captions:
                raise UsageError(
                    f"{found.said_by[picture]} and {entry.name} give {picture} different captions: remove one of them"
                )
            found.said_by.setdefault(picture, entry.name)
    for table in unnamed:
        table.report(refuse=not (captioned or found.files))
    if settings.columns and not any(plain_name(entry.name).endswith(text_table.WITH_COLUMNS) for entry in found.files):
        raise UsageError(
            f"ingest.columns={list(settings.columns)} names the columns of no .csv or .tsv of captions among the files: "
            f"one is {FILES[0]}, another {settings.caption_column or CAPTIONS[0]}"
        )
    return found


def _add(
    said: dict[str, list[str]], names: Any, value: Any, entry: FileEntry, places: Places, found: CaptionTables
) -> None:
    """Note what a row says; a row of several pictures is one of none. Of a tuple of names the first counts that is there."""
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    either = name if isinstance(name, tuple) else (str(name) if type(name) is int else name,)
    picture = next(filter(None, (places.find(one, entry.name) for one in either if isinstance(one, str))), None)
    name = either[0]
    if picture is None:
        found.without_picture += 1
        if len(found.first) < FIRST:
            found.first.append(f"{shown(entry.name)}: {shown(str(name)[:200])}")
        return
    try:
        said.setdefault(picture, []).extend(text for text in texts_of(value, "the caption") if text)
    except DataError as error:
        raise UsageError(f"{entry.name}, row of {name}: {error.message}") from error


def _candidates(entries: Iterable[FileEntry]) -> list[FileEntry]:
    """The files that may be tables of captions, in the order of the listing."""
    listed = list(entries)
    names = {entry.name for entry in listed if plain_name(entry.name).endswith((*text_table.TABLES, PARQUET))}
    for kind in (".json", LIST):
        some = [entry for entry in listed if plain_name(entry.name).endswith(kind)]
        some.sort(key=lambda entry: (entry.name.count("/"), -entry.size, entry.name))
        if some[_MOST:]:
            logger.warning(
                "%d %s files describe no picture beside them; of these captions are looked for in the %d at the top",
                *(len(some), kind, _MOST),
            )
        names |= {entry.name for entry in some[:_MOST]}
    return [entry for entry in listed if entry.name in names]


@dataclass(frozen=True, kw_only=True)
class _Unnamed:
    """A table without a header line: the first line, which should name its columns, names a picture."""

    name: str
    picture: str
    columns: list[str]  # what each may hold: file_name, caption, or its number
    has_captions: bool  # by its first rows

    @classmethod
    def of(cls, first: Sequence[str], entry: FileEntry, places: Places, store: Store) -> _Unnamed | None:
        """None for another table."""
        if not plain_name(entry.name).endswith(text_table.WITH_COLUMNS) or len(first) < 2:
            return None
        files = [has_extension(value.strip()) and places.find(value, entry.name) is not None for value in first]
        if not any(files):
            return None
        place = files.index(True)
        columns = [f"column{index}" for index in range(1, len(first) + 1)]
        found = [0] * len(first)  # captions
        found[place] = -1
        for row in itertools.islice(_before_damage(text_table.read_rows(entry.uri, store, columns)), _LOOKED):
            for index, name in enumerate(columns):
                found[index] += index != place and _CAPTION.search(row[name] or "") is not None
        columns[place] = FILES[0]
        columns[found.index(max(found))] = CAPTIONS[0]
        return cls(name=entry.name, picture=first[place], columns=columns, has_captions=max(found) > 0)

    def report(self, *, refuse: bool) -> None:
        """Warn that it is not read; or, if there seem to be captions in it, refuse it."""
        why = f"{self.name} has no header line, for its first line names the picture {self.picture}"
        names = ", ".join(self.columns)
        way = f"name its {len(self.columns)} columns, as in --set 'preprocess.ingest.columns=[{names}]'"
        if refuse and self.has_captions:
            raise UsageError(f"{why}: {way}; or take it away")
        logger.warning("%s, and is not read; if it holds captions, %s", why, way)


def _before_damage(rows: Iterator[dict[str, Any] | DataError]) -> Iterator[dict[str, Any]]:
    """The rows that can be read, before the first that makes the table none."""
    try:
        yield from (row for row in rows if not isinstance(row, DataError))
    except (StorageRefused, MissingFile, DamagedFile):
        raise
    except UsageError:
        pass


def _rows_of(
    entry: FileEntry, places: Places, settings: IngestSettings, store: Store
) -> Iterable[CaptionRow] | _Unnamed | None:
    """The rows of a table of captions; None: it is none.

    Raises UsageError where the storage refuses it and where it is damaged.
    """
    name = plain_name(entry.name)
    try:
        if name.endswith(".json"):
            return rows_of_document(entry, places, settings, store)
        columns = columns_of(entry.uri, store, settings.columns)
    except (StorageRefused, MissingFile, DamagedFile):
        raise
    except UsageError:
        if posixpath.splitext(posixpath.basename(name))[0] == NAME:
            raise
        return None
    known = known_columns(columns, settings)
    if known is None:
        unnamed = _Unnamed.of(columns, entry, places, store)
        if unnamed is None and len(columns) > 1 and _names_pictures(entry, places, store, settings, columns):
            warn_unknown(entry.name, columns, settings)
        return unnamed
    file, caption = known
    warn_of_choices(entry.name, columns, settings)
    return ((row[file], row[caption]) for row in rows_of(entry.uri, store, settings.columns, known))


def _names_pictures(
    entry: FileEntry, places: Places, store: Store, settings: IngestSettings, columns: Sequence[str]
) -> bool:
    """Whether the first rows of a table name pictures of the corpus."""
    if plain_name(entry.name).endswith(PARQUET):  # of URLs or of bytes, as img2dataset writes it beside its pictures
        return any(name.lower() in FILES for name in columns)
    rows = itertools.islice(_before_damage(text_table.read_rows(entry.uri, store, settings.columns)), _LOOKED)
    return any(isinstance(value, str) and places.has_file(value) for row in rows for value in row.values())
