"""What the search for copies costs besides pictures: CPU, bytes and requests of each step of `select`, a row.

    python benchmarks/select_cost.py --photos FOLDER            # about 2 minutes
    python benchmarks/select_cost.py --photos FOLDER --rows 4000 --dry

Rows are signatures of made photographs (made_photos.py), as `score` writes them but without their bytes, in files of 500; every
20th is a copy. The search is cut into 20 partitions: as 4 million rows are by the default of `select.partition_rows`, the least
that are not all compared with each other. One process, local files. On an object store a file that is opened costs three
requests, one that is written one. Writes benchmarks/results/preprocessing.json.

    preprocess_shuffle_ratio        bytes that the steps between `signatures` and `pairs` write over those of the signatures;
                                    `detail` has for each step, a row of the corpus: CPU, rows and bytes of its files, and how
                                    often one of them is opened later
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import made_photos
import numpy as np
import pyarrow.parquet as pq
import record
from PIL import Image

sys.path.append(str(record.ROOT))  # the tests are not installed

from realcustom import storage
from realcustom.preprocessing import hashes
from realcustom.preprocessing.catalogue import SELECT
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.engine.worker import Outcome, StageJob
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.select import partitions
from realcustom.preprocessing.settings import PreprocessSettings, SelectSettings
from tests.support.signatures import scored, write_scored

METRIC = "preprocess_shuffle_ratio"
PARTITIONS, PER_FILE, UNITS_PER_BLOCK = 20, 500, 2
BETWEEN = ("shuffle", "links", "groups", "gather")
STEPS = ("signatures", *BETWEEN, "pairs", "duplicates")
_STEP = re.compile(r"/global/(\w+)")


def signatures(photos: Sequence[Path], rows: int) -> dict[str, np.ndarray]:
    """Of made photographs, each a blend of crops of two; every 20th is the one before it in other bytes."""
    rng = np.random.default_rng(0)
    images = [Image.open(path).convert("RGB").reduce(2) for path in photos]
    found, picture = [], images[0]
    for number in range(rows):
        if number % 20 == 19:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=50)
            picture = Image.open(buffer)
        else:
            one, other = (made_photos.crop(images[rng.integers(len(images))], rng) for _ in range(2))
            picture = Image.blend(one, other, rng.uniform(0.3, 0.7))
        found.append(hashes.signature(picture))
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


def measured(source: Path, output: Path, rows: int, exact: bool) -> dict[str, dict[str, float]]:
    """Milliseconds of CPU of each step, bytes of its files, and how often one is opened for reading, all a row."""
    spent: defaultdict[str, float] = defaultdict(float)
    opened: Counter[str] = Counter()
    open_filesystem = storage.open_filesystem

    class Timed(InProcess):
        def run(self, job: StageJob, units: Sequence[Unit]) -> Iterator[Outcome]:
            begun = time.process_time()
            yield from super().run(job, units)
            spent[_step(f"{job.directory}/")] += time.process_time() - begun

    def counting(uri: str | Path) -> Any:
        if str(uri).endswith(".parquet"):
            opened[_step(str(uri))] += 1
        return open_filesystem(uri)

    begun = time.process_time()
    with mock.patch.object(storage, "open_filesystem", counting):
        result = run_stage(SELECT, str(source), str(output), settings(rows, exact), executor=Timed())
    spent["driver"] = time.process_time() - begun - sum(spent.values())
    found: dict[str, dict[str, float]] = {"driver": {"ms": 1000 * spent["driver"] / rows}}
    for step in (*STEPS, "units"):
        files = [path for path in Path(result.directory).rglob("*.parquet") if _step(str(path)) == step]
        found[step] = {
            "ms": 1000 * spent[step] / rows,
            "rows": sum(pq.read_metadata(path).num_rows for path in files) / rows,
            "bytes": sum(path.stat().st_size for path in files) / rows,
            "opened": (opened[step] - len(files)) / rows,  # each is opened once to be written
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
            detail[name] = measured(source, Path(place) / name, options.rows, exact)
            print(f"{name}: {detail[name]}", file=sys.stderr, flush=True)
    by_tables = detail["by tables"]
    ratio = sum(by_tables[step]["bytes"] for step in BETWEEN) / by_tables["signatures"]["bytes"]
    command = "python benchmarks/select_cost.py --photos FOLDER"
    item = record.record(METRIC, ratio, "ratio", n=options.rows, command=command, commit=record.head())
    print(f"{METRIC}: {ratio:.2f}", file=sys.stderr)
    if not options.dry:
        record.write(record.RESULTS / "preprocessing.json", [{**item, "detail": detail}])


if __name__ == "__main__":
    main(sys.argv[1:])
