"""The rows of metrics.jsonl: appended to on a disk; on an object store, which cannot append, written in parts beside it.

A part holds the rows of some time. They are put together into metrics.jsonl when a run starts again and when it ends.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from typing import Any

from realcustom import storage
from realcustom.store import Store

Row = dict[str, Any]
_VALIDATIONS = "validations"  # folder
_STARTS = "starts.json"


def read_rows(output: str, store: Store) -> list[Row]:
    """The rows of a run by their steps; none where there are no metrics. A line that was cut by a kill is left out."""
    uri, parts = storage.join(output, "metrics.jsonl"), storage.join(output, "metrics")
    places = [uri] if store.exists(uri) else []
    if storage.is_remote(output):
        places += [storage.join(parts, name) for name in store.list_names(parts)]
    rows: dict[tuple[int, bool], Row] = {}  # a part may be in metrics.jsonl already
    for place in places:
        for line in store.read(place).decode().splitlines(keepends=True):
            if line.endswith("\n"):
                row = json.loads(line)
                rows[row["step"], "val_loss" in row] = row
    for step, place in validation_files(output, store).items():
        if (step, True) not in rows and "val_loss" in (row := json.loads(store.read(place))):
            rows[step, True] = row
    return [rows[key] for key in sorted(rows)]


def validation_file(output: str, step: int) -> str:
    """Where the row of a validation that was made beside the training is kept, a file each."""
    return storage.join(output, _VALIDATIONS, f"step-{step:08d}.json")


def validation_files(output: str, store: Store) -> dict[int, str]:
    """Those that are there: uris by step."""
    folder = storage.join(output, _VALIDATIONS)
    found = {name: re.fullmatch(r"step-(\d+)\.json", name) for name in store.list_names(folder)}
    return {int(match[1]): storage.join(folder, name) for name, match in found.items() if match is not None}


def validation_losses(rows: Iterable[Row]) -> dict[str, float]:
    """The losses among the rows, by step."""
    return {str(row["step"]): row["val_loss"] for row in rows if "val_loss" in row}


def note_start(output: str, step: int, repeated: int, store: Store) -> None:
    """Add a start to those of the run: after `step`, of steps of which so many are known to be done again. Unlike its rows it
    stays where the next start begins before them.
    """
    starts = [*read_starts(output, store), {"step": step, "repeated": repeated}]
    store.write(storage.join(output, _STARTS), json.dumps(starts).encode())


def read_starts(output: str, store: Store) -> list[Row]:
    """The starts of a run, with `step` and `repeated`."""
    uri = storage.join(output, _STARTS)
    starts: list[Row] = json.loads(store.read(uri)) if store.exists(uri) else []
    return starts


class MetricsFile:
    """Adds rows to the metrics of one run."""

    def __init__(self, output: str, store: Store) -> None:
        self._uri, self._parts = storage.join(output, "metrics.jsonl"), storage.join(output, "metrics")
        self._output, self._store = output, store
        self._number = 0  # of the next part

    def cut(self, step: int) -> int:
        """Put all rows up to `step` into metrics.jsonl, and forget the later ones; returns the last step that a row had."""
        rows = read_rows(self._output, self._store)
        kept = [row for row in rows if step > 0 and row["step"] <= step]
        self._store.write(self._uri, _lines(kept))
        if storage.is_remote(self._output):
            for name in self._store.list_names(self._parts):
                self._store.delete(storage.join(self._parts, name))
        return max((int(row["step"]) for row in rows), default=0)

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows; they are kept whatever happens afterwards."""
        if storage.is_remote(self._output):
            self._store.write(storage.join(self._parts, f"{self._number:08d}.jsonl"), _lines(rows))
            self._number += 1
        else:
            self._store.call(lambda uri: append(uri, _lines(rows)), self._uri, "write")


def _lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def append(path: str, data: bytes) -> None:
    """Add bytes to a file on a disk, which is made if it is not there, and wait until they are kept."""
    path = path.removeprefix("file://")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
