"""Validations and sheets of checkpoints beside the training: the rows of a run that validates within it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from realcustom.store import Store
from realcustom.training import async_validation, validations
from realcustom.training.checkpoints import list_checkpoints, step_of
from realcustom.training.failures import Failure, TrainingDiverged
from realcustom.training.job import TrainingJob
from realcustom.training.metrics_file import Row, read_rows
from realcustom.training.run import make_job
from realcustom.training.settings import TrainSettings
from realcustom.training.validations import read_results, waiting, write_result
from realcustom.training.worker import Worker
from realcustom.training.world import World
from tests.support.training_runs import METHOD, SETTINGS, fit

APART = replace(SETTINGS, async_validation=True, val_every=3, sample_every=6, sample_records=1, sample_steps=1)
STORE = Store()


def job_of(world: SimpleNamespace, output: Path, settings: TrainSettings = APART) -> TrainingJob:
    return make_job(world.caches, str(output), world.base, world.image_encoder, METHOD, settings)


def steps(output: Path, folder: str = "checkpoints") -> list[int]:
    return [step_of(uri) for uri in list_checkpoints(str(output / folder), STORE)]


def losses(rows: Iterable[Row]) -> list[tuple[object, ...]]:
    return [tuple(row.get(name) for name in ("step", "loss", "val_loss", "val_losses")) for row in rows]


def test_rows_arrive_under_the_step_of_their_checkpoint(world: SimpleNamespace, tmp_path: Path) -> None:
    """The worker goes on at once; what waits is kept, then pruned as ever; the best one is kept."""
    within = fit(world, tmp_path / "within", replace(APART, async_validation=False))
    output = tmp_path / "apart"
    job = job_of(world, output)
    Worker(job, World()).run()
    assert [row["step"] for row in read_rows(str(output), STORE) if "val_loss" in row] == [0, 12]
    uris = waiting(job, STORE, ())
    assert [step_of(uri) for uri in uris] == [3, 6, 9] and steps(output) == [3, 6, 9, 10, 12]
    for uri in reversed(uris):
        Worker(job, World(), checkpoint=uri).validate_apart()
    assert waiting(job, STORE, ()) == []
    assert losses(read_rows(str(output), STORE)) == losses(within.curve)


def test_what_came_of_them_goes_into_the_next_checkpoints(world: SimpleNamespace, tmp_path: Path) -> None:
    """Also when the run goes on later: nothing that has a result waits, and the best ones are known."""
    settings = replace(APART, sample_records=0, checkpoint_every=0, keep_checkpoints=1)
    job = job_of(world, tmp_path, replace(settings, steps=7))
    Worker(job, World()).run()
    assert steps(tmp_path) == [3, 6, 7]
    write_result(str(tmp_path), {"step": 3, "val_loss": 0.0, "val_losses": [0.0, 0.0]}, STORE)
    write_result(str(tmp_path), {"step": 6, "error": "no room"}, STORE)
    job = job_of(world, tmp_path, replace(settings, steps=12))
    assert waiting(job, STORE, ()) == []
    Worker(job, World()).run()
    assert steps(tmp_path) == steps(tmp_path, "adapters") == [3, 9, 12]  # the best, one that waits, the last
    assert [row["step"] for row in read_results(str(tmp_path), STORE, known=(3,))] == [6]
    page = (tmp_path / "report.html").read_text()
    assert "<td>validations that failed</td><td>step 6: no room</td>" in page
    assert "<td>starts</td><td>2; at least 0 steps were done again</td>" in page
    rows = read_rows(str(tmp_path), STORE)
    assert [row["step"] for row in rows if "val_loss" in row] == [0, 3, 7, 12]


def test_where_no_task_finds_room_few_checkpoints_wait(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The oldest may be in a task; of the later ones the newest are kept."""
    monkeypatch.setattr(validations, "MOST_WAITING", 3)
    job = job_of(world, tmp_path, replace(APART, val_every=1, sample_every=0, checkpoint_every=0, keep_checkpoints=1))
    Worker(replace(job, settings=replace(job.settings, steps=7)), World()).run()
    assert steps(tmp_path) == [1, 5, 6, 7]
    assert [row["step"] for row in read_results(str(tmp_path), STORE) if "error" in row] == [2, 3, 4]
    assert caplog.text.count("more than 3 checkpoints waited for their validation; is there room for a task") == 3


def test_without_ray_it_says_that_it_has_no_effect(
    world: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = fit(world, tmp_path, replace(APART, steps=4, sample_every=0))
    assert "async_validation=true has no effect" in caplog.text
    assert [row["step"] for row in result.curve if "val_loss" in row] == [0, 3, 4]
    assert not (tmp_path / "validations").exists()


def planted_task(log: Path, failing: int, error: Exception) -> Callable[[TrainingJob, str, str], Failure | None]:
    """In the place of a task's work: writes down of which steps there was one, and fails at one of them."""
    validate = async_validation._validate

    def planted(job: TrainingJob, checkpoint: str, log_level: str) -> Failure | None:
        step = step_of(checkpoint)
        with log.open("a") as file:
            file.write(f"{step} ")
        return Failure.of(error) if step == failing else validate(job, checkpoint, log_level)

    return planted


@pytest.mark.slow
def test_tasks_on_ray(
    world: SimpleNamespace,
    tmp_path: Path,
    ray_cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that fails loses nothing but its row; a run that goes on does not validate twice."""
    log, output = tmp_path / "log", tmp_path / "run"
    monkeypatch.setattr(async_validation, "_validate", planted_task(log, 6, RuntimeError("no room")))
    settings = replace(APART, num_workers=2, steps=8)
    fit(world, output, settings, world.pictures, local=False)
    assert log.read_text() == "3 6 "
    assert "the validation of the checkpoint of step 6 failed, training goes on: RuntimeError: no room" in caplog.text
    result = fit(world, output, replace(settings, steps=12), world.pictures, local=False)
    assert log.read_text() == "3 6 9 "
    whole = fit(world, tmp_path / "whole", replace(APART, async_validation=False), world.pictures)
    ours = [row for row in result.curve if (row["step"], "val_loss" in row) != (8, True)]
    for row, other in zip(
        ours, (row for row in whole.curve if (row["step"], "val_loss" in row) != (6, True)), strict=True
    ):
        assert row["step"] == other["step"]
        assert "val_loss" not in row or row["val_loss"] == pytest.approx(other["val_loss"], rel=1e-3)
    assert sorted(path.name for path in (output / "samples").glob("*.png")) == [
        "step-00000008.png",
        "step-00000012.png",
    ]
    assert b"val_loss" in b"".join(path.read_bytes() for path in (output / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_a_run_on_ray(
    world: SimpleNamespace, tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = planted_task(tmp_path / "log", 3, TrainingDiverged("the validation loss after step 3 is not finite"))
    monkeypatch.setattr(async_validation, "_validate", planted)
    settings = replace(APART, num_workers=2, steps=10**6, val_every=3, sample_every=0, checkpoint_every=0)
    with pytest.raises(TrainingDiverged, match="after step 3 is not finite"):
        fit(world, tmp_path / "run", settings, local=False)
    assert not (tmp_path / "run" / "result.json").exists() and steps(tmp_path / "run")
    # the same command says it again; of later steps some checkpoints may have waited for too long
    assert 3 not in [row["step"] for row in read_results(str(tmp_path / "run"), STORE)]
