"""Jobs on a cluster of some nodes and a store, all on this machine.

    python benchmarks/cluster.py                      # about 25 minutes on two quiet cores
    python benchmarks/cluster.py --only fetch --only orphans
    python benchmarks/cluster.py --only submit --rounds 1      # a trial: fewer rounds than the default leave no record

`submit`: from the command `realcustom submit` to its job's first unit, on a warm cluster, the package sent before.
`stage_vs_local`: CPU seconds of ingest, score and select as three submitted jobs on two nodes, from and to a store, over those of
the same commands on a Ray of their own and a disk, by turns; a run over eight pictures is subtracted on both sides as start-up,
and the store's own process is left out. Where AWS_ENDPOINT_URL is set, its store is used (bucket `realcustom`), else moto's.
`node_loss`: cluster_node_loss.py. `fetch`: bytes that a store sends while 8 processes of one machine ask for one model folder,
over the folder's size; counted by a proxy before the store. `two_clients`: wall time of `ingest` by two clients with one worker
each over that by one with two, by turns; units that were done twice are an error. `orphans`: processes that are left after
commands with a Ray of their own and clusters have ended by SIGINT, SIGTERM, SIGHUP and SIGKILL.

Writes benchmarks/results/cluster.json.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import made_photos
import process_tree
import record
from cluster_node_loss import node_loss

from realcustom import storage
from realcustom.model_cache import pin
from realcustom.pipeline import owned
from realcustom.pipeline.local_cluster import BUCKET, local_cluster
from realcustom.sprites.corpus import CorpusSettings, write_corpus

sys.path.insert(0, str(record.ROOT))  # `tests`, whose proxy and store are used

RESULTS = record.RESULTS / "cluster.json"
PATIENCE = 600
FIRST_UNIT = re.compile(r"\b\d+/\d+ units")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "realcustom", *arguments]


def upload_corpus(folder: Path, pictures: int) -> str:
    write_corpus(folder, CorpusSettings(pictures=pictures, per_shard=8))
    for path in (folder / "shards").iterdir():
        storage.write_bytes(f"s3://{BUCKET}/raw/{path.name}", path.read_bytes())
    return f"s3://{BUCKET}/raw"


def submit(rounds: int) -> list[float]:
    """Seconds to the first progress line of a submitted `ingest`, with a new output each time."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder, local_cluster(2, 2, s3=True) as cluster:
        os.environ.update(cluster.environment())
        source = upload_corpus(Path(folder), 64)
        for number in range(rounds + 1):
            begun = time.monotonic()
            arguments = ("preprocess", "ingest", "--input", source, "--output", f"s3://{BUCKET}/out-{number}")
            process = subprocess.Popen(command("submit", "--", *arguments), stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            first = next(time.monotonic() - begun for line in process.stdout if FIRST_UNIT.search(line))
            if number:  # the first one sends the package
                seconds.append(first)
            process.communicate(timeout=PATIENCE)
            assert process.returncode == 0
    return seconds


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
                for stage in ("ingest", "score", "select"):
                    source = f"{root}/in-{size}" if stage == "ingest" else output
                    verb = ("preprocess", stage, "--input", source, "--output", output, *WITHOUT_MODELS)
                    subprocess.run(
                        command(*start, *verb), env=environment, check=True, stdout=subprocess.DEVNULL, cwd=record.ROOT
                    )
            print(f"{side}, {size} pictures: {meter.cpu:.1f} s CPU", file=sys.stderr, flush=True)
            return meter.cpu

        sides, ratios = ("jobs", "local"), []
        started = {side: cpu(side, 8, 0) for side in sides}
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


def fetch(rounds: int) -> list[float]:
    """Bytes sent over the folder's size, each time into an empty cache."""
    from tests.support.faulty_proxy import disturbed
    from tests.support.object_store import ObjectStore

    store, ratios = ObjectStore(), []
    variables = {"AWS_ENDPOINT_URL": store.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    os.environ.update({**variables, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"})
    import boto3

    boto3.client("s3").create_bucket(Bucket=BUCKET)
    uri, size = f"s3://{BUCKET}/model", 0
    for number in range(6):
        data = os.urandom(4_000_000)
        size += len(data)
        storage.write_bytes(f"{uri}/part-{number}/weights.safetensors", data)
    code = "import sys\nfrom realcustom.model_cache import fetch\nfetch(sys.argv[1])"
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache, disturbed((store.host, store.port), 0, 0.0) as proxy:
            environment = {**os.environ, "AWS_ENDPOINT_URL": proxy.url, "REALCUSTOM_CACHE": cache}
            workers = [subprocess.Popen([sys.executable, "-c", code, pin(uri)], env=environment) for _ in range(8)]
            assert [worker.wait(PATIENCE) for worker in workers] == [0] * 8
            ratios.append(sum(proxy.sent.values()) / size)
    store.close()
    return ratios


def two_clients(rounds: int) -> list[float]:
    """Wall time by two clients over that by one, in both orders."""
    with tempfile.TemporaryDirectory() as folder, local_cluster(2, 1, s3=True) as cluster:
        os.environ.update(cluster.environment())
        source = upload_corpus(Path(folder), 960)

        def run(output: str, clients: int) -> float:
            workers = f"preprocess.execution.workers={2 // clients}"
            arguments = ("preprocess", "ingest", "--input", source, "--output", output, "--set", workers)
            begun = time.monotonic()
            running = [subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL) for _ in range(clients)]
            assert [client.wait(PATIENCE) for client in running] == [0] * clients
            return time.monotonic() - begun

        run(f"s3://{BUCKET}/warm", 1)
        ratios = []
        for number in range(rounds):
            order = (1, 2) if number % 2 else (2, 1)
            took = {clients: run(f"s3://{BUCKET}/{number}-{clients}", clients) for clients in order}
            ratios.append(took[2] / took[1])
    return ratios


def orphans(rounds: int) -> list[float]:
    """Processes left 20 seconds after each ending."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
    left = []
    for number in range(rounds):
        cluster = number % 2 == 0
        program = (
            command("cluster", "local", "--nodes", "2", "--cpus", "1") if cluster else [sys.executable, "-c", EMBEDDED]
        )
        process = subprocess.Popen(
            program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        assert process.stdout is not None and "ready\n" in process.stdout
        time.sleep(1.0)
        tree = owned.descendants([process.pid])
        process.send_signal(signals[number // 2 % len(signals)])
        process.wait(PATIENCE)
        process.stdout.close()
        deadline = time.monotonic() + 20
        while owned.alive(tree) and time.monotonic() < deadline:
            time.sleep(0.2)
        left.append(float(len(owned.alive(tree))))
    return left


PICTURES = 4000
WITHOUT_MODELS = [
    part
    for setting in ("score.clip=null", "score.heads=null", "ingest.corpus=photographs")
    for part in ("--set", f"preprocess.{setting}")
]
EMBEDDED = """
import time
from realcustom.pipeline.cluster import connected
with connected():
    print("ready", flush=True)
    time.sleep(600)
"""
MEASURES: dict[str, tuple[Callable[[int], list[float]], int, str, str, Callable[[Sequence[float]], float]]] = {
    "submit": (submit, 5, "cluster_submit_seconds", "s", statistics.median),
    "fetch": (fetch, 3, "cluster_model_fetch_ratio", "ratio", max),
    "two_clients": (two_clients, 4, "cluster_two_clients_ratio", "ratio", statistics.median),
    "stage_vs_local": (stage_vs_local, 3, "cluster_stage_vs_local", "ratio", statistics.median),
    "node_loss": (node_loss, 10, "cluster_node_loss_seconds", "s", statistics.median),
    "orphans": (orphans, 24, "cluster_orphans", "count", sum),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=MEASURES, help="one of the measures; may be repeated")
    parser.add_argument("--rounds", type=int, help="of each measure; fewer than the default: nothing is recorded")
    arguments = parser.parse_args()
    for name in arguments.only or MEASURES:
        measure, enough, metric, unit, middle = MEASURES[name]
        rounds = arguments.rounds or enough
        values = measure(rounds)
        print(metric, [round(value, 3) for value in values], flush=True)
        if rounds < enough:
            continue
        found = record.record(
            metric,
            middle(values),
            unit,
            n=rounds,
            spread=(min(values), max(values)),
            command=f"python benchmarks/cluster.py --only {name}",
            commit=record.head(),
        )
        record.write(RESULTS, [found])


if __name__ == "__main__":
    main()
