"""Tables of the drawn world: intervals over subjects, kept pictures, and result files of one line a row."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record
from drawn_methods import Method, answers

from realcustom.evaluation.table import Case

RESAMPLES = 2000
Row = Mapping[str, Any]


def resample(cases: Sequence[Case], seed: int = 0) -> np.ndarray:
    """How often each case counts in each resample, (RESAMPLES, n): subjects are drawn, each with all of its cases."""
    _, number = np.unique([str(case.truth.identity) for case in cases], return_inverse=True)
    subjects = int(number.max()) + 1
    rng = np.random.default_rng(seed)
    times = np.stack([np.bincount(rng.integers(0, subjects, subjects), minlength=subjects) for _ in range(RESAMPLES)])
    counts: np.ndarray = times[:, number].astype(float)
    return counts


def interval(values: np.ndarray, counts: np.ndarray, digits: int = 3) -> list[float]:
    """Mean, and the ends of its 95 % bootstrap interval, of one value for each case, (n,)."""
    means = counts @ values / counts.sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return [round(float(number), digits) for number in (values.mean(), low, high)]


def kept_answers(path: Path, make: Callable[[], Method], cases: Sequence[Case]) -> np.ndarray:
    """A method's pictures, uint8 (n, 32, 32, 3), drawn once: later from the file."""
    if not path.exists():
        images = answers(make(), cases)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part.npy")
        np.save(temporary, images)
        os.replace(temporary, path)
        print(f"  {path.stem}: {len(images)} pictures", file=sys.stderr, flush=True)
    drawn: np.ndarray = np.load(path)
    return drawn


def write_table(path: Path, name: str, rows: Iterable[Row], command: str) -> None:
    """Put a table into a result file, in the place of an older one of its name."""
    tables = json.loads(path.read_text()) if path.exists() else {}
    tables[name] = {
        "command": command,
        "commit": record.head(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rows": list(rows),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "{\n" + ",\n".join(f" {json.dumps(key)}: {_table(value)}" for key, value in tables.items()) + "\n}\n"
    )


def _table(table: Mapping[str, Any]) -> str:
    """A table as JSON with one line a row."""
    heads = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items() if key != "rows"]
    rows = ",\n".join(f"   {json.dumps(row)}" for row in table["rows"])
    return "{\n" + ",\n".join([*heads, f'  "rows": [\n{rows}\n  ]']) + "\n }"
