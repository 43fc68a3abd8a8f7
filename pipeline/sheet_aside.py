"""Samples of what a stage left out, by reason; with their pictures where the stage before lies beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from realcustom import storage
from realcustom.preprocessing import tables

PER_REASON = 6
FILES = 200  # looked into at most, spread over all; fewer where every reason has its samples before


def aside_samples(target: str, thumbnail: Callable[[bytes], str]) -> dict[str, list[dict[str, str]]]:
    """Entries by `outcome: reason`, each with key, message and picture (a `data:` URI, or empty).

    Args:
        target: a stage's directory; of anything else there is nothing to show.
        thumbnail: of encoded bytes.
    """
    if not storage.is_dir(target) or not storage.exists(storage.join(target, "stage.json")):
        return {}
    try:
        files = storage.list_files(storage.join(target, "aside"), recursive=False)
    except FileNotFoundError:
        return {}
    files = [entry for entry in files if entry.size]
    wanted = _reasons(target)
    upstream = _upstream(target)
    samples: dict[str, list[dict[str, str]]] = {}
    for index in spread(len(files), FILES):
        chosen = _choose(storage.read_bytes(files[index].uri), samples)
        table = storage.join(upstream, files[index].name.removesuffix(".jsonl") + ".parquet") if upstream else None
        pictures = _pictures(table, [entry["uid"] for entry in chosen]) if table and chosen else {}
        for entry in chosen:
            data = pictures.get(entry["uid"])
            picture = thumbnail(data) if data is not None else ""
            shown = {"key": entry["key"], "message": entry.get("message", "")[:300], "picture": picture}
            samples[_title(entry)].append(shown)
        if wanted and all(len(samples.get(title, [])) >= min(number, PER_REASON) for title, number in wanted.items()):
            break
    return dict(sorted(samples.items()))


def spread(total: int, count: int) -> list[int]:
    """At most `count` of the indices below `total`, evenly spread, ascending."""
    count = min(count, total)
    return [index * total // count for index in range(count)]


def _title(entry: dict[str, Any]) -> str:
    return f"{entry['outcome']}: {entry['reason']}"


def _choose(lines: bytes, samples: dict[str, list[dict[str, str]]]) -> list[dict[str, Any]]:
    """The entries of a file whose reasons have too few samples yet; their places in `samples` are made."""
    left: dict[str, int] = {}
    chosen = []
    for line in lines.splitlines():
        entry = json.loads(line)
        title = _title(entry)
        left.setdefault(title, PER_REASON - len(samples.setdefault(title, [])))
        if left[title] > 0:
            left[title] -= 1
            chosen.append(entry)
    return chosen


def _reasons(target: str) -> dict[str, int]:
    """How often each reason was given, where the stage is complete."""
    uri = storage.join(target, "report.json")
    if not storage.exists(uri):
        return {}
    report = json.loads(storage.read_bytes(uri))
    outcomes = ("dropped", "quarantined")
    return {f"{outcome}: {reason}": number for outcome in outcomes for reason, number in report[outcome].items()}


def _upstream(target: str) -> str | None:
    """The directory of the stage before, if it lies beside this one as it does under one root."""
    upstream = json.loads(storage.read_bytes(storage.join(target, "stage.json")))["upstream"]
    place = storage.join(target.rstrip("/").rpartition("/")[0] or ".", upstream)
    return place if "@" in upstream and " " not in upstream and storage.is_dir(place) else None


def _pictures(table: str, uids: list[str]) -> dict[str, bytes]:
    if not storage.exists(table):
        return {}
    found = tables.read_columns(table, ["uid", "image"])
    found = found.filter(pc.is_in(found["uid"], pa.array(uids, pa.string())))
    return dict(zip(found["uid"].to_pylist(), found["image"].to_pylist(), strict=True))
