"""Captions that are not stored beside their picture: the rules of `ingest.join` and `ingest.caption_template`.

Works on text alone, so that settings are checked before a table is read.
"""

from __future__ import annotations

import posixpath
import string
from collections.abc import Mapping
from dataclasses import dataclass

from realcustom.errors import UsageError

# The parts of a picture's name. `shoes/red.boot.jpg`: folder shoes, stem red.boot, file red.boot.jpg.
PARTS = ("folder", "stem", "file", "path")


@dataclass(frozen=True, kw_only=True)
class Join:
    """Which row describes which picture: the one whose `part` equals the row's value in `column`."""

    part: str
    column: str


def parse_join(text: str) -> Join:
    """`folder=subject` -> Join. Raises UsageError that says what is allowed."""
    part, equals, column = text.partition("=")
    if not equals or part not in PARTS or not column:
        raise UsageError(
            f"ingest.join is PART=COLUMN, PART one of {', '.join(PARTS)} of the picture's name and COLUMN one of the "
            f"table's (for example folder=subject); got {text!r}"
        )
    return Join(part=part, column=column)


def template_fields(template: str) -> tuple[str, ...]:
    """The names between braces. Raises UsageError for anything but text and plain names ({{ and }} are braces)."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"ingest.caption_template {template!r}: {error}; write {{{{ and }}}} for braces") from error
    names = []
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        if not name or spec or conversion or any(character in name for character in ".[]"):
            raise UsageError(f"ingest.caption_template {template!r}: only plain column names may stand between braces")
        names.append(name)
    return tuple(names)


def parts_of(path: str) -> dict[str, str]:
    """The `PARTS` of a picture's source-relative path. A picture at the top has the empty folder."""
    folder, file = posixpath.split(path)
    return {"folder": posixpath.basename(folder), "stem": posixpath.splitext(file)[0], "file": file, "path": path}


def fill(template: str, values: Mapping[str, str]) -> str | None:
    """The template with its names replaced; None where a value that it needs is empty."""
    wanted = {name: values[name].strip() for name in template_fields(template)}
    if not all(wanted.values()):
        return None
    pieces = string.Formatter().parse(template)  # format() itself would take a name of digits for a position
    return "".join(text + (wanted[name] if name is not None else "") for text, name, _, _ in pieces).strip()
