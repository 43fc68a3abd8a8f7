"""Memory of the step of `select` that runs in one process: which copies survive.

    python benchmarks/preprocess_survivors.py            # a minute of one core

Made-up pairs, as the search writes them; the process's highest memory (resident) above what it has before, over the
number of copies. Writes benchmarks/results/preprocessing.json.

    preprocess_survivors_bytes_B    bytes a copy, of 5 million copies of which each has B better ones
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa
import record

from realcustom.preprocessing.select.duplicates import EDGES, priorities_column
from realcustom.preprocessing.select.survivors import resolve

RESULTS = record.RESULTS / "preprocessing.json"
COPIES, PIECE = 5_000_000, 100_000
BETTER = (1, 4)


def edges(better: int) -> Iterator[pa.Table]:
    """Copies, each with so many better pictures that are copies of each other in no pair."""
    for start in range(0, COPIES, PIECE):
        copies = np.repeat(np.arange(start, start + PIECE, dtype=np.uint64), better)
        number = np.tile(np.arange(better, dtype=np.uint64), PIECE)
        worse, others = (priorities(word, copies * 8 + place) for word, place in ((1, 7), (0, number)))
        yield pa.Table.from_arrays([worse, others, pa.array(np.zeros(len(copies), bool))], schema=EDGES)


def priorities(word: int, numbers: np.ndarray) -> pa.Array:
    """A column of priorities with one first word."""
    return priorities_column(np.stack([np.full_like(numbers, word), numbers], axis=1))


def measure(better: int) -> tuple[float, float]:
    """Bytes a copy and seconds."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = resolve(edges(better), [])
    if len(found.numbers) != COPIES:
        raise RuntimeError(f"{len(found.numbers)} pictures are dropped, expected {COPIES}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak - before) * 1024 / COPIES, time.process_time() - began


def main() -> None:
    """Measure, each case in a process of its own, and write the result file."""
    items = []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for better, (size, seconds) in zip(BETTER, pool.map(measure, BETTER), strict=True):
            item = record.record(
                f"preprocess_survivors_bytes_{better}",
                size,
                "bytes",
                n=COPIES,
                spread=(size, size),
                command="python benchmarks/preprocess_survivors.py",
                commit=record.head(),
            )
            items.append({**item, "detail": {"seconds CPU": round(seconds, 1)}})
            print(f"{better} better ones each: {size:.0f} bytes a copy, {seconds:.1f} s")
    record.write(RESULTS, items)


if __name__ == "__main__":
    main()
