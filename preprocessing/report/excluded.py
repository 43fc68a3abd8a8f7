"""Samples of the rows that a stage excluded, by reason; with pictures where the previous stage's table holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from realcustom.preprocessing import tables
from realcustom.preprocessing.report.page import Card, Section
from realcustom.preprocessing.report.pictures import thumbnail
from realcustom.store import Store

SIDE = 192  # pixels of a picture's longer side
FILES = 200  # files that are read at most, spread over all; fewer if every reason has its samples sooner
MESSAGE = 300  # characters


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """The excluded rows of a unit."""

    uri: str  # URI of the file that lists them
    table: str | None  # URI of the table that was read; null: not a table


def excluded_sections(
    files: Iterable[Excluded],
    store: Store,
    per_reason: int,
    wanted: Mapping[str, int] | None = None,
) -> list[Section]:
    """A section for each `outcome: reason`, in order of its name, with at most `per_reason` samples.

    Args:
        store: reads the files that list them, and the tables.
        wanted: how often each reason occurs, if known: reading stops after the last wanted sample.
    """
    samples: dict[str, list[Card]] = {}
    for file in files:
        chosen = _choose(store.read(file.uri), samples, per_reason)
        pictures = _pictures(file.table, [row["uid"] for row in chosen], store) if file.table and chosen else {}
        for row in chosen:
            samples[_title(row)].append(_card(row, pictures.get(row["uid"])))
        if wanted and all(len(samples.get(title, [])) >= min(n, per_reason) for title, n in wanted.items()):
            break
    return [Section(title=title, cards=cards) for title, cards in sorted(samples.items())]


def wanted_of(report: Mapping[str, Any]) -> dict[str, int]:
    """How often each `outcome: reason` occurs, by a stage's report."""
    outcomes = ("dropped", "quarantined")
    return {f"{outcome}: {name}": number for outcome in outcomes for name, number in report[outcome].items()}


def spread(total: int, count: int) -> list[int]:
    """At most `count` of the indices below `total`, evenly spread, ascending."""
    count = min(count, total)
    return [index * total // count for index in range(count)]


def _title(row: Mapping[str, Any]) -> str:
    return f"{row['outcome']}: {row['reason']}"


def _choose(lines: bytes, samples: dict[str, list[Card]], per_reason: int) -> list[dict[str, Any]]:
    """The rows of a file whose reasons have too few samples so far; adds a place in `samples` for each."""
    left: dict[str, int] = {}
    chosen = []
    for line in lines.splitlines():  # split bytes: in text other characters end a line too
        row = json.loads(line)
        title = _title(row)
        left.setdefault(title, per_reason - len(samples.setdefault(title, [])))
        if left[title] > 0:
            left[title] -= 1
            chosen.append(row)
    return chosen


def _card(row: Mapping[str, Any], picture: bytes | None) -> Card:
    foot = (row["key"], row.get("message", "")[:MESSAGE])
    return Card(picture=thumbnail(picture, SIDE), foot=[text for text in foot if text])


def _pictures(table: str, uids: list[str], store: Store) -> dict[str, bytes]:
    found = store.call(lambda uri: tables.read_columns(uri, ["uid", "image"]), table)
    found = found.filter(pc.is_in(found["uid"], tables.strings(uids)))
    return dict(zip(found["uid"].to_pylist(), found["image"].to_pylist(), strict=True))
