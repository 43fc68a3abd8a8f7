"""Training at real sizes: reading, the index, checkpoints, memory. Writes benchmarks/results/training.json.

    python benchmarks/training.py --folder DIR                  # everything; some 21 GB below DIR, reused by the next run
    python benchmarks/training.py --folder DIR --only reading   # a group of metrics (repeatable)
    python benchmarks/training.py --folder DIR --quick          # small sizes, nothing is recorded

reading     one worker's data part, with caches of Stable Diffusion 1.5's sizes, 1,000 records a file, batch 16, p_multiview
            0.5 among 4 views of a subject that lie one after the other, and a timed stand-in of 100 ms for the UNet:
            train_data_wait_share, train_bytes_read_ratio, train_bytes_read_ratio_validation (of the first validation),
            train_reader_pss_gib (above memory_gib); the first two also with the views of a subject in different files (_scattered)
index       train_index_seconds, train_index_gib, train_index_warm_seconds, train_index_warm_gib: 10,000,000 records with 3
            views each, 1,000 a file, in row groups as of such caches
checkpoints train_checkpoint_stall_share: a state of 410 MiB every 50 steps of 1 s, written to --output (a folder or an s3://
            URI of a real server, with AWS_ENDPOINT_URL)
speed       train_cached_vs_online: images a second of CPU with all three caches over those without any, one thread a model, with
            the shipped models of sprites, equal losses;
            train_data_wait_share_sprites: with the caches
ray         train_ray_vs_bare: images/s of two workers of Ray Train over those of two bare processes with the same steps, whose
            batches are in memory; the shipped models of sprites
kills       train_resume_loss_difference: a tiny run killed -9 twenty times at random moments, a quarter of them while a
            checkpoint is written, against the undisturbed run
memory      train_activation_ratio: Stable Diffusion 1.5, 512 px, batch 16, counted on tensors without data
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import record

RESULTS = record.RESULTS / "training.json"
CODE = ("training", "realcustom", "benchmarks/*.py")
MEMORY_GIB = 2.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    files: int  # of 1,000 records with caches
    steps: int  # that read them; of eight files an epoch has 500
    runs: int
    records: int  # of the index
    saves: int  # checkpoints
    save_every: int  # steps
    step_seconds: float
    speed: tuple[int, int]  # steps, pairs
    ray: tuple[int, int]  # steps, pairs
    kills: tuple[int, int]  # kills, steps


FULL = Size(
    files=8,
    steps=500,
    runs=3,
    records=10_000_000,
    saves=4,
    save_every=50,
    step_seconds=1.0,
    speed=(40, 5),
    ray=(60, 5),
    kills=(20, 120),
)
QUICK = Size(
    files=1,
    steps=20,
    runs=1,
    records=100_000,  # the fewest whose index is kept
    saves=1,
    save_every=10,
    step_seconds=1.0,
    speed=(10, 1),
    ray=(8, 1),
    kills=(2, 60),
)


@dataclass(frozen=True, kw_only=True)
class Value:
    """What is recorded of a metric."""

    value: float
    unit: str
    n: int = 1
    spread: tuple[float, float] | None = None


def median(values: Sequence[float], unit: str = "ratio") -> Value:
    """The median, with the 5th and the 95th percentile."""
    low, high = np.quantile(values, [0.05, 0.95])
    return Value(value=statistics.median(values), unit=unit, n=len(values), spread=(float(low), float(high)))


Values = dict[str, Value]


def reading(folder: Path, size: Size, output: str) -> Values:
    """The data part of a worker, in a process of its own for each run."""
    found, scattered = reads("near", folder, size), reads("scattered", folder, size)
    return {
        "train_data_wait_share": median([run["wait"] for run in found]),
        "train_data_wait_share_scattered": median([run["wait"] for run in scattered]),
        "train_bytes_read_ratio": median([run["read"] for run in found]),
        "train_bytes_read_ratio_scattered": median([run["read"] for run in scattered]),
        "train_bytes_read_ratio_validation": median([run["validation"] for run in found]),
        "train_reader_pss_gib": median([run["pss"] - MEMORY_GIB for run in found], "GiB"),
    }


def reads(kind: str, folder: Path, size: Size) -> list[Any]:
    """What each run says that reads records of that kind."""
    records = folder / f"{kind}-{size.files}"
    if not records.exists():
        alone("training_data.py", kind, str(records), str(size.files))
    return [
        alone("training_data.py", "read", str(records), str(size.steps), str(MEMORY_GIB), str(seed))
        for seed in range(size.runs)
    ]


def index(folder: Path, size: Size, output: str) -> Values:
    """The index, made and then mapped, each in a process of its own."""
    records = folder / f"rows-{size.records}"
    if not records.exists():
        alone("training_data.py", "rows", str(records), str(size.records))
    for kept in records.glob("index-*.arrow"):
        kept.unlink()
    cold, warm = (alone("training_data.py", "index", str(records)) for _ in range(2))
    return {
        "train_index_seconds": Value(value=cold["seconds"], unit="s"),
        "train_index_gib": Value(value=cold["gib"], unit="GiB"),
        "train_index_warm_seconds": Value(value=warm["seconds"], unit="s"),
        "train_index_warm_gib": Value(value=warm["gib"], unit="GiB"),
    }


def checkpoints(folder: Path, size: Size, output: str) -> Values:
    """Steps beside which checkpoints are written."""
    found = alone("training_checkpoints.py", output, str(size.saves), str(size.step_seconds), str(size.save_every))
    return {"train_checkpoint_stall_share": median(found["shares"])}


def speed(folder: Path, size: Size, output: str) -> Values:
    """Cached features against computed ones, with equal losses."""
    found = alone("training_speed.py", str(folder / "speed"), *map(str, size.speed))
    return {"train_cached_vs_online": median(found["ratios"]), "train_data_wait_share_sprites": median(found["waits"])}


def ray(folder: Path, size: Size, output: str) -> Values:
    """Workers on Ray against bare processes."""
    return {"train_ray_vs_bare": median(alone("training_ray.py", str(folder / "ray"), *map(str, size.ray))["ratios"])}


def kills(folder: Path, size: Size, output: str) -> Values:
    """A run that is killed again and again; the largest difference counts."""
    found = alone("training_kills.py", str(folder / "kills"), *map(str, size.kills))
    return {"train_resume_loss_difference": Value(value=found["difference"], unit="abs", n=found["kills"])}


def memory(folder: Path, size: Size, output: str) -> Values:
    """Activations, counted."""
    found = alone("training_memory.py")
    return {"train_activation_ratio": Value(value=found["with"] / found["without"], unit="ratio")}


def alone(script: str, *arguments: str) -> Any:
    """What a measurement in a process of its own says."""
    command = [sys.executable, str(Path(__file__).parent / script), *arguments]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    print(f"{script} {' '.join(arguments)}: {run.stdout.strip()}", file=sys.stderr)
    return json.loads(run.stdout)


GROUPS: dict[str, Callable[[Path, Size, str], Values]] = {
    group.__name__: group for group in (reading, index, checkpoints, speed, ray, kills, memory)
}


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where records are made and kept")
    parser.add_argument("--output", help="where checkpoints are written (default: below DIR)")
    parser.add_argument("--only", choices=GROUPS, action="append", help="just these metrics (repeatable)")
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is recorded")
    arguments = parser.parse_args()
    if not arguments.quick and not record.is_clean(CODE):
        parser.error("there are changes without a commit, and a record names one; commit them")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    folder, size = arguments.folder.absolute(), QUICK if arguments.quick else FULL
    for name in arguments.only or GROUPS:
        values = GROUPS[name](folder, size, arguments.output or str(folder / "checkpoints"))
        for metric, one in values.items():
            print(f"{metric}: {one.value:.4g} {one.unit}, n={one.n}, spread {one.spread}", file=sys.stderr)
        if not arguments.quick:
            where = f" --output {arguments.output}" if arguments.output and name == "checkpoints" else ""
            command = f"python benchmarks/training.py --folder DIR --only {name}{where}"
            record.write(
                RESULTS,
                [
                    record.record(
                        metric, one.value, one.unit, n=one.n, spread=one.spread, command=command, commit=record.head()
                    )
                    for metric, one in values.items()
                ],
            )


if __name__ == "__main__":
    main()
