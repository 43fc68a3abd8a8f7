"""What units cost the driver on Ray: units whose work is one small file.

    python benchmarks/units_on_ray.py OUTPUT 1024 9216

For each number of units a line with it, seconds of CPU of the driver's process, and wall seconds.
"""

from __future__ import annotations

import sys
import time

from realcustom.pipeline.cluster import connected
from realcustom.preprocessing.engine.unit import Counts, SealedUnit, Unit, UnitKind
from realcustom.preprocessing.engine.worker import StageJob, Work
from realcustom.preprocessing.run import OnRay
from realcustom.preprocessing.settings import PreprocessSettings


def load(job: StageJob) -> Work:
    """A work of one row."""
    sealed = SealedUnit(rows=b"row", excluded=b"", counts=Counts(rows_in=1, kept=1, rows_out=1))
    return lambda unit, data: sealed


def main(output: str, numbers: list[int]) -> None:
    """Run units by each number, each time to a folder of its own."""
    with connected("local"):
        for number in numbers:
            directory = f"{output}/{number}"
            job = StageJob(
                name="ingest", load=load, settings=PreprocessSettings(), directory=directory, reads_table=False
            )
            units = [
                Unit(name=f"unit-{index:07d}", identity="0" * 16, kind=UnitKind.PART, files=())
                for index in range(number)
            ]
            cpu, wall = time.process_time(), time.perf_counter()
            done = sum(1 for _ in OnRay().run(job, units))
            if done != number:
                raise RuntimeError(f"{done} units came back, expected {number}")
            print(number, time.process_time() - cpu, time.perf_counter() - wall, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], [int(number) for number in sys.argv[2:]])
