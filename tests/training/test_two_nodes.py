"""Work on a cluster of two nodes: a stage, and a training that loses a worker. On more, as jobs: test_jobs_on_three_nodes.py."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from realcustom.pipeline import owned
from realcustom.pipeline.cluster import NO_DASHBOARD
from realcustom.pipeline.local_cluster import LocalCluster
from realcustom.preprocessing.catalogue import INGEST
from realcustom.preprocessing.engine.worker import StageJob, Work
from realcustom.preprocessing.run import InProcess, OnRay, run_stage
from realcustom.preprocessing.settings import PreprocessSettings
from realcustom.store import Store
from realcustom.training.checkpoints import list_checkpoints
from realcustom.training.metrics_file import read_rows
from realcustom.training.run import TrainResult
from tests.support.corpora import snapshot, write_shards
from tests.support.training_kills import train_workers
from tests.support.training_runs import SETTINGS, fit, tensors


@pytest.fixture(scope="module")
def other_node(ray_cluster: str) -> Iterator[str]:
    """The id of a second node, of one CPU."""
    with tempfile.TemporaryDirectory() as folder:  # short: it holds Unix sockets
        cluster = LocalCluster(
            folder=Path(folder),
            object_store_mb=100,
            address=ray_cluster,
            api=NO_DASHBOARD,
            store={},
            started=[],
            ports=[],
            head_cpus=0,
            keeps_state=False,
        )
        node = cluster.add_node(1)
        try:
            yield next(each["NodeID"] for each in ray.nodes() if each["Alive"] and each["Resources"].get("CPU") == 1)
        finally:
            node.kill()


@contextlib.contextmanager
def taken(cpus: int) -> Iterator[None]:
    """A context in which so many CPUs of the first node are in use."""
    group = placement_group([{"CPU": cpus}])
    ray.get(group.ready())
    try:
        yield
    finally:
        remove_placement_group(group)


@pytest.mark.slow
def test_a_stage_on_the_other_node_writes_what_this_process_does(other_node: str, tmp_path: Path) -> None:
    source = str(write_shards(tmp_path / "src", 3, 2))
    (tmp_path / "nodes").mkdir()

    def load(job: StageJob) -> Work:
        (tmp_path / "nodes" / ray.get_runtime_context().get_node_id()).touch()
        return INGEST.load(job)

    with taken(8):
        there = run_stage(
            replace(INGEST, load=load), source, str(tmp_path / "there"), PreprocessSettings(), executor=OnRay()
        )
    here = run_stage(INGEST, source, str(tmp_path / "here"), PreprocessSettings(), executor=InProcess())
    assert [path.name for path in (tmp_path / "nodes").iterdir()] == [other_node]
    assert snapshot(there.directory) == snapshot(here.directory)


def kill_a_worker_after_a_checkpoint(output: Path, killed: list[int]) -> None:
    deadline = time.monotonic() + 300
    workers: set[owned.Process] = set()
    while time.monotonic() < deadline:
        if len(workers) < 2:
            workers = train_workers([os.getpid()])
        elif list_checkpoints(str(output / "checkpoints"), Store()):
            os.kill(min(worker.pid for worker in workers), signal.SIGKILL)
            killed.append(len(read_rows(str(output), Store())))
            return
        time.sleep(0.1)


@pytest.mark.slow
def test_a_worker_on_each_node_survives_a_kill_and_matches_one_process(
    world: SimpleNamespace, undisturbed: TrainResult, tmp_path: Path, other_node: str
) -> None:
    """A worker is killed after the first checkpoint; the run goes on from there and ends where one worker's does."""
    settings = replace(SETTINGS, num_workers=2)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after_a_checkpoint, args=(tmp_path, killed))
    killer.start()
    with taken(7):
        result = fit(world, tmp_path, settings, local=False)
    killer.join()
    assert killed and killed[0] < len(result.curve)  # it was under way
    assert [row["step"] for row in result.curve] == [row["step"] for row in undisturbed.curve]
    for row, other in zip(result.curve, undisturbed.curve, strict=True):
        for name in {"loss", "val_loss", "grad_norm", "lr"} & row.keys():
            assert row[name] == pytest.approx(other[name], rel=1e-3), (row, other)
    assert result.loss_before == pytest.approx(undisturbed.loss_before, rel=1e-6)
    for name, value in tensors(result).items():
        assert torch.allclose(value, tensors(undisturbed)[name], atol=1e-4), name


def test_a_ray_worker_tells_what_is_wrong(world: SimpleNamespace, tmp_path: Path, ray_cluster: str) -> None:
    """An error of the set-up is the caller's error, without retries, and leaves no half-made run."""
    (tmp_path / "records").mkdir()
    table = pq.read_table(next(Path(world.caches).glob("*.parquet")))
    rows = [row | {"latents": None} for row in table.to_pylist()]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), tmp_path / "records" / "a.parquet")
    with pytest.raises(ValueError, match="no cached value and no picture"):
        fit(world, tmp_path / "run", records=str(tmp_path / "records"), local=False)
    assert not (tmp_path / "run" / "settings.yaml").exists()
