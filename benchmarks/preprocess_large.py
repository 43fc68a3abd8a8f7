"""Memory of `ingest` for large inputs: one table of 5 GB, and a folder of ten million files.

    python benchmarks/preprocess_large.py --only preprocess_table_memory_gib      # about 4 minutes; 10 GB of disk for a while
    python benchmarks/preprocess_large.py --only preprocess_folder_listing_gib    # about 5 minutes
    python benchmarks/preprocess_large.py --only preprocess_captions_listing_gib  # the same
    python benchmarks/preprocess_large.py --gigabytes 0.3 --files 100000 --dry

Memory is the PSS of the process tree, sampled once a second. Writes benchmarks/results/preprocessing.json.

    preprocess_table_memory_gib     `ingest` in one process over a Parquet table of pictures (JPEGs of 1024 x 1024, some
                                    400 kB each, row groups of 500 rows), which is made in a temporary folder, as the output
                                    is, and removed
    preprocess_folder_listing_gib   listing and planning a folder of pictures of a made-up object store (made_store.py), as
                                    `ingest` does before its first unit; `detail` has the seconds
    preprocess_captions_listing_gib the same number of files, of which half are captions beside the pictures
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import made_store
import process_tree
import pyarrow as pa
import pyarrow.parquet as pq
import record
from made_photos import smooth_jpegs

TABLE, FOLDER, CAPTIONS = (
    "preprocess_table_memory_gib",
    "preprocess_folder_listing_gib",
    "preprocess_captions_listing_gib",
)
GIB = 2**30
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(record.ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
INGEST_ALL = """
import sys
from realcustom.preprocessing.catalogue import INGEST
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import PreprocessSettings
print(run_stage(INGEST, sys.argv[1], sys.argv[2], PreprocessSettings(), executor=InProcess()).report["kept"])
"""
PLAN = """
import sys, time
from realcustom.preprocessing.catalogue import INGEST
from realcustom.preprocessing.engine.plan import make_plan
from realcustom.preprocessing.inputs import open_input
from realcustom.preprocessing.settings import PreprocessSettings
from realcustom.store import Store
began, cpu = time.perf_counter(), time.process_time()
source = open_input(INGEST, sys.argv[1], PreprocessSettings(), Store())
plan = make_plan(source.units, [], ())
files = sum(source.account["files"].values())
print(len(plan.todo), files, time.perf_counter() - began, time.process_time() - cpu)
"""


def write_table(path: Path, size: float, group: int = 500) -> int:
    """A table of at least `size` bytes; its number of rows."""
    made, rows = list(smooth_jpegs(16, 1024, colours=8, grain=12, quality=88)), 0
    schema = pa.schema([("image", pa.binary()), ("caption", pa.string())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        while path.stat().st_size < size:
            images = [made[(rows + number) % len(made)] for number in range(group)]
            captions = [f"picture {rows + number}" for number in range(group)]
            writer.write_table(pa.table([images, captions], schema=schema), row_group_size=group)
            rows += group
    return rows


def table_memory(gigabytes: float) -> record.Record:
    """Peak memory of `ingest` over a table."""
    with tempfile.TemporaryDirectory(prefix="realcustom-large-") as place:
        table = Path(place) / "table.parquet"
        rows = write_table(table, gigabytes * 1e9)
        usage = process_tree.run(
            [sys.executable, "-c", INGEST_ALL, str(table), f"{place}/out"], record.ROOT, ENVIRONMENT, memory=True
        )
        if int(usage.out) != rows:
            raise RuntimeError(f"{usage.out} rows kept, expected {rows}")
        detail = {"rows": rows, "GB": round(table.stat().st_size / 1e9, 2), "CPU seconds": round(usage.cpu, 1)}
        shutil.rmtree(f"{place}/out")
    return {**_record(TABLE, usage.peak_pss / GIB), "detail": detail}


def folder_listing(count: int, captions: bool) -> record.Record:
    """Peak memory, and seconds, of planning so many files."""
    place = f"s3://{made_store.BUCKET}/{made_store.FOLDER}"
    with made_store.serving(count // 2 if captions else count, captions) as store:
        usage = process_tree.run(
            [sys.executable, "-c", PLAN, place], record.ROOT, {**ENVIRONMENT, **store}, memory=True
        )
    units, files, seconds, cpu = usage.out.split()
    if int(files) != count:
        raise RuntimeError(f"{files} files planned, expected {count}")
    detail = {
        "files": count,
        "units": int(units),
        "seconds": round(float(seconds), 1),
        "CPU seconds": round(float(cpu), 1),
    }
    return {**_record(CAPTIONS if captions else FOLDER, usage.peak_pss / GIB), "detail": detail}


def _record(metric: str, value: float) -> record.Record:
    command = f"python benchmarks/preprocess_large.py --only {metric}"
    return record.record(metric, value, "GiB", command=command, commit=record.head())


def main(arguments: Sequence[str]) -> None:
    """Measure and write the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=(TABLE, FOLDER, CAPTIONS), help="measure just this")
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size of the table")
    parser.add_argument("--files", type=int, default=10_000_000, help="in the folder")
    parser.add_argument("--dry", action="store_true", help="write no record")
    options = parser.parse_args(arguments)
    for name in (TABLE, FOLDER, CAPTIONS):
        if options.only in (None, name):
            captions = name == CAPTIONS
            item = table_memory(options.gigabytes) if name == TABLE else folder_listing(options.files, captions)
            print(f"{name}: {item['value']} {item['detail']}", file=sys.stderr, flush=True)
            if not options.dry:
                record.write(record.RESULTS / "preprocessing.json", [item])


if __name__ == "__main__":
    main(sys.argv[1:])
