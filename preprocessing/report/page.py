"""One page with counts and sample pictures: the stage's report.html, and `inspect --html`.

A page is one self-contained file. It holds no time and no host: equal outputs have equal pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from realcustom.page_style import STYLE

TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True, kw_only=True)
class Card:
    """A sample. A picture is a `data:` URI; empty: none is shown."""

    picture: str = ""
    subject: str = ""  # its cut-out, beside it
    caption: Mapping[str, str] | None = None  # as `around` cuts it
    lines: Mapping[str, str] = field(default_factory=dict)  # other texts by their name
    scores: Mapping[str, str] = field(default_factory=dict)
    foot: Sequence[str] = ()  # its source, and notes


@dataclass(frozen=True, kw_only=True)
class Section:
    """Samples under a heading."""

    title: str
    cards: Sequence[Card]
    width: int = 210  # pixels of a card, at least


@dataclass(frozen=True, kw_only=True)
class Page:
    """The content of a page."""

    title: str
    subtitle: str
    account: Sequence[tuple[str, int]]
    sections: Sequence[Section]
    says: str = ""  # what made it, a sentence
    before: str = ""  # address of the page of what `subtitle` names


def render(page: Page) -> bytes:
    """The page as HTML. Text of a corpus is escaped."""
    return render_template(TEMPLATE, page=page)


def render_template(template: Path, **content: Any) -> bytes:
    """A Jinja2 template filled with `content` and with `style`; a name that is not in it is an error."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    filled = environment.from_string(template.read_text("utf-8")).render(content, style=Markup(STYLE))
    return filled.encode("utf-8", "replace")


def account_of(report: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The rows of a stage's report: counts by outcome and reason."""
    lines = [("in", report["in"]), ("kept", report["kept"])]
    for outcome in ("dropped", "quarantined"):
        lines += [(f"{outcome}: {reason}", number) for reason, number in report[outcome].items()]
    lines.append(("rows written", report["rows_out"]))
    lines += [(f"candidates rejected: {reason}", number) for reason, number in report["rejected"].items()]
    lines += [(f"sets of {size} copies of a picture", number) for size, number in report.get("clusters", {}).items()]
    lines += [(f"kept, {note.replace('_', ' ')}", number) for note, number in report.get("noted", {}).items()]
    lines += [(f"files not read: {kind}", number) for kind, number in not_read_of(report).items()]
    rows = report.get("table_rows_without_picture", {}).get("rows", 0)
    return lines + ([("rows of a table of captions without a picture", rows)] if rows else [])


def not_read_of(report: Mapping[str, Any]) -> dict[str, int]:
    """How many files of each kind were not read, the most frequent first."""
    kinds = {kind: number for kind, number in report.get("not_read", {}).items() if kind != "first"}
    return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))


def names_of(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """The first names of what a report counts without a sample of it."""
    named = {f"Kept, {note.replace('_', ' ')}": names for note, names in report.get("first", {}).items()}
    named["Files not read"] = report.get("not_read", {}).get("first", [])
    named["Rows without a picture"] = report.get("table_rows_without_picture", {}).get("first", [])
    return {title: names for title, names in named.items() if names}


def around(text: str, start: int = 0, end: int = 0) -> dict[str, str]:
    """`text` in three parts, so that the characters from `start` to `end` can be marked."""
    return {"before": text[:start], "word": text[start:end], "after": text[end:]}
