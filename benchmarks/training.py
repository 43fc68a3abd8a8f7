"""Training at real sizes: reading, the index, checkpoints, memory. Writes benchmarks/results/training.json.

    python benchmarks/training.py --folder DIR                  # everything; some 15 GB below DIR, reused by the next run
    python benchmarks/training.py --folder DIR --only reading   # a group of metrics (repeatable)
    python benchmarks/training.py --folder DIR --quick          # small sizes, nothing is recorded

reading     one worker's data part, with caches of Stable Diffusion 1.5's sizes, 1,000 records a file, batch 16, p_multiview
            0.5 among 4 views of a subject that lie one after the other, and a timed stand-in of 100 ms for the UNet:
            train_data_wait_share, train_bytes_read_ratio, train_bytes_read_ratio_validation (of the first validation),
            train_reader_pss_gib (above memory_gib)
index       train_index_seconds, train_index_gib, train_index_warm_seconds, train_index_warm_gib: 10,000,000 records with 3
            views each, 1,000 a file, in row groups as of such caches
checkpoints train_checkpoint_stall_share: a state of 410 MiB every 50 steps of 1 s, written to --output (a folder or an s3://
            URI of a real server, with AWS_ENDPOINT_URL)
speed       train_cached_vs_online: images/s with all three caches over those without any, one thread a model, with the shipped
            models of sprites; what is computed on the fly is computed beside the step, in the thread that reads ahead
ray         train_ray_vs_bare: images/s of two workers of Ray Train over those of two bare processes with the same steps, whose
            batches are in memory; the shipped models of sprites
kills       train_resume_loss_difference: a tiny run killed -9 twenty times at random moments, a quarter of them while a
            checkpoint is written, against the undisturbed run
memory      train_activation_ratio: Stable Diffusion 1.5, 512 px, batch 16, counted on tensors without data
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import record

RESULTS = record.RESULTS / "training.json"
CODE = ("training", "realcustom", "benchmarks/*.py")
MEMORY_GIB = 2.0
Values = dict[str, tuple[float, str]]  # by metric: value, unit
REPEATED = {"train_cached_vs_online": 3, "train_ray_vs_bare": 3, "train_resume_loss_difference": 20}  # pairs, or kills


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    files: int  # of 1,000 records with caches
    steps: int
    records: int  # of the index
    saves: int  # checkpoints


FULL, QUICK = Size(files=8, steps=1000, records=10_000_000, saves=4), Size(files=1, steps=20, records=4_000, saves=1)


def reading(folder: Path, size: Size, output: str) -> Values:
    """The data part of a worker, in a process of its own."""
    records = folder / f"caches-{size.files}"
    if not records.exists():
        alone("training_data.py", "caches", str(records), str(size.files))
    found = alone("training_data.py", "read", str(records), str(size.steps), str(MEMORY_GIB))
    return {
        "train_data_wait_share": (found["wait"], "ratio"),
        "train_bytes_read_ratio": (found["read"], "ratio"),
        "train_bytes_read_ratio_validation": (found["validation"], "ratio"),
        "train_reader_pss_gib": (found["pss"] - MEMORY_GIB, "GiB"),
    }


def index(folder: Path, size: Size, output: str) -> Values:
    """The index, made and then mapped, each in a process of its own."""
    records = folder / f"rows-{size.records}"
    if not records.exists():
        alone("training_data.py", "rows", str(records), str(size.records))
    for kept in records.glob("index-*.arrow"):
        kept.unlink()
    cold, warm = (alone("training_data.py", "index", str(records)) for _ in range(2))
    return {
        "train_index_seconds": (cold["seconds"], "s"),
        "train_index_gib": (cold["gib"], "GiB"),
        "train_index_warm_seconds": (warm["seconds"], "s"),
        "train_index_warm_gib": (warm["gib"], "GiB"),
    }


def checkpoints(folder: Path, size: Size, output: str) -> Values:
    """Steps beside which checkpoints are written."""
    seconds, every = (0.1, 5) if size is QUICK else (1.0, 50)
    found = alone("training_checkpoints.py", output, str(size.saves * every + every), str(seconds), str(every))
    return {"train_checkpoint_stall_share": (found["share"], "ratio")}


def speed(folder: Path, size: Size, output: str) -> Values:
    """Cached features against computed ones, with equal losses."""
    steps, pairs = (10, 1) if size is QUICK else (100, 3)
    found = alone("training_speed.py", str(folder / "speed"), str(steps), str(pairs))
    return {"train_cached_vs_online": (found["ratio"], "ratio")}


def ray(folder: Path, size: Size, output: str) -> Values:
    """Workers on Ray against bare processes."""
    steps, pairs = (8, 1) if size is QUICK else (80, 3)
    found = alone("training_ray.py", str(folder / "ray"), str(steps), str(pairs))
    return {"train_ray_vs_bare": (found["ratio"], "ratio")}


def kills(folder: Path, size: Size, output: str) -> Values:
    """A run that is killed again and again."""
    times, steps = (2, 300) if size is QUICK else (20, 4000)
    found = alone("training_kills.py", str(folder / "kills"), str(times), str(steps))
    return {"train_resume_loss_difference": (found["difference"], "abs")}


def memory(folder: Path, size: Size, output: str) -> Values:
    """Activations, counted."""
    found = alone("training_memory.py")
    return {"train_activation_ratio": (found["with"] / found["without"], "ratio")}


def alone(script: str, *arguments: str) -> dict[str, float]:
    """What a measurement in a process of its own says."""
    command = [sys.executable, str(Path(__file__).parent / script), *arguments]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    print(f"{script} {' '.join(arguments)}: {run.stdout.strip()}", file=sys.stderr)
    found: dict[str, float] = json.loads(run.stdout)
    return found


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
        for metric, (value, unit) in values.items():
            print(f"{metric}: {value:.3f} {unit}", file=sys.stderr)
        if not arguments.quick:
            where = f" --output {arguments.output}" if arguments.output and name == "checkpoints" else ""
            command = f"python benchmarks/training.py --folder DIR --only {name}{where}"
            commit = record.head()
            record.write(
                RESULTS,
                [
                    record.record(metric, value, unit, n=REPEATED.get(metric, 1), command=command, commit=commit)
                    for metric, (value, unit) in values.items()
                ],
            )


if __name__ == "__main__":
    main()
