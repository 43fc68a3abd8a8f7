"""TensorBoard, W&B and MLflow hold the curve of metrics.jsonl, read back from what they wrote."""

from __future__ import annotations

import contextlib
import importlib.util
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from realcustom.errors import UsageError
from realcustom.store import Store
from realcustom.training.metrics_file import Row
from realcustom.training.run import TrainResult, make_job
from realcustom.training.settings import Logger
from realcustom.training.sinks import Service, scalars
from realcustom.training.worker import Worker
from realcustom.training.world import World
from tests.support.training_runs import METHOD, SETTINGS, Killed, fit, fit_killed, kill_at

Points = dict[str, list[tuple[int, Any]]]  # steps and values, or what is near a value
SHORT = replace(SETTINGS, steps=4, log_every=2, val_every=2, checkpoint_every=2)


def curves(result: TrainResult) -> Points:
    """What a sink should hold."""
    found: Points = {}
    for row in result.curve:
        for name, value in scalars(row):
            found.setdefault(name, []).append((row["step"], pytest.approx(value, rel=1e-6)))
    return found


def events(files: list[bytes]) -> Points:
    """The scalars of event files in their format: length, checksum, message, checksum. A purge forgets later steps."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: Points = {}
    for data in files:
        place = 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            if event.session_log.status == SessionLog.START:
                found = {name: [point for point in points if point[0] < event.step] for name, points in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_in_the_run_s_folder_also_after_a_kill(world: SimpleNamespace, tmp_path: Path) -> None:
    fit_killed(3, world, tmp_path, SHORT)
    result = fit(world, tmp_path, SHORT)
    files = [path.read_bytes() for path in sorted((tmp_path / "tensorboard").iterdir())]
    found = events(files)
    assert len(files) == 2
    assert found == curves(result)


def test_tensorboard_on_an_object_store(world: SimpleNamespace, bucket: str) -> None:
    result = fit(world, f"{bucket}/run", SHORT)
    store = Store()
    names = store.list_names(f"{bucket}/run/tensorboard")
    assert events([store.read(f"{bucket}/run/tensorboard/{name}") for name in names]) == curves(result)
    assert len(names) > 1


def test_no_logger_writes_nothing(world: SimpleNamespace, tmp_path: Path) -> None:
    fit(world, tmp_path, replace(SHORT, loggers=()))
    assert not (tmp_path / "tensorboard").exists()


def leveldb_records(data: bytes) -> list[bytes]:
    """The records of a log in LevelDB's format, without W&B's own header: blocks of 32 KiB, of which it takes 7 bytes."""
    records, place, whole = [], 0, b""
    while place + 7 <= len(data):
        left = 2**15 - (place + 7) % 2**15
        if left < 7:  # too little for a header: the next block
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            records.append(whole)
            whole = b""
    return records


def test_wandb_offline(world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="an extra, realcustom[wandb]")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = fit(world, tmp_path / "run", replace(SHORT, loggers=(Logger.WANDB,)))
    (file,) = {path.resolve() for path in tmp_path.rglob("*.wandb")}
    found: dict[str, str] = {}
    for message in leveldb_records(file.read_bytes()[7:]):
        record = wandb_internal_pb2.Record.FromString(message)
        found |= {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
    assert float(found["loss"]) == pytest.approx(result.curve[-2]["loss"])
    assert float(found["val_loss"]) == pytest.approx(result.loss_after)


def test_mlflow_in_a_file_store(world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="an extra, realcustom[mlflow]")
    uri = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # else it asks for a database
    monkeypatch.chdir(tmp_path)
    settings = replace(SHORT, loggers=(Logger.MLFLOW,))
    fit_killed(3, world, tmp_path / "run", settings)
    mlflow.end_run()  # the process was not killed
    result = fit(world, tmp_path / "run", settings)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("realcustom").experiment_id])
    history = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "loss")}
    assert history == {row["step"]: pytest.approx(row["loss"]) for row in result.curve if "loss" in row}


class Away:
    """A service's sink that answers so many calls, and then no more."""

    def __init__(self, answers: int) -> None:
        self.answers, self.closed = answers, 0
        self._call()

    def add(self, row: Row) -> None:
        self._call()

    def flush(self) -> Callable[[], None]:
        return self._call

    def close(self) -> None:
        self.closed += 1
        self._call()

    def _call(self) -> None:
        self.answers -= 1
        if self.answers < 0:
            raise ConnectionError("no route to host")


@pytest.mark.parametrize("answers", [0, 1, 3])
def test_a_run_goes_on_without_a_service_that_is_away(
    world: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture, answers: int
) -> None:
    """At its start, at a row, and at what is sent in the background."""
    job = make_job(world.caches, str(tmp_path), world.base, world.image_encoder, METHOD, SHORT)
    Worker(job, World(), sinks=[Service(Logger.MLFLOW, lambda: Away(answers))]).run()
    assert (tmp_path / "result.json").exists()
    assert caplog.text.count("mlflow is left out from here on, the run goes on; metrics.jsonl has all rows: no ro") == 1


@pytest.mark.parametrize("killed_at", [3, 99])
def test_sinks_are_closed_once_also_after_an_error(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    sink = Away(99)
    job = make_job(world.caches, str(tmp_path), world.base, world.image_encoder, METHOD, SHORT)
    kill_at(killed_at, monkeypatch)
    with contextlib.suppress(Killed):
        Worker(job, World(), sinks=[Service(Logger.WANDB, lambda: sink)]).run()
    assert sink.closed == 1


@pytest.mark.parametrize("logger", [Logger.WANDB, Logger.MLFLOW])
def test_a_logger_that_is_not_installed_is_said(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: Logger
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == logger.value else find(name))
    with pytest.raises(UsageError, match=rf"names {logger.value}, not installed: pip install 'PATH_OF_THE_CLONE\["):
        fit(world, tmp_path / "run", replace(SHORT, loggers=(logger,)))
    assert not (tmp_path / "run").exists()
