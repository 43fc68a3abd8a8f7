"""How much of its time a device waits for a CPU that reads, decodes and scales for it and writes behind it.

    python benchmarks/device_waits.py --photos FOLDER            # three minutes of two cores

The device is made up: it sleeps. All else is what a worker with models does with a unit: its table is read, its photographs
decoded and taken through CLIP's image processor in threads beside the device, its rows written. Photographs are those of the
folder, as they are. The device takes for a photograph as long as all threads together need for one, or a multiple.
Writes benchmarks/results/preprocessing.json.

    preprocess_device_waits     share of the time that a device twice as slow as the threads waits; `detail` has other speeds, and
                                of each the share within a unit, from its first batch to its last
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import record
from PIL import Image
from transformers import CLIPImageProcessorPil

from realcustom.machine import available_cores
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.ledger import RowLedger, UnitResult
from realcustom.preprocessing.engine.unit import InputFile, Unit, UnitKind
from realcustom.preprocessing.engine.worker import TableWork
from realcustom.preprocessing.pictures import decode
from realcustom.record import picture_uid

METRIC = "preprocess_device_waits"
ROWS, BATCH, UNITS = 256, 32, 2
ROUNDS = 3
TIMES = (0.5, 1.0, 2.0)  # the device's over the threads'


class Sleeping:
    """A stage whose model sleeps so many seconds a picture."""

    def __init__(self, seconds: float, threads: int):
        self._seconds, self._threads = seconds, threads
        self._processor = CLIPImageProcessorPil()
        self.within = 0.0  # seconds from the first batch to the end of the last

    def __call__(self, unit: Unit, table: pa.Table) -> UnitResult:
        """All rows are kept."""
        ledger, begun = RowLedger(table, unit.name), 0.0
        for rows, _ in ledger.prepared_batches(BATCH, lambda index, data: self.prepare(decode(data)), self._threads):
            begun = begun or time.perf_counter()
            time.sleep(self._seconds * len(rows))
        self.within += time.perf_counter() - begun
        return UnitResult(rows_in=table.num_rows, table=ledger.rows(), excluded=ledger.excluded)

    def prepare(self, picture: Image.Image) -> Any:
        """As `score` does for CLIP."""
        return self._processor([picture], return_tensors="pt")["pixel_values"][0]


def unit_of(photos: Sequence[bytes]) -> bytes:
    """The table of a unit of photographs."""
    images = [photos[number % len(photos)] for number in range(ROWS)]
    uids = [picture_uid(str(number)) for number in range(ROWS)]
    return tables.to_parquet(pa.table({"uid": uids, "image": pa.array(images, pa.large_binary())}))


def alone(data: bytes, threads: int) -> float:
    """Seconds a photograph of all threads together, with a device that takes no time."""
    begun = time.perf_counter()
    waits(data, 0.0, threads)
    return (time.perf_counter() - begun) / (ROWS * UNITS)


def waits(data: bytes, seconds: float, threads: int) -> tuple[float, float]:
    """The share of the time that the device waits: of all, and within units."""
    stage = Sleeping(seconds, threads)
    work, slept = TableWork(stage), ROWS * UNITS * seconds
    begun = time.perf_counter()
    for number in range(UNITS):
        file = InputFile(name="unit.parquet", uri="unit.parquet", size=0)
        work(Unit(name=f"unit-{number}", identity="", kind=UnitKind.PART, files=(file,)), data)
    return 1 - slept / (time.perf_counter() - begun), 1 - slept / stage.within


def main(arguments: Sequence[str]) -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of folders of photographs")
    parser.add_argument("--dry", action="store_true", help="write no record")
    options = parser.parse_args(arguments)
    threads = available_cores()
    data = unit_of([path.read_bytes() for path in sorted(options.photos.glob("*/*.jpg"))])
    alone(data, threads)  # warms up
    of_threads: list[float] = []
    found: dict[float, list[tuple[float, float]]] = {times: [] for times in TIMES}
    for _ in range(ROUNDS):  # each holds its devices against the speed that its threads have just had
        of_threads.append(alone(data, threads))
        for times in TIMES:
            found[times].append(waits(data, times * of_threads[-1], threads))
            print(f"{times}: {found[times][-1]}", file=sys.stderr, flush=True)
    milliseconds = round(statistics.median(of_threads) * 1000, 2)
    detail: dict[str, Any] = {"threads": threads, "ms a photograph of all threads": milliseconds}
    for times, shares in found.items():
        whole, within = (round(statistics.median(values), 3) for values in zip(*shares, strict=True))
        detail[f"device {times} times the threads' time"] = {"waits": whole, "within a unit": within}
    value = detail[f"device {TIMES[-1]} times the threads' time"]["waits"]
    command = "python benchmarks/device_waits.py --photos FOLDER"
    item = record.record(METRIC, value, "ratio", n=ROWS * UNITS * ROUNDS, command=command, commit=record.head())
    if not options.dry:
        record.write(record.RESULTS / "preprocessing.json", [{**item, "detail": detail}])


if __name__ == "__main__":
    main(sys.argv[1:])
