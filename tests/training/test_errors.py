"""A bug keeps its trace and its kind, a mistake becomes one line: in this process, in a cluster's worker, on the command line."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from realcustom.config import Conflict, SettingError
from realcustom.errors import MissingFile, UsageError
from realcustom.leases import only_writer
from realcustom.pipeline.cli.main import run
from realcustom.store import StorageRefused, Store
from realcustom.training import distributed
from realcustom.training.batches import BatchMaker
from realcustom.training.data import split
from realcustom.training.failures import Failure, Failures, TrainingDiverged, WorkerFailed
from realcustom.training.features import BadRecord
from realcustom.training.indexing import open_index
from realcustom.training.run import make_job
from realcustom.training.settings import TrainSettings
from realcustom.training.worker import Worker
from realcustom.training.world import World
from tests.support.planted import BUGS, PlantedWorker, arrow, broadcasting
from tests.support.training_runs import METHOD, SETTINGS, fit

ENDLESS = replace(SETTINGS, num_workers=2, max_failures=-1)  # what comes again must not be tried again


def command(world: SimpleNamespace, output: Path, *options: str) -> list[str]:
    """A command line that trains in this process."""
    models = ("--base", world.base, "--image-encoder", world.image_encoder)
    sets = [part for name in ("steps=5", "num_workers=1", "batch_size=5") for part in ("--set", f"train.{name}")]
    return ["train", "--input", world.caches, "--output", str(output), "--local", *models, *sets, *options]


@pytest.fixture
def broken_records(world: SimpleNamespace, tmp_path: Path) -> str:
    """Records of which one that is trained on, not the first of them, has a cache that cannot be read."""
    index = open_index(world.caches)
    held_out, _ = split(index, SETTINGS.validation_fraction, SETTINGS.validation_records)
    training = np.setdiff1d(np.arange(len(index)), held_out)
    number = 0
    (tmp_path / "records").mkdir()
    for path in sorted(Path(world.caches).iterdir()):
        table, rows = pq.read_table(path), pq.read_table(path).to_pylist()
        for row in rows:
            if number == training[4]:
                row["latents"]["dtype"] = "float8"
            number += 1
        pq.write_table(type(table).from_pylist(rows, schema=table.schema), tmp_path / "records" / path.name)
    return str(tmp_path / "records")


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_this_process_is_what_it_is(
    bug: Callable[[], object], world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchMaker, "training", lambda *_: bug())
    with pytest.raises(BUGS[bug]) as caught:
        run(command(world, tmp_path))  # the process would end with 1 and the trace
    assert not isinstance(caught.value, UsageError)
    assert bug.__name__ in [entry.name for entry in caught.traceback]


def test_mistakes_are_one_line(
    world: SimpleNamespace, broken_records: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "columns").mkdir()
    table = pq.read_table(next(Path(world.caches).glob("*.parquet")))
    pq.write_table(table.drop_columns(["caption"]), tmp_path / "columns" / "a.parquet")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "settings.yaml").write_text("train: {lr: 1.0}\n")
    for options, message in (
        (["--input", str(tmp_path / "absent")], "no training records at"),
        (["--input", str(tmp_path / "columns")], "the column 'caption' is missing"),
        (["--input", broken_records], "dtype 'float8' is none of"),
        (["--set", "train.stepps=3"], "did you mean 'train.steps'?"),
        (["--set", "train.retries.attempts=0"], "attempts must be at least 1"),
        (["--set", "train.lr=1e30", "--set", "train.max_skipped_steps=1"], "try a smaller lr"),
        (["--output", str(tmp_path / "other")], "belongs to a run of another configuration"),
        (["--output", str(tmp_path / "file" / "run")], "is a file, not a folder"),
        (["--initial-adapter", str(tmp_path / "file")], "is not an adapter checkpoint"),
    ):
        assert run(command(world, tmp_path / message, *options)) == 2, message
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and message in lines[0]


def test_a_damaged_file_of_records_is_named(world: SimpleNamespace, tmp_path: Path) -> None:
    for path in Path(world.caches).iterdir():
        data = bytearray(path.read_bytes())
        data[8 : len(data) // 2] = bytes(len(data) // 2 - 8)  # the footer is whole
        (tmp_path / path.name).write_bytes(data)
    with pytest.raises(UsageError, match=r"part-000\.parquet is not a readable Parquet file"):
        fit(world, tmp_path / "run", records=str(tmp_path))


def test_a_worker_that_is_replaced_finds_the_records_of_its_run(world: SimpleNamespace, tmp_path: Path) -> None:
    """It opens the index anew: with another one it would train in another order."""
    records = shutil.copytree(world.caches, tmp_path / "records")
    job = make_job(str(records), str(tmp_path / "run"), world.base, world.image_encoder, METHOD, SETTINGS)
    Worker(job, World())
    (records / "part-002.parquet").unlink()
    with pytest.raises(UsageError, match=f"the records at {records} are not those that this run began with"):
        Worker(job, World())


def test_no_permission_is_a_mistake(world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realcustom.store.os.access", lambda *_: False)  # a test may run as root
    with pytest.raises(StorageRefused, match=f"cannot write below {tmp_path}/run: no permission in {tmp_path}"):
        fit(world, tmp_path / "run")


def test_a_second_run_on_one_output_is_told_who_writes_it(world: SimpleNamespace, tmp_path: Path) -> None:
    output = tmp_path / "run"
    said = rf"{output} is being written by .*\(process {os.getpid()}\)"
    with only_writer(str(output / "leases"), str(output), Store()), pytest.raises(UsageError, match=said):
        fit(world, output)
    assert not output.exists()


def test_a_failure_keeps_its_kind_on_its_way() -> None:
    for mistake in (
        *(UsageError("what to do"), MissingFile("no file"), StorageRefused("cannot read")),
        *(SettingError("unknown setting"), Conflict("a and b", "train"), TrainingDiverged("try a smaller lr")),
    ):
        failure = pickle.loads(pickle.dumps(Failure.of(mistake)))
        error = failure.to_error()
        assert failure.final and type(error) is type(mistake) and str(error) == str(mistake)
        there = pickle.loads(pickle.dumps(Failure.of(mistake, "gpu-7"))).to_error()
        assert type(there) is type(mistake) and str(there) == f"{mistake} (said by node gpu-7)"
    assert str(Failure.of(KeyError("x"), "gpu-7").to_error()).endswith("on node gpu-7")
    for bug, kind in BUGS.items():
        with pytest.raises(kind) as caught:
            bug()
        failure = pickle.loads(pickle.dumps(Failure.of(caught.value)))
        error = failure.to_error()
        assert failure.final and type(error) is WorkerFailed and bug.__name__ in str(error)
    for passing in (RuntimeError("Connection closed by peer"), OSError("a disk"), ConnectionResetError()):
        assert not Failure.of(passing).final and isinstance(Failure.of(passing).to_error(), WorkerFailed)


def test_workers_are_where_the_settings_say() -> None:
    plain, full = (
        distributed.scaling(settings)
        for settings in (
            TrainSettings(),
            TrainSettings(min_workers=1, use_gpu=True, worker_resources=("memory=3e10",), worker_labels=("zone=a",)),
        )
    )
    assert plain.num_workers == 2 and plain.resources_per_worker == {"CPU": 1} and plain.label_selector is None
    assert full.num_workers == (1, 2) and full.resources_per_worker == {"GPU": 1, "memory": 3e10}
    assert full.label_selector == {"zone": "a"}
    for wrong in ({"worker_resources": ("memory=much",)}, {"worker_labels": ("zone",)}, {"min_workers": 3}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            TrainSettings(**wrong)


def test_lost_workers_are_counted_against_progress() -> None:
    failures = Failures()
    assert [failures.begin(step, 2, 4) for step in (0, 0, 0, 7, 7, 14, 14, 14)] == [0, 1, 3, 0, 1, 0, 1, 3]
    failures.report(Failure.of(OSError("the last")))
    assert failures.begin(14, -1, 4) == 7 and failures.begin(14, 2, 4) is None
    kept = failures.kept()
    assert kept is not None and kept.final and "the last" in kept.trace
    assert "more than max_failures=2 times in a row, without a new checkpoint after step 14" in str(kept.to_error())


def test_more_workers_were_not_lost_and_fewer_were() -> None:
    """An elastic run that loses a worker again and again, each time it finds room for it, ends too."""
    failures = Failures()
    assert [failures.begin(0, 2, workers) for workers in (1, 2, 3)] == [0, 0, 0]
    assert [failures.begin(0, 2, workers) for workers in (2, 3, 2, 3, 2)] == [1, 1, 3, 3, None]


def test_the_first_final_failure_is_kept() -> None:
    failures = Failures()
    assert failures.kept() is None
    for error in (OSError("first"), OSError("second"), KeyError("third"), UsageError("fourth"), OSError("fifth")):
        failures.report(Failure.of(error))
    kept = failures.kept()
    assert kept is not None and "third" in kept.trace


@pytest.mark.slow
@pytest.mark.parametrize(("bug", "in_set_up"), [(broadcasting, False), (arrow, True)], ids=["run", "set-up"])
def test_a_bug_in_a_ray_worker_keeps_its_trace(
    bug: Callable[[], object],
    in_set_up: bool,
    world: SimpleNamespace,
    tmp_path: Path,
    ray_cluster: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "_train_worker", PlantedWorker(bug=bug, in_set_up=in_set_up))
    with pytest.raises(WorkerFailed) as caught:
        fit(world, tmp_path / "run", ENDLESS, local=False)
    assert not isinstance(caught.value, UsageError)
    message = str(caught.value)
    assert message.startswith("Traceback") and f"in {bug.__name__}" in message and BUGS[bug].__name__ in message


@pytest.mark.slow
def test_a_mistake_that_one_ray_worker_meets_is_one_line(
    world: SimpleNamespace,
    broken_records: str,
    tmp_path: Path,
    ray_cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What workers log is seen, once; the mistake's trace is not seen."""
    monkeypatch.setattr("realcustom.log.level", lambda: "info")
    with pytest.raises(UsageError, match=r"record [0-9a-f]{32} in \S+: latents: dtype 'float8' is") as caught:
        fit(world, tmp_path / "run", ENDLESS, records=broken_records, local=False)
    assert type(caught.value) is BadRecord and "\n" not in str(caught.value)
    shown = "".join(capfd.readouterr())
    assert shown.count("step 0/12  validation loss") == 1
    assert "decode_tensor" not in shown
