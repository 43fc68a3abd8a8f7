"""Random kill -9 of every stage of preprocessing on Ray, over a spoiled corpus.

    python benchmarks/chaos.py                    # every stage
    python benchmarks/chaos.py --stage ingest     # these only (repeatable)

Each stage runs once undisturbed in this process, and once on an embedded Ray of two workers while kills strike the
processes that execute units (45) and the driver (5), at random times, uniform over the processing, from a seed; see
tests/preprocessing/chaos.py. Then the two trees must be equal byte for byte, a rerun must execute no unit, and no unit
that was done when a driver was killed may have been written again. `select` searches by bit tables in blocks of two
units and partitions of 100 rows, so that each of its steps has many units. Models are tiny ones with random weights.

    preprocess_chaos_kills          kills survived by the stage with the fewest; of a run over every stage
    preprocess_chaos_kills_STAGE    by one; `detail` has whom they struck, how many of them a unit in flight, the seed
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import record

sys.path.append(str(record.ROOT))  # the tests are not installed

from pipeline.cluster import start_local
from preprocessing.settings import CHAIN
from tests.preprocessing.chaos import Task, disturb
from tests.preprocessing.chaos_checks import chaos_settings, check_survived, undisturbed, write_spoiled

METRIC = "preprocess_chaos_kills"
RESULTS = record.RESULTS / "preprocessing.json"
WORKERS, DRIVERS = 45, 5
SHARDS = 80  # of 6 pictures


def main() -> None:
    """Disturb the stages and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", action="append", choices=[stage.value for stage in CHAIN], help="just this one")
    parser.add_argument("--seed", type=int, default=0, help="of the first stage; the next ones' follow it")
    arguments = parser.parse_args()
    wanted = arguments.stage or [stage.value for stage in CHAIN]
    last = max(number for number, stage in enumerate(CHAIN) if stage.value in wanted)
    detail: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="realcustom-chaos-") as place:
        root = Path(place)
        settings = chaos_settings(root / "models")
        address = start_local(num_cpus=4)
        source = write_spoiled(root / "corpus", SHARDS)
        for number, stage in enumerate(CHAIN[: last + 1]):
            whole = undisturbed(stage, source, root / "whole" / stage.value, settings)
            if stage.value in wanted:
                output = root / "disturbed" / stage.value
                task = Task(stage=stage, source=source, output=output, settings=settings, units=whole.units)
                outcome = disturb(task, address, workers=WORKERS, drivers=DRIVERS, seed=arguments.seed + number)
                check_survived(task, outcome, whole)
                found = {"kills": outcome.kills, "of workers": outcome.workers, "of the driver": outcome.drivers}
                found |= {"in flight": outcome.in_flight, "seed": outcome.seed, "units": whole.units}
                detail[stage.value] = {**found, "seconds": round(outcome.seconds)}
                write(f"{METRIC}_{stage.value}", [outcome.kills], detail[stage.value], f" --stage {stage.value}")
                print(f"{stage.value}: {json.dumps(detail[stage.value])}", file=sys.stderr, flush=True)
            source = whole.directory
    if len(detail) == len(CHAIN):
        write(METRIC, [found["kills"] for found in detail.values()], detail, "")


def write(metric: str, kills: list[int], detail: dict[str, Any], options: str) -> None:
    """A record of the fewest kills that a stage survived."""
    command = f"python benchmarks/chaos.py{options}"
    spread = (min(kills), max(kills))
    item = record.record(
        metric, min(kills), "count", n=sum(kills), spread=spread, command=command, commit=record.head()
    )
    record.write(RESULTS, [{**item, "detail": detail}])


if __name__ == "__main__":
    main()
