"""The records of benchmarks: what was measured, on which revision and machine, and by which command."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

Record = dict[str, Any]


def head(folder: Path = ROOT) -> str:
    """The commit that is checked out in a folder."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def is_clean(folders: Sequence[str]) -> bool:
    """Whether these folders are unchanged since the commit."""
    command = ["git", "status", "--porcelain", "--", *folders]
    return not subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def commit_of(folders: Sequence[str]) -> str:
    """The commit that measurements of these folders name; "uncommitted" where they were changed since."""
    return head() if is_clean(folders) else "uncommitted"


def is_same(commit: str, folders: Sequence[str]) -> bool:
    """Whether these folders are equal to those of a commit."""
    command = ["git", "diff", "--quiet", commit, "--", *folders]
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0  # an unknown commit: 128


def record(
    metric: str,
    value: float,
    unit: str,
    *,
    n: int = 1,
    spread: tuple[float, float] | None = None,
    command: str,
    commit: str,
    hardware: str = "",
) -> Record:
    """One record; the spread of a single value is the value, and the default hardware is the processor."""
    low, high = (value, value) if spread is None else spread
    return {
        "metric": metric,
        "value": rounded(value),
        "unit": unit,
        "n": n,
        "spread": [rounded(low), rounded(high)],
        "command": command,
        "commit": commit,
        "hardware": hardware or f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def rounded(value: float) -> float:
    """Three decimals, or three significant digits where that is more: a small difference is not shown as none."""
    return round(value, 3) if abs(value) >= 1 else float(f"{value:.3g}")


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson's score interval)."""
    z = 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, min(1.0, centre + half)


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Merge new records into a result file."""
    old = json.loads(path.read_text()) if path.exists() else []
    newest = {item["metric"]: item for item in [*old, *records]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(newest.values()), indent=1) + "\n")
