"""What the size of the cluster means for a job."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from realcustom.machine import available_cores
from realcustom.preprocessing.catalogue import INGEST, SCORE
from realcustom.preprocessing.engine import cluster
from realcustom.preprocessing.engine.cluster import fit_to_cluster, lacking, model_workers, task_limit, task_workers
from realcustom.preprocessing.engine.ray_data import _elsewhere, _node
from realcustom.preprocessing.engine.unit import InputFile, Unit, UnitKind
from realcustom.preprocessing.engine.worker import StageJob
from realcustom.preprocessing.settings import (
    ComputeSettings,
    Device,
    DownloadSettings,
    ExecutionSettings,
    IngestSettings,
    PreprocessSettings,
)

TABLE = InputFile(name="t.csv", uri="/t.csv", size=1)
UNITS = [Unit(name=str(n), identity="", kind=UnitKind.URLS, files=(TABLE,), first=n, count=1) for n in range(20)]


def job(per_host: int, workers: int | None) -> StageJob:
    ingest = IngestSettings(download=DownloadSettings(per_host=per_host))
    settings = PreprocessSettings(ingest=ingest, execution=ExecutionSettings(workers=workers))
    return INGEST.job(settings, "/out")


@pytest.mark.parametrize(
    ("per_host", "workers", "units", "share"),
    [(16, None, 20, 3), (16, 4, 20, 4), (16, 100, 20, 2), (16, None, 3, 5), (4, None, 20, 1), (4, 4, 20, 1)],
)
def test_workers_share_what_a_host_is_asked(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch, per_host: int, workers: int | None, units: int, share: int
) -> None:
    monkeypatch.setattr(cluster, "available_cores", lambda: 5)
    whole = job(per_host, workers)  # on 8 CPUs
    fitted, notes = fit_to_cluster(whole, UNITS[:units])
    assert fitted.settings.ingest.download.per_host == share
    assert bool(notes) is (per_host == 4 and workers is None)
    assert not notes or "5 at once instead of ingest.download.per_host=4; execution.workers=4 keeps to it" in notes[0]
    assert fitted.units_at_once == whole.settings.ingest.download.units
    assert replace(fitted, settings=whole.settings, units_at_once=1) == whole
    pictures = [replace(unit, kind=UnitKind.PICTURES) for unit in UNITS]
    assert fit_to_cluster(whole, pictures) == (whole, [])


def test_tasks_on_this_machine_alone_are_as_many_as_its_cores(ray_cluster: str) -> None:
    free, bound = job(4, None), job(4, 3)
    assert task_limit(free) == available_cores() and task_limit(bound) == 3
    assert task_workers(free, UNITS) == min(available_cores(), 8) and task_workers(bound, UNITS[:2]) == 2


def test_a_cluster_of_several_machines_bounds_its_tasks_itself(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert task_limit(job(4, None)) is None
    assert task_workers(job(4, None), UNITS) == 8  # the CPUs that it has now


def test_what_another_node_says_is_said_with_its_name(ray_cluster: str) -> None:
    assert _elsewhere(_node()) == "" == _elsewhere("")
    assert _elsewhere("0123abcd worker-3") == " (said by node worker-3)"


def test_a_worker_that_no_node_can_hold_is_said(ray_cluster: str) -> None:
    models = SCORE.job(PreprocessSettings(), "/out", models={"clip": "x"})
    assert lacking(models) is None and lacking(replace(models, models={})) is None
    for compute in (ComputeSettings(device=Device.CUDA), ComputeSettings(threads=64)):
        said = lacking(replace(models, settings=PreprocessSettings(compute=compute)))
        assert said is not None and "score: no node of the cluster has" in said and "waiting for one" in said


@pytest.mark.parametrize(
    ("device", "workers", "units", "gpus", "cpus", "actors"),
    [(Device.CUDA, None, 20, 8, 64, 8), (Device.CUDA, None, 3, 8, 64, 3), (Device.CUDA, None, 20, 0, 4, 1)]
    + [(Device.CUDA, 2, 20, 8, 64, 2), (Device.CPU, None, 20, 8, 64, 1), (Device.CPU, 5, 20, 0, 64, 5)]
    + [(Device.CUDA, None, 20, 8, 16, 7), (Device.CUDA, None, 20, 8, 17, 8), (Device.CUDA, None, 20, 1, 1, 1)],
)
def test_models_run_on_every_gpu_that_has_cpus_unless_workers_are_given(
    device: Device, workers: int | None, units: int, gpus: int, cpus: int, actors: int, caplog: pytest.LogCaptureFixture
) -> None:
    compute = ComputeSettings(device=device, threads=2)
    settings = PreprocessSettings(compute=compute, execution=ExecutionSettings(workers=workers))
    assert model_workers(SCORE.job(settings, "/out"), units, gpus, cpus) == actors
    said = "score: of 8 GPUs 7 are used: each worker has 2 CPUs (compute.threads)"
    assert any(said in record.message for record in caplog.records) is (actors == 7)
