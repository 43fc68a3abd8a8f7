"""A node is lost: how long until training has a step that was not done before, and until a stage has a further unit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import record

sys.path.insert(0, str(record.ROOT))  # the tests are not installed

from realcustom import storage
from realcustom.base_loading import load_base
from realcustom.pipeline import owned
from realcustom.pipeline.local_cluster import BUCKET, Node, local_cluster

PATIENCE = 240.0  # seconds for a start, or for a run to go on
WORKER = "TrainWorker"  # in the title of Ray Train's worker processes
CHECKPOINT_EVERY = 10


def node_loss(kills: int) -> list[float]:
    """Seconds from each kill to the first new step.

    The head does no work. One worker trains on one of two further nodes; that one is killed, all its processes at once, and
    another one is started in its place when there was a new step. Steps since the last checkpoint are done again first.
    """
    with tempfile.TemporaryDirectory() as name, local_cluster(3, 1, head_cpus=0) as cluster:
        folder = Path(name)
        command = [sys.executable, "-m", "realcustom", "train", *_arguments(folder)]
        environment = {**os.environ, **cluster.environment()}
        seconds = []
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

        def wait_for_step(after: int) -> None:
            deadline = time.monotonic() + PATIENCE
            while _last_step(folder) <= after:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"training does not go on: {(folder / 'log').read_text()[-2000:]}")
                time.sleep(0.05)

        done, nodes = 0, cluster.nodes[1:]
        try:
            for _ in range(kills):
                wait_for_step(done + CHECKPOINT_EVERY)
                lost = _node_at_work(nodes)
                done, begun = _last_step(folder), time.monotonic()
                lost.kill()
                wait_for_step(done)
                seconds.append(time.monotonic() - begun)
                nodes.remove(lost)
                nodes.append(cluster.add_node(1))
                print(f"lost after step {done}: {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
        finally:
            process.kill()  # nothing of the run is kept
            process.wait()
    return seconds


def stage_node_loss(rounds: int) -> list[float]:
    """The longest time without a finished unit from the loss of a node in the middle of `ingest` to the stage's end.

    The head does no work; each of two further nodes has a worker. At most the lost node's units in flight are done again, or it
    is an error: each manifest is written once.
    """
    import boto3

    from tests.support.corpora import write_shards

    pauses = []
    with tempfile.TemporaryDirectory() as name, local_cluster(3, 1, s3=True, head_cpus=0) as cluster:
        environment = {**os.environ, **cluster.environment()}
        os.environ.update(cluster.store)
        boto3.client("s3").put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        for path in write_shards(Path(name), 120, 40, size=(384, 320)).iterdir():
            storage.write_bytes(f"s3://{BUCKET}/raw/{path.name}", path.read_bytes())
        for number in range(rounds):
            output = f"out-{number}"
            verb = ("preprocess", "ingest", "--input", f"s3://{BUCKET}/raw", "--output", f"s3://{BUCKET}/{output}")
            command = [sys.executable, "-m", "realcustom", "submit", "--", *verb]  # so that its driver is on the head
            process = subprocess.Popen(command, env=environment, cwd=record.ROOT, stdout=subprocess.DEVNULL)
            while len(_manifests(output)) < 20:
                assert process.poll() is None, "the stage ended too soon"
                time.sleep(0.1)
            cluster.nodes.pop().kill()
            done, last, longest = len(_manifests(output)), time.monotonic(), 0.0
            while process.poll() is None:
                if (now := len(_manifests(output))) > done:
                    longest, done, last = max(longest, time.monotonic() - last), now, time.monotonic()
                time.sleep(0.1)
            written = _manifests(output)
            assert process.returncode == 0 and len(written) == len(set(written)) == 120, (
                "a finished unit was done again"
            )
            pauses.append(longest)
            print(f"longest pause: {longest:.1f} s", file=sys.stderr, flush=True)
            cluster.add_node(1)
    return pauses


def _manifests(output: str) -> list[str]:
    """Every writing of a manifest."""
    import boto3

    pages = boto3.client("s3").get_paginator("list_object_versions").paginate(Bucket=BUCKET, Prefix=f"{output}/ingest@")
    return [item["Key"] for page in pages for item in page.get("Versions", []) if "/manifests/" in item["Key"]]


def _arguments(folder: Path) -> list[str]:
    """Of `train`: a tiny base and 23 records, many steps."""
    from tests.support.tiny import tiny_base, tiny_image_encoder
    from tests.support.training_corpus import write_pictures
    from tests.support.training_runs import SETTINGS, write_settings

    base, encoder = str(folder / "base"), str(folder / "image_encoder")
    tiny_base(base)
    tiny_image_encoder(encoder)
    write_pictures(folder / "records", 23, side=load_base(base).resolution)
    settings = replace(SETTINGS, steps=10**6, batch_size=2, log_every=1, val_every=10**6, max_failures=-1, loggers=())
    config = folder / "settings.yaml"
    write_settings(config, base, encoder, replace(settings, checkpoint_every=CHECKPOINT_EVERY))
    return ["--input", str(folder / "records"), "--output", str(folder / "run"), "--config", str(config)]


def _last_step(folder: Path) -> int:
    """Of the metrics; 0 before the first."""
    path = folder / "run" / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().split(b"\n")[1:-1]  # whole ones
    return max((int(json.loads(line)["step"]) for line in lines), default=0)


def _node_at_work(nodes: Sequence[Node]) -> Node:
    for node in nodes:
        for process in owned.descendants([node.process.pid]):
            try:
                if any(WORKER in part for part in psutil.Process(process.pid).cmdline()):
                    return node
            except psutil.NoSuchProcess:
                continue
    raise RuntimeError("no node has a worker of the training")
