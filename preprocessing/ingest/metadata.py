"""Captions of a folder's pictures from a CSV, a template over it, or a template over their names alone."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass

from realcustom.errors import UsageError
from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.ingest.captions import PARTS, Join, fill, parse_join, parts_of, template_fields
from realcustom.preprocessing.ingest.csv_table import read_header, read_rows, readable
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
    """How `settings` describe pictures; None where they name neither a CSV nor a template. The CSV is read here, once.

    A picture without a row is dropped for that reason: a table defines which pictures belong to the corpus. A row that
    lacks a value of the caption gives no caption.

    Raises:
        UsageError: no such file, or no such column; the message names the columns that there are.
    """
    template = settings.caption_template
    if settings.metadata is None:
        if template is None:
            return None
        _require(template_fields(template), [], "there is no ingest.metadata", "caption_template")
        return lambda path: Described(caption=fill(template, parts_of(path)))
    assert settings.join is not None, "settings are checked"
    join = parse_join(settings.join)
    with refusals("read", settings.metadata):
        if not store.exists(settings.metadata):
            raise UsageError(f"ingest.metadata: no file at {settings.metadata}")
        columns = read_header(settings.metadata, store)
        where = f"{posixpath.basename(settings.metadata)} has the columns {', '.join(columns)}"
        if join.column not in columns:
            raise UsageError(f"ingest.join: no column '{join.column}'; {where}")
        if template is not None:
            _require(template_fields(template), columns, where, "caption_template")
        elif settings.caption_column is not None and settings.caption_column not in columns:
            raise UsageError(
                f"ingest.caption_column: no column '{settings.caption_column}'; {where}. Name one, give "
                f"ingest.caption_template, or set it to null"
            )
        return _from_rows(settings, join, _index(settings.metadata, join, store))


def _require(names: tuple[str, ...], columns: list[str], where: str, setting: str) -> None:
    unknown = next((name for name in names if name not in columns and name not in PARTS), None)
    if unknown is not None:
        raise UsageError(
            f"ingest.{setting}: no column '{unknown}'; {where}, and a picture's name gives {', '.join(PARTS)}"
        )


def _index(uri: str, join: Join, store: Store) -> dict[str, dict[str, str | None]]:
    rows: dict[str, dict[str, str | None]] = {}
    for number, row in enumerate(read_rows(uri, store), start=1):
        if isinstance(row, DataError):
            raise UsageError(f"{uri}: row {number} has {row.message}")
        key = row[join.column]
        if not all(map(readable, row.values())):
            raise UsageError(f"{uri}: row {number} ('{ascii(key)[1:-1]}') is not UTF-8; save the table as UTF-8")
        if key is None or not key.strip():
            continue  # a row about no picture
        if key.strip() in rows:
            raise UsageError(f"{uri}: two rows have {join.column}='{key.strip()}'; a picture can have one row only")
        rows[key.strip()] = row
    return rows


def _from_rows(settings: IngestSettings, join: Join, rows: dict[str, dict[str, str | None]]) -> Describe:
    table = posixpath.basename(settings.metadata or "")
    taken: dict[str, str] = {}  # row -> picture, where a row is about one file

    def describe(path: str) -> Described:
        parts = parts_of(path)
        row = rows.get(parts[join.part])
        other = taken.setdefault(parts[join.part], path) if join.part != "folder" else path
        if row is not None and other != path:
            raise UsageError(
                f"the row of {table} with {join.column}='{parts[join.part]}' is about both {other} and {path}: join by "
                f"path={join.column}, with paths from the folder on"
            )
        if row is None:
            return Described(unlisted=f"{table} has no row with {join.column}='{parts[join.part]}'")
        values = {name: value or "" for name, value in row.items()}
        if settings.caption_template is not None:
            return Described(caption=fill(settings.caption_template, {**parts, **values}))
        text = values[settings.caption_column].strip() if settings.caption_column is not None else ""
        return Described(caption=text or None)

    return describe
