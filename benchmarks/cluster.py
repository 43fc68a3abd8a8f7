"""Jobs on a cluster of some nodes and a store, all on this machine.

    python benchmarks/cluster.py                      # about an hour on two quiet cores
    python benchmarks/cluster.py --only fetch --only orphans
    python benchmarks/cluster.py --only submit --rounds 1      # a trial: fewer rounds than the default leave no record

`submit`: from the command `realcustom submit` until its job has taken its first unit, on a warm cluster, the package sent before.
`pack`: the package of a working tree of 10,000 files. `stage_vs_local`: cluster_cost.py. `node_loss`, `stage_node_loss`:
cluster_node_loss.py.
`fetch`: bytes that a store sends while 8 processes of one machine ask for one model folder, over the folder's size; counted
by a proxy before the store.
`two_clients`: wall time of `ingest` by two clients with one worker each over that by one with two, by turns; a unit that was
done twice, as the store's log has it, is an error. Each runs its command from the start: on two cores, which the two workers
fill, what the second client costs to start is in the ratio, so that the stage has to be long beside it (`--units`, a quarter of
a second each); about 15 minutes.
`orphans`: processes that are left after 20 endings of each kind (SIGINT, SIGTERM, SIGHUP, SIGKILL, an exception) of clusters and
of commands with a Ray of their own, by turns; about 20 minutes, and a call that was ended goes on (outputs/cluster-orphans.jsonl).

Writes benchmarks/results/cluster.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import record
from cluster_cost import stage_vs_local
from cluster_node_loss import node_loss, stage_node_loss

from realcustom import storage
from realcustom.model_cache import pin
from realcustom.pipeline.local_cluster import BUCKET, local_cluster
from realcustom.pipeline.packing import content_name, find_package
from realcustom.sprites.corpus import CorpusSettings, write_corpus

sys.path.insert(0, str(record.ROOT))  # `tests`, whose proxy and store are used

RESULTS = record.RESULTS / "cluster.json"
PATIENCE = 600
MARK = "REALCUSTOM_BENCHMARK_ENDING"  # variable that all processes of one ending inherit


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "realcustom", *arguments]


def upload_corpus(folder: Path, pictures: int) -> str:
    write_corpus(folder, CorpusSettings(pictures=pictures, per_shard=8))
    for path in (folder / "shards").iterdir():
        storage.write_bytes(f"s3://{BUCKET}/raw/{path.name}", path.read_bytes())
    return f"s3://{BUCKET}/raw"


def submit(rounds: int) -> list[float]:
    """Seconds until a client of a submitted `ingest` has taken a unit, with a new output each time."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder, local_cluster(2, 2, s3=True) as cluster:
        os.environ.update(cluster.environment())
        source = upload_corpus(Path(folder), 64)
        for number in range(rounds + 1):
            output = f"s3://{BUCKET}/out-{number}"
            begun = time.monotonic()
            verb = ("preprocess", "ingest", "--input", source, "--output", output)
            process = subprocess.Popen(command("submit", "--", *verb), stdout=subprocess.DEVNULL)
            while not any("/claims/" in name or "/manifests/" in name for name in _names(output)):
                assert process.poll() is None and time.monotonic() - begun < PATIENCE
                time.sleep(0.2)
            if number:  # the first one sends the package
                seconds.append(time.monotonic() - begun)
                print(f"{seconds[-1]:.1f} s", file=sys.stderr, flush=True)
            assert process.wait(PATIENCE) == 0
    return seconds


def _names(folder: str) -> list[str]:
    try:
        return [entry.name for entry in storage.list_files(folder)]
    except FileNotFoundError:  # nothing is in it yet
        return []


def pack(rounds: int) -> list[float]:
    """Seconds to make the package of a working tree of 10,000 tracked files of 4 kB."""
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), random.Random(0)
        for number in range(10_000):
            path = folder / f"{number // 100}" / f"{number}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"value_{rng.randrange(10**6)} = {rng.random()}\n" for _ in range(110)))
        for arguments in (("init", "--quiet"), ("add", ".")):
            subprocess.run(["git", *arguments], cwd=folder, check=True)
        seconds = []
        for _ in range(rounds):
            begun = time.monotonic()
            content_name(find_package(folder).zipped({}))
            seconds.append(time.monotonic() - begun)
    return seconds


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


def two_clients(rounds: int, units: int) -> list[float]:
    """Wall time by two clients over that by one, in both orders, of a stage of so many units."""
    from tests.support.corpora import write_shards

    with tempfile.TemporaryDirectory() as name, local_cluster(2, 1, s3=True) as cluster:
        os.environ.update(cluster.environment())
        shards = [path.read_bytes() for path in sorted(write_shards(Path(name), 8, UNIT, size=(384, 320)).iterdir())]
        sizes = {"few": len(shards), "raw": units}
        for folder, size in sizes.items():
            for number in range(size):
                storage.write_bytes(f"s3://{BUCKET}/{folder}/{number:03d}.tar", shards[number % len(shards)])
        log = cluster.folder / "store.log"
        _seconds_of("few", sizes["few"], 1, log)  # workers are started, and have what they import
        ratios = []
        for number in range(rounds):
            took = {clients: _seconds_of("raw", units, clients, log) for clients in ((1, 2) if number % 2 else (2, 1))}
            ratios.append(took[2] / took[1])
    return ratios


def _seconds_of(source: str, units: int, clients: int, log: Path) -> float:
    """Wall time of `ingest` by so many clients, which have two workers together; into a bucket that is removed again."""
    import boto3

    bucket = boto3.resource("s3").create_bucket(Bucket=f"by-{clients}-{uuid.uuid4().hex[:8]}")
    verb = ("preprocess", "ingest", "--input", f"s3://{BUCKET}/{source}", "--output", f"s3://{bucket.name}/out")
    begun = time.monotonic()
    running = [
        subprocess.Popen(command(*verb, "--set", f"preprocess.execution.workers={2 // clients}"))
        for _ in range(clients)
    ]
    assert [client.wait(PATIENCE) for client in running] == [0] * clients
    seconds = time.monotonic() - begun
    written = re.findall(rf'"PUT /{bucket.name}/(\S+/manifests/\S+) HTTP', log.read_text())
    assert len(written) == len(set(written)) == units, "a unit was done twice"
    bucket.objects.delete()  # the store has all of them in memory
    bucket.delete()
    print(f"{clients} clients: {seconds:.1f} s", file=sys.stderr, flush=True)
    return seconds


def orphans(rounds: int) -> list[float]:
    """Processes left 20 seconds after each of so many endings of each kind, of clusters and of commands by turns.

    Endings are kept in outputs/cluster-orphans.jsonl: a further call at the same commit goes on where this one was ended.
    """
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job has it ignored, and hands that on
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    kept = record.ROOT / "outputs" / "cluster-orphans.jsonl"
    kept.parent.mkdir(exist_ok=True)
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = [line for line in lines if line["commit"] == record.head()]
    for number in range(rounds):
        for kind in ENDINGS:
            if sum(line["kind"] == kind for line in done) > number:
                continue
            ended = {"commit": record.head(), "kind": kind, "left": _left_after(kind, of_cluster=number % 2 == 0)}
            done.append(ended)
            with kept.open("a") as file:
                file.write(json.dumps(ended) + "\n")
            print(f"{len(done)} of {rounds * len(ENDINGS)}: {kind}, {ended['left']} left", file=sys.stderr, flush=True)
    return [float(line["left"]) for line in done]


def _left_after(kind: str, of_cluster: bool) -> int:
    if of_cluster and kind != "exception":
        program = command("cluster", "local", "--nodes", "1", "--cpus", "1")
    else:
        program = [sys.executable, "-c", CLUSTER if of_cluster else EMBEDDED]
    process = subprocess.Popen(
        program,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # SPT_NOENV: a process of Ray's that gives itself a name keeps its environment readable
        env={**os.environ, MARK: (mark := uuid.uuid4().hex), "SPT_NOENV": "1"},
    )
    assert process.stdin is not None and process.stdout is not None
    assert "ready\n" in process.stdout
    assert len(_marked(mark)) > 3, "Ray runs"
    if kind == "exception":
        process.stdin.write("\n")
        process.stdin.flush()
    else:
        process.send_signal(signal.Signals[kind])
    process.wait(PATIENCE)
    process.stdin.close()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while _marked(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    return len(_marked(mark))


def _marked(mark: str) -> list[int]:
    """Processes that run and have inherited the mark, whenever they were started and whoever their parent is."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended just now
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


# of a stage that two clients share, and pictures of each: over two minutes, beside a start of seconds
UNITS, UNIT = 640, 250
ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL", "exception")
ENDED = """
from realcustom.pipeline.{module} import {name}
with {name}({arguments}):
    print("ready", flush=True)
    input()
    raise RuntimeError
"""
CLUSTER = ENDED.format(module="local_cluster", name="local_cluster", arguments="1, 1")
EMBEDDED = ENDED.format(module="cluster", name="connected", arguments="")
MEASURES: dict[str, tuple[Callable[..., list[float]], int, str, str, Callable[[Sequence[float]], float]]] = {
    "submit": (submit, 5, "cluster_submit_seconds", "s", statistics.median),
    "pack": (pack, 5, "cluster_pack_seconds", "s", statistics.median),
    "fetch": (fetch, 3, "cluster_model_fetch_ratio", "ratio", max),
    "two_clients": (two_clients, 3, "cluster_two_clients_ratio", "ratio", statistics.median),
    "stage_vs_local": (stage_vs_local, 3, "cluster_stage_vs_local", "ratio", statistics.median),
    "node_loss": (node_loss, 10, "cluster_node_loss_seconds", "s", statistics.median),
    "stage_node_loss": (stage_node_loss, 5, "cluster_stage_node_loss_seconds", "s", max),
    "orphans": (orphans, 20, "cluster_orphans", "count", sum),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=MEASURES, help="one of the measures; may be repeated")
    parser.add_argument("--rounds", type=int, help="of each measure; fewer than the default: nothing is recorded")
    parser.add_argument("--units", type=int, default=UNITS, help="of the stage of two_clients")
    arguments = parser.parse_args()
    for name in arguments.only or MEASURES:
        measure, enough, metric, unit, middle = MEASURES[name]
        rounds = arguments.rounds or enough
        options = {"units": arguments.units} if name == "two_clients" else {}
        values = measure(rounds, **options)
        print(metric, [round(value, 3) for value in values], flush=True)
        if rounds < enough:
            continue
        found = record.record(
            metric,
            middle(values),
            unit,
            n=len(values),
            spread=(min(values), max(values)),
            command=f"python benchmarks/cluster.py --only {name}{''.join(f' --{key} {options[key]}' for key in options)}",
            commit=record.head(),
        )
        record.write(RESULTS, [found])


if __name__ == "__main__":
    main()
