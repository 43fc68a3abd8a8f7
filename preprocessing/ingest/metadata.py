"""Captions of a folder's pictures from a table, a template over it, or a template over their names alone."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from realcustom.errors import UsageError
from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.ingest.any_table import columns_of, rows_of
from realcustom.preprocessing.ingest.caption_tables import rows_without_picture
from realcustom.preprocessing.ingest.captions import PARTS, fill, parse_join, parts_of, template_fields
from realcustom.preprocessing.ingest.columns import CAPTIONS, by_rule, find_column, texts_of
from realcustom.preprocessing.ingest.listing import FIRST
from realcustom.preprocessing.settings import IngestSettings
from realcustom.store import Store, refusals


@dataclass(frozen=True, kw_only=True)
class Described:
    """What the table says about a picture: a caption, no caption, or that it does not belong to the corpus."""

    caption: str | None = None
    others: tuple[str, ...] = ()  # further captions, each for a row of its own
    unlisted: str = ""  # why the picture is dropped; empty: it is kept


Describe = Callable[[str], Described]  # of a picture's source-relative path


def describer(settings: IngestSettings, store: Store) -> Describe | None:
    """How `settings` describe pictures; None where they name neither a table nor a template. The table is read here, once.

    Raises:
        UsageError: no such file, or no such column; the message names the columns that there are.
    """
    template = settings.caption_template
    if settings.metadata is None:
        if template is None:
            return None
        _require(template_fields(template), [], "there is no ingest.metadata", "caption_template")
        return lambda path: Described(caption=fill(template, parts_of(path)))
    with refusals("read", settings.metadata):
        return JoinedTable(settings.metadata, settings, store)


class JoinedTable:
    """The table that `ingest.metadata` names; called with a picture's source-relative path.

    A picture without a row is dropped for that reason: a table defines which pictures belong to the corpus. A row that lacks a
    value of the caption gives no caption.
    """

    def __init__(self, uri: str, settings: IngestSettings, store: Store):
        assert settings.join is not None, "settings are checked"
        self._join, self._settings = parse_join(settings.join), settings
        self._name = posixpath.basename(uri)
        if not store.exists(uri):
            raise UsageError(f"ingest.metadata: no file at {uri}")
        columns = columns_of(uri, store, settings.columns)
        self._caption = find_column(columns, settings.caption_column, CAPTIONS)
        self._check(columns)
        self._pictures: dict[str, str] = {}  # row -> the first picture that it is about
        self._rows: dict[str, dict[str, Any]] = {}
        self._nameless = 0  # rows about no picture
        for row in rows_of(uri, store, settings.columns, [self._join.column, *columns]):
            self._add(row, uri)

    def __call__(self, path: str) -> Described:
        """What the table says of a picture. Raises UsageError where a row is about two of them."""
        parts = parts_of(path)
        key = self._key(parts[self._join.part])
        row = self._rows.get(key)
        if row is None:
            return Described(unlisted=f"{self._name} has no row with {self._join.column}='{parts[self._join.part]}'")
        other = self._pictures.setdefault(key, path)
        if other != path and self._join.part != "folder":
            raise UsageError(
                f"the row of {self._name} with {self._join.column}='{key}' is about both {other} and {path}: join by "
                f"path={self._join.column}, with paths from the folder on"
            )
        if self._settings.caption_template is not None:
            values = {name: "" if value is None else str(value) for name, value in row.items()}
            return Described(caption=fill(self._settings.caption_template, {**parts, **values}))
        try:
            captions = texts_of(row[self._caption], "the caption") if self._caption is not None else []
        except DataError as error:
            raise UsageError(f"{self._name}, row of {key}: {error.message}") from error
        first, others = by_rule([text for text in captions if text], self._settings.caption_rule)
        return Described(caption=first, others=others)

    def account(self) -> dict[str, Any]:
        """What report.json says of its rows, when it was called with all pictures."""
        left = [key for key in self._rows if key not in self._pictures]
        rows = len(left) + self._nameless
        names = [*left[:FIRST], *[""] * self._nameless][:FIRST]
        return rows_without_picture(rows, [f"{self._name}: {name}" for name in names])

    def _check(self, columns: list[str]) -> None:
        where = f"{self._name} has the columns {', '.join(columns)}"
        if self._join.column not in columns:
            raise UsageError(f"ingest.join: no column '{self._join.column}'; {where}")
        if self._settings.caption_template is not None:
            _require(template_fields(self._settings.caption_template), columns, where, "caption_template")
        elif self._settings.caption_column is not None and self._caption not in columns:
            raise UsageError(
                f"ingest.caption_column: no column '{self._settings.caption_column}'; {where}. Name one, give "
                f"ingest.caption_template, or set it to null"
            )

    def _add(self, row: dict[str, Any], uri: str) -> None:
        value = row[self._join.column]
        key = self._key("" if value is None else str(value))
        if not key:
            self._nameless += 1
        elif key in self._rows:
            raise UsageError(f"{uri}: two rows have {self._join.column}='{key}'; a picture can have one row only")
        else:
            self._rows[key] = row

    def _key(self, text: str) -> str:
        """A name as it is compared: composed characters, and in a path slashes, whatever system wrote it."""
        text = unicodedata.normalize("NFC", text.strip())
        return posixpath.normpath(text.replace("\\", "/")) if text and self._join.part == "path" else text


def _require(names: tuple[str, ...], columns: list[str], where: str, setting: str) -> None:
    unknown = next((name for name in names if name not in columns and name not in PARTS), None)
    if unknown is not None:
        raise UsageError(
            f"ingest.{setting}: no column '{unknown}'; {where}, and a picture's name gives {', '.join(PARTS)}"
        )
