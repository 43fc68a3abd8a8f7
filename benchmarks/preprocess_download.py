"""Rows a second that one worker downloads, checks and writes, of a web in which much is dead.

    python benchmarks/preprocess_download.py            # about 3 minutes
    python benchmarks/preprocess_download.py --rows 1000 --runs 1 --dry

`ingest` at its defaults over a table of URLs of the made-up web of made_web.py (10 % dead hosts, 15 % dead names; 10 rows a
host), in one process that is new for each run, so that it knows no host. It has one BLAS thread, as Ray's workers have.
Seconds are those of the whole run, imports left out. A row of a dead host counts: it is in the account with its reason.
Writes benchmarks/results/preprocessing.json.

    preprocess_download_rows    rows a second; `detail` has the CPU seconds of the worker and what is kept
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import made_web
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import record

from realcustom.preprocessing.catalogue import INGEST
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import ExecutionSettings, IngestSettings, PreprocessSettings

METRIC = "preprocess_download_rows"
ROWS_A_HOST = 10


def measure(rows: int) -> dict[str, Any]:
    """One run in this process."""
    settings = PreprocessSettings(
        ingest=IngestSettings(private_addresses=True), execution=ExecutionSettings(max_error_fraction=1.0)
    )
    with (
        made_web.served(rows, rows // ROWS_A_HOST) as web,
        tempfile.TemporaryDirectory(prefix="realcustom-web-") as place,
    ):
        table = Path(place) / "urls.parquet"
        pq.write_table(pa.table({"url": web.urls, "caption": ["a picture"] * rows}), table)
        with made_web.looked_up_here():
            clock, cpu = time.perf_counter(), time.process_time()
            report = run_stage(INGEST, str(table), f"{place}/out", settings, executor=InProcess()).report
            seconds, cpu = time.perf_counter() - clock, time.process_time() - cpu
    if report["kept"] != web.alive or report["in"] != rows:
        raise RuntimeError(f"{report['kept']} of {report['in']} rows kept, expected {web.alive} of {rows}")
    return {
        "rows/s": rows / seconds,
        "CPU seconds": round(cpu, 2),
        "seconds": round(seconds, 2),
        "kept": report["kept"],
    }


def main(arguments: Sequence[str]) -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="write no record")
    options = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # of the processes that follow
    runs = []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for run in pool.map(measure, [options.rows] * options.runs):
            print(f"{METRIC}: {run}", file=sys.stderr, flush=True)
            runs.append(run)
    speeds = [run["rows/s"] for run in runs]
    item = record.record(
        METRIC,
        float(np.median(speeds)),
        "rows/s",
        n=len(runs),
        spread=(min(speeds), max(speeds)),
        command="python benchmarks/preprocess_download.py",
        commit=record.head(),
    )
    if not options.dry:
        record.write(record.RESULTS / "preprocessing.json", [{**item, "detail": {"rows": options.rows, "runs": runs}}])


if __name__ == "__main__":
    main(sys.argv[1:])
