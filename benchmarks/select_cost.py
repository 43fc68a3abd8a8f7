"""What the search for copies costs besides pictures: CPU, bytes and requests of each step of `select`, a row.

    python benchmarks/select_cost.py --photos FOLDER            # about 2 minutes
    python benchmarks/select_cost.py --photos FOLDER --rows 4000 --dry

Rows are signatures of made photographs (made_photos.py), as `score` writes them but without their bytes, in files of 500. The
search is cut into 20 partitions: as 4 million rows are by the default of `select.partition_rows`, the least that are not all
compared with each other. CPU seconds are of a run in this process on local files, step by step; bytes and requests of one on
an S3 server on loopback (moto), through a proxy that counts. Writes benchmarks/results/preprocessing.json.

    preprocess_shuffle_ratio        bytes that the step `shuffle` writes over those of the signatures that it reads; `detail` has
                                    milliseconds, bytes read and written, and requests of each step, a row
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import made_photos
import numpy as np
import record
from PIL import Image

sys.path.append(str(record.ROOT))  # the tests are not installed

from realcustom.preprocessing import hashes
from realcustom.preprocessing.catalogue import SELECT
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.select import partitions
from realcustom.preprocessing.settings import PreprocessSettings, SelectSettings
from realcustom.storage import list_files, write_bytes
from tests.support.faulty_proxy import disturbed
from tests.support.object_store import ObjectStore
from tests.support.signatures import scored, write_scored

METRIC = "preprocess_shuffle_ratio"
PARTITIONS, PER_FILE, UNITS_PER_BLOCK = 20, 500, 2
STEPS = ("signatures", "shuffle", "pairs", "duplicates")
_STEP = re.compile(r"/global(?:/|%2F)(\w+)")


def signatures(photos: Sequence[Path], rows: int) -> dict[str, np.ndarray]:
    """Of made photographs, each a blend of crops of two."""
    rng = np.random.default_rng(0)
    images = [Image.open(path).convert("RGB").reduce(2) for path in photos]
    found = []
    for _ in range(rows):
        one, other = (made_photos.crop(images[rng.integers(len(images))], rng) for _ in range(2))
        found.append(hashes.signature(Image.blend(one, other, rng.uniform(0.3, 0.7))))
    columns = {
        name: np.frombuffer(b"".join(getattr(one, name) for one in found), np.uint8).reshape(rows, -1)
        for name in ("phashes", "long_hashes", "color")
    }
    return {
        "short": hashes.short_hashes(columns["phashes"]),
        "long": hashes.long_hashes(columns["long_hashes"]),
        "color": columns["color"],
    }


def settings(rows: int, exact: bool) -> PreprocessSettings:
    """Twenty partitions, all compared with each other or by tables."""
    return PreprocessSettings(
        select=SelectSettings(partition_rows=rows // PARTITIONS, exact_search_rows=rows if exact else 0)
    )


def milliseconds(source: Path, output: Path, rows: int, exact: bool) -> dict[str, float]:
    """CPU of each step a row, by when its last file was written; one BLAS thread."""

    class Timed(InProcess):
        def run(self, job: Any, units: Any) -> Iterator[Any]:
            begun = time.process_time()
            yield from super().run(job, units)
            spent[job.directory.rpartition("/")[2] if "/global/" in job.directory else "units"] += (
                time.process_time() - begun
            )

    spent: dict[str, float] = defaultdict(float)
    begun = time.process_time()
    run_stage(SELECT, str(source), str(output), settings(rows, exact), executor=Timed())
    spent["driver"] = time.process_time() - begun - sum(spent.values())
    return {step: round(seconds / rows * 1000, 4) for step, seconds in spent.items()}


def traffic(source: Path, rows: int, exact: bool) -> dict[str, dict[str, float]]:
    """Bytes and requests of each step a row."""
    store = ObjectStore()
    try:
        with disturbed((store.host, store.port), seed=0, probability=0.0) as proxy:
            os.environ |= {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_address[1]}",
                "AWS_ACCESS_KEY_ID": "made",
                "AWS_SECRET_ACCESS_KEY": "up",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
            import boto3

            boto3.client("s3").create_bucket(Bucket="made")
            for path in sorted(source.iterdir()):
                write_bytes(f"s3://made/scored/{path.name}", path.read_bytes())
            proxy.asked.clear()
            proxy.sent.clear()
            result = run_stage(SELECT, "s3://made/scored", "s3://made/out", settings(rows, exact), executor=InProcess())
            asked, sent = proxy.asked.copy(), proxy.sent.copy()
            written = list_files(result.directory)
    finally:
        store.close()
    found: dict[str, dict[str, float]] = {}
    for step in (*STEPS, "units"):
        found[step] = {
            "requests": sum(number for request, number in asked.items() if _step(request) == step) / rows,
            "bytes read": sum(size for path, size in sent.items() if _step(path) == step) / rows,
            "bytes written": sum(entry.size for entry in written if _step(f"/{entry.name}") == step) / rows,
        }
    return {step: {name: round(value, 4) for name, value in values.items()} for step, values in found.items()}


def _step(path: str) -> str:
    found = _STEP.search(path)
    return found[1] if found else "units"


def main(arguments: Sequence[str]) -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of folders of photographs")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dry", action="store_true", help="write no record")
    options = parser.parse_args(arguments)
    partitions.UNITS_PER_BLOCK = UNITS_PER_BLOCK  # a block is a partition, as 64 units of 3000 rows are
    detail: dict[str, Any] = {"rows": options.rows}
    with tempfile.TemporaryDirectory(prefix="realcustom-select-") as place:
        table = scored(signatures(sorted(options.photos.glob("*/*.jpg")), options.rows))
        source = write_scored(Path(place) / "scored", table, PER_FILE)
        for name, exact in (("all with all", True), ("by tables", False)):
            cpu = milliseconds(source, Path(place) / name, options.rows, exact)
            detail[name] = {"ms": cpu, **traffic(source, options.rows, exact)}
            print(f"{name}: {detail[name]}", file=sys.stderr, flush=True)
    by_tables = detail["by tables"]
    ratio = by_tables["shuffle"]["bytes written"] / by_tables["signatures"]["bytes written"]
    command = "python benchmarks/select_cost.py --photos FOLDER"
    item = record.record(METRIC, ratio, "ratio", n=options.rows, command=command, commit=record.head())
    print(f"{METRIC}: {ratio:.2f}", file=sys.stderr)
    if not options.dry:
        record.write(record.RESULTS / "preprocessing.json", [{**item, "detail": detail}])


if __name__ == "__main__":
    main(sys.argv[1:])
