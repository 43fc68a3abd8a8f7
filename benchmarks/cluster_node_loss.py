"""Training on three nodes of which one is lost again and again: how long until there is a step that was not done before."""

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

from realcustom.base_loading import load_base
from realcustom.pipeline import owned
from realcustom.pipeline.local_cluster import Node, local_cluster

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
