"""Columns of tables, and keys of JSON, by the names that corpora give them; and captions out of their values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from realcustom.preprocessing.errors import DataError, DataFault
from realcustom.preprocessing.settings import CaptionRule

# The first of each is the default of its setting, and stands for all: LAION, CC, DataComp, COCO, imagefolder, img2dataset.
IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "image_data", "bytes", "picture")
URLS = ("url", "image_url", "img_url", "image_link", "urls", "link")
CAPTIONS = (
    "caption",
    "text",
    "prompt",
    "alt_text",
    "alt",
    "captions",
    "texts",
    "description",
    "top_caption",
    "sentences",
    "comment",
    "txt",
)
FILES = (
    *("file_name", "filename", "file", "image", "images", "image_path", "file_path", "filepath", "path", "img"),
    *("image_name", "image_id"),
)
TURNS = "conversations"  # LLaVA: the captions are what the model says
_MARKS = re.compile(r"<\|?__dj__\w+\|?>|<image>")  # places of a picture in a text


def find_column(columns: Iterable[str], wanted: str | None, usual: Sequence[str]) -> str | None:
    """The column that a setting means: `wanted`; where that is the first of the `usual` names, else the first of these
    that there is, whatever its case. None: there is none."""
    names = list(columns)
    if wanted is None or wanted in names:
        return wanted
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), None) if wanted == usual[0] else None


def captions_of(values: Mapping[str, Any], wanted: str | None) -> list[str]:
    """The captions in a JSON object. Raises DataError for a caption that is no text."""
    key = find_column(values, wanted, (*CAPTIONS, TURNS))
    return texts_of(values[key], f"'{key}' of the .json") if key is not None else []


def texts_of(value: Any, where: str) -> list[str]:
    """A caption, a list of them without blank ones, or a conversation. Raises DataError for anything else."""
    if value is None:
        return []
    if isinstance(value, str) and not _MARKS.search(value):
        return [value.strip()]
    found = []
    for one in value if isinstance(value, list) else [value]:
        text = _said(one) if isinstance(one, Mapping) else one
        if text is None:
            continue
        if not isinstance(text, str):
            raise DataError(DataFault.UNREADABLE_CAPTION, f"{where} is {type(text).__name__}, expected text")
        found.append(" ".join(_MARKS.sub(" ", text).split()) if _MARKS.search(text) else text.strip())
    return [text for text in found if text]


def by_rule(captions: Sequence[str], rule: CaptionRule) -> tuple[str | None, tuple[str, ...]]:
    """The caption of a picture's row, and those of further rows of it."""
    if not captions:
        return None, ()
    if rule is CaptionRule.LONGEST:
        return max(captions, key=len), ()
    distinct = list(dict.fromkeys(captions))
    return distinct[0], tuple(distinct[1:]) if rule is CaptionRule.EACH else ()


def _said(turn: Mapping[str, Any]) -> Any:
    """The text of an object in a list: of a turn what the model says, of a sentence its text."""
    if turn.get("from", turn.get("role")) in ("human", "user", "system"):
        return None
    return next((turn[name] for name in ("value", "content", "raw", "text", "caption") if name in turn), None)
