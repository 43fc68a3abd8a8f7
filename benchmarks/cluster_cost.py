"""CPU seconds of ingest, score and select as three submitted jobs over those of the same commands on this machine alone.

The jobs run on two nodes, from and to a store; the local commands on a Ray of their own, from and to a disk; by turns. A second
run over eight pictures is subtracted on both sides as start-up. The store's own process is left out. Where AWS_ENDPOINT_URL is
set, its store is used (bucket `realcustom`), else moto's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import made_photos
import process_tree
import record

from realcustom import storage
from realcustom.pipeline.local_cluster import BUCKET, local_cluster

PICTURES = 4000  # of a stage
STAGES = {  # and their settings: no models, and one name of the corpus wherever it is
    "ingest": ("--set", "preprocess.ingest.corpus=photographs"),
    "score": ("--set", "preprocess.score.clip=null", "--set", "preprocess.score.heads=null"),
    "select": (),
}
REALCUSTOM = (sys.executable, "-m", "realcustom")


def stage_vs_local(rounds: int) -> list[float]:
    """CPU seconds of jobs over those of local commands."""
    photos = sorted((record.ROOT / "tests" / "data" / "photos").glob("*.jpg"))
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (
        tempfile.TemporaryDirectory() as name,
        local_cluster(2, 2, s3="AWS_ENDPOINT_URL" not in os.environ) as cluster,
    ):
        folder, there = Path(name), cluster.environment()
        os.environ.update(cluster.store)
        run_name = f"s3://{BUCKET}/{time.time_ns()}"
        for size, per_shard in ((8, 1), (PICTURES, PICTURES // 16)):
            for path in made_photos.write_shards(folder / f"in-{size}", photos, size, per_shard).iterdir():
                storage.write_bytes(f"{run_name}/in-{size}/{path.name}", path.read_bytes())
        everything = [process.pid for process in cluster.started]
        store = everything[:1] if cluster.store else []

        def cpu(side: str, size: int, number: int) -> float:
            root = run_name if side == "jobs" else str(folder)
            start = ("submit", "--") if side == "jobs" else ()
            environment = {**own, **there} if side == "jobs" else own
            output = f"{root}/out-{size}-{number}"
            with process_tree.metered(besides=store if side == "jobs" else everything) as meter:
                for stage, settings in STAGES.items():
                    source = f"{root}/in-{size}" if stage == "ingest" else output
                    verb = ("preprocess", stage, "--input", source, "--output", output, *settings)
                    subprocess.run([*REALCUSTOM, *start, *verb], env=environment, check=True, cwd=record.ROOT)
            print(f"{side}, {size} pictures: {meter.cpu:.1f} s CPU", file=sys.stderr, flush=True)
            return meter.cpu

        sides, ratios = ("jobs", "local"), []
        started = {side: [cpu(side, 8, number) for number in range(2)][1] for side in sides}  # the first one is cold
        for number in range(rounds):
            took = {side: cpu(side, PICTURES, number) for side in (sides if number % 2 else sides[::-1])}
            ratios.append((took["jobs"] - started["jobs"]) / (took["local"] - started["local"]))
            kept = [
                {entry.name: entry.size for entry in storage.list_files(f"{root}/out-{PICTURES}-{number}")}
                for root in (run_name, str(folder))
            ]
            rows = [{name: size for name, size in side.items() if name.endswith(".parquet")} for side in kept]
            assert rows[0] and rows[0] == rows[1], "the two sides keep other rows"
    return ratios
