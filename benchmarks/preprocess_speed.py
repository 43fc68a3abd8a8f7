"""Speed and memory of preprocessing: Ray against a plain loop, memory against rows, planning, ten pictures.

    python benchmarks/preprocess_speed.py --photos FOLDER            # an hour or two on two cores
    python benchmarks/preprocess_speed.py --photos FOLDER --only preprocess_ray_vs_loop

Needs real photographs, a folder of each subject, as DreamBooth's data set has them, of which it makes corpora of 384
x 320 JPEGs (made_photos.py). --work FOLDER keeps them for the next time. CPU seconds and PSS are those of the whole
process tree (process_tree.py), which other work on the machine disturbs less than a wall clock. Every process has one
BLAS thread. Writes benchmarks/results/preprocessing.json.

    preprocess_ray_vs_loop      ingest + score (no models) + select of 20,000 pictures: CPU on an embedded Ray at the
                                defaults (stages_on_ray.py) over that of one plain process (plain_loop.py) which keeps
                                the same rows. Start-up, a run over 8 shards of one picture just before, is subtracted on each side
    preprocess_pss_growth_10x   the same on Ray: peak PSS at 20,000 pictures over that at 2000, median of three rounds
    preprocess_plan_100k_seconds   planning 100,000 finished units of `score`, CPU: three listings, local. On S3 they are
                                300 requests for 1000 keys each; not measured
    preprocess_driver_ms_a_unit CPU of the driver's process for a unit on an embedded Ray, beyond its start: 9216 units of one small
                                file less 1024, over the difference (units_on_ray.py)
    preprocess_local_seconds_STAGE   wall seconds of ten pictures with --local, imports left out
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_photos
import numpy as np
import process_tree
import pyarrow.parquet as pq
import record

from realcustom.preprocessing.catalogue import INGEST, SCORE, SELECT
from realcustom.preprocessing.engine.directory import StageDirectory
from realcustom.preprocessing.engine.plan import make_plan
from realcustom.preprocessing.engine.unit import identity_of
from realcustom.preprocessing.inputs import open_input
from realcustom.preprocessing.settings import PreprocessSettings
from realcustom.store import Store

RESULTS = record.RESULTS / "preprocessing.json"
RAY, MEMORY, PLAN, DRIVER, LOCAL = (
    "preprocess_ray_vs_loop",
    "preprocess_pss_growth_10x",
    "preprocess_plan_100k_seconds",
    "preprocess_driver_ms_a_unit",
    "preprocess_local_seconds",
)
METRICS = (RAY, MEMORY, PLAN, DRIVER, LOCAL)
UNITS = (1024, 9216)
PICTURES = 20_000
LOOP, STAGES = "plain_loop.py", "stages_on_ray.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(record.ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def corpus(work: Path, photos: list[Path], count: int, per_shard: int = 500) -> Path:
    """A synthesised corpus, made once."""
    folder = work / f"pictures-{count}-{per_shard}"
    if not (folder / "done").exists():
        made_photos.write_shards(folder, photos, count, per_shard)
        (folder / "done").touch()
    return folder


def run(program: str, shards: Path, output: Path, memory: bool = False) -> process_tree.Usage:
    """One side over a corpus, to an output that is not there yet."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, str(Path(__file__).parent / program), str(shards), str(output)]
    usage = process_tree.run(command, record.ROOT, ENVIRONMENT, memory)
    print(f"{program} over {shards.name}: {usage.cpu:.1f} s CPU, {usage.peak_pss / 1e9:.2f} GB", file=sys.stderr)
    return usage


def kept(folder: Path) -> list[str]:
    """The uids of a folder of tables, sorted."""
    return sorted(uid for path in folder.glob("*.parquet") for uid in pq.read_table(path)["uid"].to_pylist())


def ray_vs_loop(work: Path, photos: list[Path], pairs: int) -> record.Record:
    """Both sides in turn, each first every other time."""
    shards, empty = corpus(work, photos, PICTURES), corpus(work, photos, 8, 1)
    output, programs = work / "output", [LOOP, STAGES]
    ratios, seconds = [], []
    start: dict[str, list[float]] = {program: [] for program in programs}
    for number in range(pairs):
        cpu, rows = {}, {}
        for program in programs if number % 2 == 0 else reversed(programs):
            start[program].append(round(run(program, empty, output).cpu, 2))
            usage = run(program, shards, output)
            cpu[program] = usage.cpu - start[program][-1]
            rows[program] = kept(output / "kept" if program == LOOP else Path(usage.out.strip()))
        if rows[LOOP] != rows[STAGES]:
            raise RuntimeError(f"the loop keeps {len(rows[LOOP])} rows, the stages {len(rows[STAGES])}, or others")
        ratios.append(cpu[STAGES] / cpu[LOOP])
        seconds.append({"loop": round(cpu[LOOP], 2), "Ray": round(cpu[STAGES], 2)})
        print(f"{RAY}: {ratios[-1]:.3f}", file=sys.stderr)
    detail = {"pictures": PICTURES, "CPU seconds": seconds, "start-up": start, "rows kept": len(rows[LOOP])}
    return made(RAY, float(np.median(ratios)), "ratio", pairs, ratios, detail)


def memory_growth(work: Path, photos: list[Path]) -> record.Record:
    """Peak PSS of the stages on Ray at ten times the rows."""
    sizes, rounds = (PICTURES // 10, PICTURES), []
    for _ in range(3):  # sampled once a second, so a peak may be missed
        rounds.append(
            [run(STAGES, corpus(work, photos, size), work / "output", memory=True).peak_pss for size in sizes]
        )
    ratios = [many / few for few, many in rounds]
    peaks = [[round(peak / 1e9, 3) for peak in pair] for pair in rounds]
    detail = {f"{sizes[0]} and {sizes[1]} pictures, GB": peaks}
    return made(MEMORY, float(np.median(ratios)), "ratio", len(ratios), ratios, detail)


def planning(work: Path, count: int = 100_000) -> record.Record:
    """Names as `ingest` and `score` leave them, empty files: planning reads listings only."""
    root = Path(tempfile.mkdtemp(dir=work))
    upstream, directory = root / "ingest@0", root / "score@0"
    identity, settings = identity_of("a unit"), PreprocessSettings()
    for folder in (upstream, directory):
        (folder / "manifests").mkdir(parents=True)
        for number in range(count):
            (folder / f"shard-{number:06d}.parquet").touch()
            (folder / "manifests" / f"shard-{number:06d}.{identity}.{identity}.json").touch()
    (upstream / "stage.json").write_text('{"stage": "ingest", "fingerprint": "0"}')
    (upstream / "report.json").touch()
    rounds, wall = [], []
    for _ in range(5):
        began, clock = time.process_time(), time.perf_counter()
        source = open_input(SCORE, str(upstream), settings, Store())
        place = StageDirectory(str(directory), Store())
        plan = make_plan(source.units, place.manifests(), place.rows_present())
        rounds.append(time.process_time() - began)
        wall.append(round(time.perf_counter() - clock, 3))
        if len(plan.done) != count or plan.todo:
            raise RuntimeError(f"{len(plan.done)} units are done, expected {count}")
    shutil.rmtree(root)
    # manifests of the stage before; manifests and rows of this one
    detail = {"seconds are of": "CPU", "wall": wall, "load average": os.getloadavg()[0], "S3 pages": 3 * count // 1000}
    return made(PLAN, float(np.median(rounds)), "s", 1, rounds, detail)


def driver(work: Path) -> record.Record:
    """What a unit costs the driver."""
    rounds, wall = [], []
    for _ in range(3):
        output = work / "units"
        shutil.rmtree(output, ignore_errors=True)
        command = [sys.executable, str(Path(__file__).parent / "units_on_ray.py"), str(output), *map(str, UNITS)]
        result = subprocess.run(
            command, cwd=record.ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True
        )
        few, many = (list(map(float, line.split())) for line in result.stdout.splitlines()[-2:])
        per_unit = [1000 * (many[index] - few[index]) / (many[0] - few[0]) for index in (1, 2)]
        rounds.append(per_unit[0])
        wall.append(round(per_unit[1], 2))
    return made(DRIVER, float(np.median(rounds)), "ms CPU", len(rounds), rounds, {"wall, with the workers' own": wall})


def ten_pictures(work: Path, photos: list[Path]) -> Iterator[record.Record]:
    """Each stage without models in a process of its own that has imported what it needs."""
    shards = corpus(work, photos, 10, 10)
    program = (
        "import sys, time\n"
        "from realcustom.preprocessing.catalogue import CATALOGUE\n"
        "from realcustom.preprocessing.run import InProcess, run_stage\n"
        "from realcustom.preprocessing.settings import PreprocessSettings\n"
        "import realcustom.preprocessing.ingest.stage, realcustom.preprocessing.score.stage\n"
        "import realcustom.preprocessing.select.stage, realcustom.preprocessing.select.search\n"
        "start = time.monotonic()\n"
        "stage = CATALOGUE[sys.argv[1]]\n"
        "result = run_stage(stage, sys.argv[2], sys.argv[3], PreprocessSettings(), executor=InProcess())\n"
        "print(time.monotonic() - start, result.directory)"
    )
    rounds: dict[str, list[float]] = {}
    for _ in range(3):
        place, output = str(shards), work / "output"
        shutil.rmtree(output, ignore_errors=True)
        for stage in (INGEST, SCORE, SELECT):
            command = [sys.executable, "-c", program, stage.name, place, str(output)]
            result = subprocess.run(
                command, cwd=record.ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True
            )
            seconds, place = result.stdout.split()
            rounds.setdefault(stage.name, []).append(float(seconds))
    for name, values in rounds.items():
        yield made(f"{LOCAL}_{name}", float(np.median(values)), "s", 3, values, {"pictures": 10}, only=LOCAL)


def made(
    metric: str, value: float, unit: str, n: int, values: list[float], detail: dict[str, Any], only: str = ""
) -> record.Record:
    """A record of this file, with the details of its value."""
    command = f"python benchmarks/preprocess_speed.py --photos FOLDER --only {only or metric}"
    low, high = float(np.percentile(values, 5)), float(np.percentile(values, 95))
    item = record.record(metric, value, unit, n=n, spread=(low, high), command=command, commit=record.head())
    return {**item, "detail": detail}


def main() -> None:
    """Measure and write the result file after each measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=METRICS, action="append", help="measure just this (repeatable)")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side of a ratio")
    parser.add_argument("--photos", type=Path, help="folder of folders of photographs")
    parser.add_argument("--work", type=Path, help="folder for corpora and outputs, kept; else a temporary one")
    arguments = parser.parse_args()
    wanted = set(arguments.only or METRICS)
    photos = sorted(arguments.photos.glob("*/*.jpg")) if arguments.photos is not None else []
    if not photos and wanted - {PLAN, DRIVER}:
        parser.error(f"no photographs (*/*.jpg) in --photos {arguments.photos}; name a folder that has some")
    with tempfile.TemporaryDirectory(prefix="realcustom-preprocessing-") as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if RAY in wanted:
            record.write(RESULTS, [ray_vs_loop(work, photos, arguments.pairs)])
        if MEMORY in wanted:
            record.write(RESULTS, [memory_growth(work, photos)])
        if PLAN in wanted:
            record.write(RESULTS, [planning(work)])
        if DRIVER in wanted:
            record.write(RESULTS, [driver(work)])
        if LOCAL in wanted:
            record.write(RESULTS, list(ten_pictures(work, photos)))


if __name__ == "__main__":
    main()
