"""Tables of captions among the files of a folder of pictures, found by what is in them.

imagefolder's `metadata.jsonl`, `.csv` or `.parquet` (`file_name` and a caption), COCO's captions, and lists of
`{image, text}` as LLaVA writes them. A name in a table is relative to the table's folder.
"""

from __future__ import annotations

import functools
import json
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.ingest import text_table
from realcustom.preprocessing.ingest.columns import CAPTIONS, FILES, TURNS, find_column, texts_of
from realcustom.preprocessing.ingest.compressed import plain_name
from realcustom.preprocessing.ingest.listing import FIRST, shown
from realcustom.preprocessing.settings import IngestSettings
from realcustom.storage import FileEntry
from realcustom.store import Store

_NAME = "metadata"  # of imagefolder's tables: one that cannot be read is an error, another is no table of captions
_MOST_JSON = 64  # .json files that are looked into: more are no tables of captions
_WITHOUT_PICTURE = "table_rows_without_picture"

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
        if self.without_picture:
            found[_WITHOUT_PICTURE] = {"rows": self.without_picture, "first": self.first}
        return found


def read_caption_tables(
    entries: Iterable[FileEntry], pictures: Iterable[str], settings: IngestSettings, store: Store
) -> CaptionTables:
    """The tables of captions among `entries`, and what they say of the pictures.

    Raises:
        UsageError: two tables give a picture different captions, a row's name is that of two pictures, or a table
            cannot be read.
    """
    found = CaptionTables()
    places = _Places(pictures)
    for entry in _candidates(entries):
        rows = _rows_of(entry, settings, store)
        if rows is None:
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
    kinds = (*text_table.TABLES, ".parquet")
    listed = list(entries)
    documents = [entry for entry in listed if plain_name(entry.name).endswith(".json")]
    return [entry for entry in listed if plain_name(entry.name).endswith(kinds)] + documents[:_MOST_JSON]


def _rows_of(entry: FileEntry, settings: IngestSettings, store: Store) -> Iterator[_Row] | None:
    """The rows of a table of captions; None: it is none."""
    name = plain_name(entry.name)
    try:
        if name.endswith(".json"):
            return _of_json(entry, settings, store)
        if name.endswith(".parquet"):
            return _of_parquet(entry, settings, store)
        columns = text_table.read_header(entry.uri, store, ())
    except UsageError:
        if posixpath.splitext(posixpath.basename(name))[0] == _NAME:
            raise
        return None
    known = _known(columns, settings)
    return None if known is None else _of_text(entry, *known, store)


def _known(columns: Iterable[str], settings: IngestSettings) -> tuple[str, str] | None:
    """The columns of files and of captions."""
    names = list(columns)
    file = find_column(names, FILES[0], FILES)
    caption = find_column(names, settings.caption_column, (*CAPTIONS, TURNS))
    return (file, caption) if file is not None and caption is not None else None


def _of_text(entry: FileEntry, file: str, caption: str, store: Store) -> Iterator[_Row]:
    for number, row in enumerate(text_table.read_rows(entry.uri, store, ()), start=1):
        if isinstance(row, DataError):
            raise UsageError(f"{entry.name}: row {number} has {row.message}")
        yield _checked(row.get(file), row.get(caption), entry.name, number)


def _checked(file: Any, caption: Any, table: str, number: int) -> _Row:
    for value in (file, caption):
        if isinstance(value, str) and shown(value) != value:
            raise UsageError(f"{table}: row {number} is not UTF-8; save the table as UTF-8")
    return file, caption


def _of_parquet(entry: FileEntry, settings: IngestSettings, store: Store) -> Iterator[_Row] | None:
    try:
        schema = store.call(tables.read_schema, entry.uri)
    except pa.ArrowInvalid as error:
        raise UsageError(f"{entry.name} is not a readable Parquet file: {error}") from error
    known = _known(schema.names, settings)
    if known is None:
        return None
    table = store.call(lambda uri: tables.read_columns(uri, list(known)), entry.uri)
    return zip(table[known[0]].to_pylist(), table[known[1]].to_pylist(), strict=True)


def _of_json(entry: FileEntry, settings: IngestSettings, store: Store) -> Iterator[_Row] | None:
    try:
        found = json.loads(store.read(entry.uri))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{entry.name} is not JSON: {error}") from error
    if isinstance(found, dict):
        return _of_coco(found)
    rows = [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []
    known = _known(rows[0], settings) if rows else None
    if known is None:
        return None
    file, caption = known
    return ((row.get(file), row.get(caption)) for row in rows)


def _of_coco(found: Mapping[str, Any]) -> Iterator[_Row] | None:
    """COCO's captions: `images` with their file names, and `annotations` that name an image."""
    try:
        captions: dict[Any, list[Any]] = {image["id"]: [] for image in found["images"]}
        for said in found["annotations"]:
            captions.setdefault(said["image_id"], []).append(said["caption"])
        names = {image["id"]: image["file_name"] for image in found["images"]}
    except (KeyError, TypeError):  # another document
        return None
    return ((names.get(number, f"image {number}"), texts) for number, texts in captions.items())
