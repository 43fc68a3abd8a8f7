"""Captions of a folder's pictures in a `.json`: each kind of document that corpora have, as rows.

COCO's captions; Karpathy's splits, and other documents with a list of objects; lists of `{image, text}` as LLaVA writes them;
objects whose keys name pictures, as kohya's `meta_cap.json`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from realcustom.errors import UsageError
from realcustom.preprocessing.errors import DamagedFile
from realcustom.preprocessing.ingest.columns import CAPTIONS, FILES, TURNS, URLS, find_column
from realcustom.preprocessing.ingest.places import Places
from realcustom.preprocessing.settings import IngestSettings
from realcustom.storage import FileEntry
from realcustom.store import Store

logger = logging.getLogger(__name__)

CaptionRow = tuple[Any, Any]  # name of a file, a list of them or a tuple of forms of one; caption or captions

_LOOKED = 64  # keys of an object that are looked into, to know whether they name pictures
_STRINGS = 4096  # texts of a document of no known kind that are looked into
_KEYS = 10  # that are named
_TAGS = "tags"  # of kohya, beside captions or instead of them

# Of a document that is no JSON: the key of a file or of a caption.
_LIKE_CAPTIONS = re.compile(f'"(?:{"|".join(dict.fromkeys((*FILES, *CAPTIONS, TURNS)))})"\\s*:'.encode())
_LARGE = 2**26  # bytes: one of boxes (COCO's are 450 MB) is known without being parsed into some ten times that


def rows_of_document(
    entry: FileEntry, places: Places, settings: IngestSettings, store: Store
) -> Iterable[CaptionRow] | None:
    """What a `.json` says of pictures; None: nothing. Warns where it names pictures in a way that is not known.

    Raises DamagedFile if it is no JSON and seems to hold captions.
    """
    data = store.read(entry.uri)
    if len(data) > _LARGE and b'"bbox"' in data and b'"annotations"' in data and b'"caption"' not in data:
        return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        kind = DamagedFile if _LIKE_CAPTIONS.search(data) else UsageError
        raise kind(f"{entry.name} is not JSON, and may hold captions: repair it or take it away ({error})") from error
    del data
    rows = _rows(found, entry.name, places, settings)
    if rows is None and not _is_coco(found) and _names_pictures(found, places):
        warn_unknown(entry.name, _keys_of(found), settings)
    return rows


def known_columns(columns: Iterable[str], settings: IngestSettings) -> tuple[str, str] | None:
    """The columns of files and of captions."""
    names = list(columns)
    file = find_column(names, FILES[0], FILES)
    caption = find_column(names, settings.caption_column, (*CAPTIONS, TURNS))
    return (file, caption) if file in names and caption in names and file is not None and caption is not None else None


def warn_unknown(name: str, columns: Iterable[str], settings: IngestSettings) -> None:
    """Warn of a file that names pictures, and in which no captions are known; not where none are wanted."""
    if settings.caption_column is None:
        return
    there = ", ".join(map(repr, list(columns)[:_KEYS])) or "no names for its values"
    logger.warning(
        "%s names pictures and is not read: no captions are known in it (it has %s). If one of these is the caption, "
        "--set preprocess.ingest.caption_column=NAME; pictures are named by one of %s",
        name,
        there,
        ", ".join(FILES),
    )


def warn_of_choices(name: str, columns: Iterable[str], settings: IngestSettings, *, urls: bool = False) -> None:
    """Warn of columns of one meaning, of which one is read and no setting says which."""
    names = list(columns)
    for setting, usual in (("caption_column", CAPTIONS), *([("url_column", URLS)] if urls else [])):
        chosen = find_column(names, usual[0], usual)
        others = [other for other in names if other.lower() in usual and other != chosen]
        if getattr(settings, setting) == usual[0] and others:
            logger.warning(
                "%s: the column '%s' is read, and not %s: --set preprocess.ingest.%s=NAME takes another one",
                *(name, chosen, " or ".join(map(repr, others)), setting),
            )


def _rows(found: Any, name: str, places: Places, settings: IngestSettings) -> Iterable[CaptionRow] | None:
    if not isinstance(found, dict):
        return _of_list(found, settings)
    lists = (_of_list(value, settings) for value in found.values())
    return _of_coco(found) or next(filter(None, lists), None) or _of_names(found, name, places, settings)


def _of_list(found: Any, settings: IngestSettings) -> list[CaptionRow] | None:
    rows: list[Any] = found if isinstance(found, list) else []
    known = known_columns(dict.fromkeys(key for row in rows if isinstance(row, Mapping) for key in row), settings)
    if known is None:
        return None
    file, caption = known
    return [
        (_file_of(row, file), row.get(caption))
        if isinstance(row, Mapping)
        else (f"({type(row).__name__}, no object)", None)
        for row in rows
    ]


def _file_of(row: Mapping[str, Any], file: str) -> Any:
    """The name of a row's file; of Karpathy's splits with its folder, where it is there so, else without."""
    name, folder = row.get(file), row.get("filepath")
    is_split = file == "filename" and isinstance(name, str) and isinstance(folder, str)
    return (f"{folder}/{name}", name) if is_split else name


def _of_coco(found: Mapping[str, Any]) -> list[CaptionRow] | None:
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
    return [(names.get(number, f"image {number}"), texts) for number, texts in captions.items()]


def _is_coco(found: Any) -> bool:
    return isinstance(found, dict) and {"images", "annotations"} <= found.keys()


def _of_names(
    found: Mapping[str, Any], table: str, places: Places, settings: IngestSettings
) -> list[CaptionRow] | None:
    """An object of whose first keys at least half name pictures, each with its caption, captions, or an object that has one."""
    first = list(found)[:_LOOKED]
    if sum(places.knows(name, table) for name in first) * 2 < len(first) or not first:
        return None
    rows = [(name, _caption_in(value, settings)) for name, value in found.items()]
    return rows if any(caption is not None for _, caption in rows) else None


def _caption_in(value: Any, settings: IngestSettings) -> Any:
    if isinstance(value, Mapping):
        key = find_column(value, settings.caption_column, (*CAPTIONS, _TAGS))
        return value.get(key) if key is not None else None
    if isinstance(value, list):  # of boxes it is none
        return value if all(isinstance(one, (str, Mapping)) for one in value) else None
    return value if isinstance(value, str) else None


def _names_pictures(found: Any, places: Places) -> bool:
    """Whether the first texts of a document name pictures of the corpus."""
    return any(places.has_file(text) for text, _ in zip(_texts(found), range(_STRINGS), strict=False))


def _texts(found: Any) -> Iterator[str]:
    """The texts and keys in a document, by depth."""
    left = [found]
    for value in left:  # grows
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from value
            left += value.values()
        elif isinstance(value, list):
            left += value[:_STRINGS]
        if len(left) > 100 * _STRINGS:
            return


def _keys_of(found: Any) -> list[str]:
    """The keys of a document's first object in a list, else its own."""
    lists = [found] if isinstance(found, list) else [value for value in found.values() if isinstance(value, list)]
    rows = (row for some in lists for row in some[:1] if isinstance(row, Mapping))
    return list(next(rows, found if isinstance(found, Mapping) else {}))
