"""Tables of captions among the files of a folder of pictures, found by what is in them.

imagefolder's `metadata.jsonl`, `.csv` or `.parquet` (`file_name` and a caption), COCO's captions, and lists of
`{image, text}` as LLaVA writes them. A name in a table is relative to the table's folder.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from realcustom.errors import MissingFile, UsageError
from realcustom.preprocessing.errors import DamagedFile, DataError
from realcustom.preprocessing.ingest import text_table
from realcustom.preprocessing.ingest.any_table import PARQUET, columns_of, rows_of
from realcustom.preprocessing.ingest.columns import CAPTIONS, FILES, TURNS, find_column, texts_of
from realcustom.preprocessing.ingest.compressed import plain_name
from realcustom.preprocessing.ingest.listing import FIRST, shown
from realcustom.preprocessing.settings import IngestSettings
from realcustom.storage import FileEntry
from realcustom.store import StorageRefused, Store

logger = logging.getLogger(__name__)

_NAME = "metadata"  # of imagefolder's tables: one that cannot be read is an error, another is no table of captions
_MOST_JSON = 64  # .json files that are looked into: more are no tables of captions

# Of a document that is no JSON: the key of a file or of a caption.
_LIKE_CAPTIONS = re.compile(f'"(?:{"|".join(dict.fromkeys((*FILES, *CAPTIONS, TURNS)))})"\\s*:'.encode())

_LOOKED = 64  # rows of a table without a header line in which a caption is looked for
# Two words, or some letters of a script that sets no spaces between them; a label or a box is neither.
_CAPTION = re.compile(r"[^\W\d_]\W*\s\W*[^\W\d_]|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u9fff]{4}")

_Row = tuple[Any, Any]  # name or names of files, caption or captions


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
    places = _Places(pictures)
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
    said: dict[str, list[str]], names: Any, value: Any, entry: FileEntry, places: _Places, found: CaptionTables
) -> None:
    """Note what a row says; a row of several pictures is one of none."""
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    picture = places.find(name, entry.name) if isinstance(name, str) else None
    if picture is None:
        found.without_picture += 1
        if len(found.first) < FIRST:
            found.first.append(f"{shown(entry.name)}: {shown(str(name)[:200])}")
        return
    try:
        said.setdefault(picture, []).extend(text for text in texts_of(value, "the caption") if text)
    except DataError as error:
        raise UsageError(f"{entry.name}, row of {name}: {error.message}") from error


class _Places:
    """The pictures of a corpus by the names that tables give them."""

    def __init__(self, pictures: Iterable[str]):
        self._pictures = pictures
        self._by_file: dict[str, list[str]] | None = None

    @functools.cached_property
    def _names(self) -> set[str]:
        """Made where there is a table to be joined."""
        return set(self._pictures)

    def find(self, name: str, table: str) -> str | None:
        """The picture of that name: relative to the table's folder; for a table of another name than imagefolder's also
        to one above it; for a .json also the only picture whose path ends so."""
        folder, file = posixpath.split(table)
        own = posixpath.splitext(plain_name(file))
        while True:
            path = self._picture(posixpath.join(folder, name.strip()))
            if path is not None:
                return path
            if not folder or own[0] == _NAME:
                break
            folder = posixpath.dirname(folder)
        found = self._ending(posixpath.normpath(name.strip())) if own[1] == ".json" else []
        if len(found) > 1:  # COCO: captions_train2017.json is about the pictures in train2017
            found = [path for path in found if posixpath.dirname(path).endswith(own[0].partition("_")[2])]
        if len(found) > 1:
            raise UsageError(
                f"{table}: '{name}' is the name of {found[0]} and of {found[1]}: write their paths relative to the table"
            )
        return found[0] if found else None

    def _picture(self, path: str) -> str | None:
        """The picture at a path, written with slashes or as on Windows, with composed characters or as on a Mac."""
        for way in (path, path.replace("\\", "/")):
            found = posixpath.normpath(way)
            if found in self._names:
                return found
        form = unicodedata.normalize("NFC", found)
        return form if form in self._names else self._composed.get(form)

    @functools.cached_property
    def _composed(self) -> dict[str, str]:
        """The pictures by their names in form NFC, where that is another."""
        forms = ((unicodedata.normalize("NFC", name), name) for name in self._names)
        return {form: name for form, name in forms if form != name}

    def _ending(self, name: str) -> list[str]:
        if self._by_file is None:
            self._by_file = {}
            for path in sorted(self._names):
                self._by_file.setdefault(posixpath.basename(path), []).append(path)
        return [path for path in self._by_file.get(posixpath.basename(name), []) if f"/{path}".endswith(f"/{name}")]


def _candidates(entries: Iterable[FileEntry]) -> list[FileEntry]:
    kinds = (*text_table.TABLES, PARQUET)
    listed = list(entries)
    documents = [entry for entry in listed if plain_name(entry.name).endswith(".json")]
    return [entry for entry in listed if plain_name(entry.name).endswith(kinds)] + documents[:_MOST_JSON]


@dataclass(frozen=True, kw_only=True)
class _Unnamed:
    """A table without a header line: the first line, which should name its columns, names a picture."""

    name: str
    picture: str
    columns: list[str]  # what each may hold: file_name, caption, or its number
    has_captions: bool  # by its first rows

    @classmethod
    def of(cls, first: Sequence[str], entry: FileEntry, places: _Places, store: Store) -> _Unnamed | None:
        """None for another table."""
        if not plain_name(entry.name).endswith(text_table.WITH_COLUMNS) or len(first) < 2:
            return None
        files = [bool(value.strip()) and places.find(value, entry.name) is not None for value in first]
        if not any(files):
            return None
        place = files.index(True)
        columns = [f"column{index}" for index in range(1, len(first) + 1)]
        found = [0] * len(first)  # captions
        found[place] = -1
        for row in _first_rows(entry, store, columns):
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


def _first_rows(entry: FileEntry, store: Store, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Some rows of a table without a header line, before the first that cannot be read."""
    found: list[dict[str, Any]] = []
    try:
        for row in itertools.islice(text_table.read_rows(entry.uri, store, columns), _LOOKED):
            if not isinstance(row, DataError):
                found.append(row)
    except (StorageRefused, MissingFile, DamagedFile):
        raise
    except UsageError:
        pass
    return found


def _rows_of(
    entry: FileEntry, places: _Places, settings: IngestSettings, store: Store
) -> Iterator[_Row] | _Unnamed | None:
    """The rows of a table of captions; None: it is none.

    Raises UsageError where the storage refuses it and where it is damaged.
    """
    name = plain_name(entry.name)
    try:
        if name.endswith(".json"):
            return _of_json(entry, settings, store)
        columns = columns_of(entry.uri, store, settings.columns)
    except (StorageRefused, MissingFile, DamagedFile):
        raise
    except UsageError:
        if posixpath.splitext(posixpath.basename(name))[0] == _NAME:
            raise
        return None
    known = _known(columns, settings)
    if known is None:
        return _Unnamed.of(columns, entry, places, store)
    file, caption = known
    return ((row[file], row[caption]) for row in rows_of(entry.uri, store, settings.columns, known))


def _known(columns: Iterable[str], settings: IngestSettings) -> tuple[str, str] | None:
    """The columns of files and of captions."""
    names = list(columns)
    file = find_column(names, FILES[0], FILES)
    caption = find_column(names, settings.caption_column, (*CAPTIONS, TURNS))
    return (file, caption) if file is not None and caption is not None else None


def _of_json(entry: FileEntry, settings: IngestSettings, store: Store) -> Iterator[_Row] | None:
    data = store.read(entry.uri)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        kind = DamagedFile if _LIKE_CAPTIONS.search(data) else UsageError
        raise kind(f"{entry.name} is not JSON, and may hold captions: repair it or take it away ({error})") from error
    if isinstance(found, dict):
        return _of_coco(found)
    rows: list[Any] = found if isinstance(found, list) else []
    known = _known(dict.fromkeys(key for row in rows if isinstance(row, Mapping) for key in row), settings)
    if known is None:
        return None
    file, caption = known
    return (
        (row.get(file), row.get(caption)) if isinstance(row, Mapping) else (f"({type(row).__name__}, no object)", None)
        for row in rows
    )


def _of_coco(found: Mapping[str, Any]) -> Iterator[_Row] | None:
    """COCO's captions: `images` with their file names, and `annotations` that name an image."""
    try:
        captions: dict[Any, list[Any]] = {image["id"]: [] for image in found["images"]}
        for said in found["annotations"]:
            captions.setdefault(said["image_id"], []).append(said.get("caption"))
        names = {image["id"]: image["file_name"] for image in found["images"]}
    except (AttributeError, KeyError, TypeError):  # another document
        return None
    if not any(text is not None for texts in captions.values() for text in texts):  # one of boxes
        return None
    return ((names.get(number, f"image {number}"), texts) for number, texts in captions.items())
