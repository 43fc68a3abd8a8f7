"""Random kill -9 of every stage of preprocessing on Ray, over a corrupted corpus.

    python benchmarks/chaos.py                    # every stage that has no record of this code yet
    python benchmarks/chaos.py --stage ingest     # these only (repeatable), recorded or not
    python benchmarks/chaos.py --folder DIR       # keeps what is written, so that a run that was interrupted goes on

Each stage runs once undisturbed in this process, and once on an embedded Ray of two workers while kills end the
processes that execute units (45) and the driver (5, one in ten), at random times, uniform over the processing, from a
seed; see tests/support/chaos.py. Then the two trees must be equal byte for byte, a rerun must execute no unit, and
no unit that was done when a driver was killed may have been written again. `select` searches by bit tables in blocks of
two units and partitions of 100 rows, so that each of its steps has many units. Models are tiny, with random weights.

    preprocess_chaos_kills_STAGE    kills that a stage survived; `detail` has what they ended, how many of them a unit
                                    in flight, the seed
    preprocess_chaos_kills          of the stage with the fewest, once every stage has a record of one and the same code
"""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import record

from realcustom.preprocessing.catalogue import CHAIN

sys.path.append(str(record.ROOT))  # the tests are not installed

from realcustom.pipeline.cluster import start_local
from tests.support.chaos import EndedTooSoon, Outcome, Task, disturb
from tests.support.chaos_checks import chaos_settings, check_survived, undisturbed, write_corrupted

METRIC = "preprocess_chaos_kills"
RESULTS = record.RESULTS / "preprocessing.json"
TRIES = 3  # of a stage, each with a seed of its own
KILLS = 50  # of which one in ten ends the driver
SHARDS, SAMPLES, SIDES = 160, 4, (1200, 900)
CODE = ("preprocessing", "realcustom")  # what a record is about
HARNESS = ("tests/preprocessing", "benchmarks/*.py")


def main() -> None:
    """Run the stages with kills and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", action="append", choices=[stage.name for stage in CHAIN], help="just this one")
    parser.add_argument("--seed", type=int, default=0, help="of the first stage; the next ones' follow it")
    parser.add_argument("--folder", type=Path, help="where corpus and outputs are kept (default: removed at the end)")
    parser.add_argument(
        "--kills", type=int, default=KILLS, help=f"of a stage; a record of fewer than {KILLS} does not count"
    )
    arguments = parser.parse_args()
    if not record.is_clean((*CODE, *HARNESS)):
        parser.error("there are changes without a commit, and a record names one; commit them")
    wanted = arguments.stage or [stage.name for stage in CHAIN if stage.name not in recorded()]
    if arguments.folder is not None:
        disturb_stages(arguments.folder, wanted, arguments.seed, arguments.kills)
    else:
        with tempfile.TemporaryDirectory(prefix="realcustom-chaos-") as place:
            disturb_stages(Path(place), wanted, arguments.seed, arguments.kills)
    found = recorded()
    if len(found) == len(CHAIN):
        details = {name: item["detail"] for name, item in found.items()}
        write(METRIC, [item["value"] for item in found.values()], details, record.head())


def disturb_stages(root: Path, wanted: list[str], seed: int, kills: int) -> None:
    """Run the chain up to the last stage that is wanted, and write a record of each of these."""
    kept = root / "settings.pickle"
    if not kept.exists():
        kept.write_bytes(pickle.dumps(chaos_settings(root / "models")))
    settings = pickle.loads(kept.read_bytes())
    corpus, part = root / "corpus", root / "corpus.part"
    if not corpus.exists():
        shutil.rmtree(part, ignore_errors=True)
        write_corrupted(part, SHARDS, SAMPLES, SIDES)
        part.rename(corpus)
    source = str(corpus)
    address, commit = start_local(num_cpus=4), record.head()
    last = max((number for number, stage in enumerate(CHAIN) if stage.name in wanted), default=-1)
    for number, stage in enumerate(CHAIN[: last + 1]):
        whole = undisturbed(stage, source, root / "whole" / stage.name, settings)
        if stage.name in wanted:
            output = root / "disturbed" / stage.name
            task = Task(stage=stage, source=source, output=output, settings=settings, units=whole.units)
            outcome = disturbed(task, address, kills, seed + number)
            check_survived(task, outcome, whole)
            detail = {"kills": outcome.kills, "of workers": outcome.workers, "of the driver": outcome.drivers}
            detail |= {"in flight": outcome.in_flight, "seed": outcome.seed, "units": whole.units}
            detail |= {"seconds": round(outcome.seconds)}
            options = f" --stage {stage.name} --seed {seed}" + (f" --kills {kills}" if kills != KILLS else "")
            write(f"{METRIC}_{stage.name}", [outcome.kills], detail, commit, options)
            print(f"{stage.name}: {json.dumps(detail)}", file=sys.stderr, flush=True)
        source = whole.directory


def disturbed(task: Task, address: str, kills: int, seed: int) -> Outcome:
    """The stage after all kills. Tries the next seed if the last units were done before the last kills."""
    for later in range(TRIES):
        shutil.rmtree(task.output, ignore_errors=True)
        try:
            return disturb(task, address, workers=kills - kills // 10, drivers=kills // 10, seed=seed + 10 * later)
        except EndedTooSoon as error:
            print(f"{task.stage.name}, seed {seed + 10 * later}: {error}", file=sys.stderr, flush=True)
    raise RuntimeError(f"{task.stage.name} ended too soon {TRIES} times")


def recorded() -> dict[str, record.Record]:
    """By stage, the records of enough kills of the code that is here."""
    items = {item["metric"]: item for item in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    found = {stage.name: items.get(f"{METRIC}_{stage.name}") for stage in CHAIN}
    return {
        name: item
        for name, item in found.items()
        if item is not None and item["value"] >= KILLS and record.is_same(item["commit"], CODE)
    }


def write(metric: str, kills: list[int], detail: dict[str, Any], commit: str, options: str = "") -> None:
    """A record of the fewest kills that a stage survived."""
    command = f"python benchmarks/chaos.py{options}"
    spread = (min(kills), max(kills))
    item = record.record(metric, min(kills), "count", n=sum(kills), spread=spread, command=command, commit=commit)
    record.write(RESULTS, [{**item, "detail": detail}])


if __name__ == "__main__":
    main()
