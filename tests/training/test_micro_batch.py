"""`micro_batch: auto`: forwards are halved until they fit; the losses stay, a resume keeps what was found."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from realcustom.errors import UsageError
from realcustom.store import Store
from realcustom.training.batch import Batch
from realcustom.training.checkpoints import list_checkpoints, load_checkpoint
from realcustom.training.job import TrainingJob
from realcustom.training.loop import Trainer
from realcustom.training.metrics_file import read_rows
from realcustom.training.micro_batch import find_micro_batch
from realcustom.training.run import TrainResult, make_job
from realcustom.training.settings import MicroBatch
from realcustom.training.worker import Worker
from realcustom.training.world import World
from tests.support.loopback import free_port
from tests.support.training_runs import METHOD, SETTINGS, Killed, curve, fit, fit_killed, kill_at

AUTO = replace(SETTINGS, micro_batch=MicroBatch.AUTO)


def of_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def of_the_host() -> None:
    torch.empty(2**62, dtype=torch.uint8)  # torch's own error


def hold_rows(most: int, full: Callable[[], None] = of_a_gpu, patch: pytest.MonkeyPatch | None = None) -> None:
    """Give this process a memory that holds forwards of so many rows."""
    errors = Trainer.errors

    def limited(trainer: Trainer, model: Callable[..., torch.Tensor], batch: Batch, quantity: float) -> torch.Tensor:
        if len(batch.weights) > most:
            full()
        return errors(trainer, model, batch, quantity)

    setattr_ = setattr if patch is None else patch.setattr
    setattr_(Trainer, "errors", limited)


def found(output: Path) -> int:
    """What the latest checkpoint keeps."""
    return load_checkpoint(list_checkpoints(str(output / "checkpoints"), Store())[-1], Store()).counters["micro_batch"]


def assert_same_losses(ours: TrainResult, theirs: TrainResult) -> None:
    assert len(ours.curve) == len(theirs.curve)
    for (step, *losses), (other, *expected) in zip(curve(ours), curve(theirs), strict=True):
        assert step == other
        for loss, value in zip(losses, expected, strict=True):
            assert loss == (None if value is None else pytest.approx(value, abs=1e-5))


def test_the_losses_are_those_of_one_forward(
    world: SimpleNamespace,
    undisturbed: TrainResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hold_rows(2, patch=monkeypatch)
    with caplog.at_level(logging.INFO):
        halved = fit(world, tmp_path, AUTO)
    assert "train.micro_batch=auto: 2 rows in a forward, 3 forwards a step on each worker" in caplog.text
    assert_same_losses(halved, undisturbed)
    assert found(tmp_path) == 2


def test_memory_of_the_host(world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device is a CPU."""
    hold_rows(2, of_the_host, monkeypatch)
    job = make_job(world.caches, str(tmp_path), world.base, world.image_encoder, METHOD, AUTO)
    worker = Worker(job, World())
    find_micro_batch(worker.trainer, worker.batches.training(worker.order.share(0, 0, 1)))
    assert worker.trainer.micro_batch == 2


def test_what_fits_at_once_gives_the_same_bytes(
    world: SimpleNamespace, undisturbed: TrainResult, tmp_path: Path
) -> None:
    """The attempt leaves nothing behind."""
    assert fit(world, tmp_path, AUTO).sha256 == undisturbed.sha256 and found(tmp_path) == 5


def test_a_resume_takes_what_was_found(world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    short = replace(AUTO, steps=5, checkpoint_every=2, val_every=0)
    with monkeypatch.context() as patch:
        hold_rows(2, patch=patch)
        expected = fit(world, whole, short)
        kill_at(3, patch)
        with pytest.raises(Killed):
            fit(world, killed, short)
    assert found(killed) == 2
    assert fit(world, killed, short).sha256 == expected.sha256  # although more would fit now
    assert found(killed) == 2


def test_a_run_that_had_no_room_goes_on(
    world: SimpleNamespace, undisturbed: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_killed(8, world, tmp_path)
    hold_rows(4, patch=monkeypatch)
    with pytest.raises(UsageError, match=r"too little memory for a step: set train\.micro_batch=auto"):
        fit(world, tmp_path)
    assert_same_losses(fit(world, tmp_path, AUTO), undisturbed)
    assert found(tmp_path) == 3  # half of 5, rounded up


def test_no_row_fits(world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_rows(0, patch=monkeypatch)
    with pytest.raises(UsageError, match=r"even for one row of it: set train\.gradient_checkpointing=true"):
        fit(world, tmp_path, AUTO)


def test_it_is_said_once() -> None:
    with pytest.raises(UsageError, match="gradient_accumulation=2 and micro_batch say the same"):
        replace(AUTO, gradient_accumulation=2)
    with pytest.raises(UsageError, match="micro_batch=-1 must be auto"):
        replace(SETTINGS, micro_batch=-1)


def train(rank: int, address: str, jobs: list[TrainingJob]) -> None:
    """Runs in each of two processes, of which the second has less memory."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    if rank == 1:
        hold_rows(1)
    for job in jobs:
        worker = Worker(job, World(rank=rank, size=2))
        if job.settings.micro_batch is MicroBatch.AUTO:
            find_micro_batch(worker.trainer, worker.batches.training(worker.order.share(0, rank, 2)))
            assert worker.trainer.micro_batch == 1
            assert all(value.grad is None for value in worker.model.parameters()) and not worker.trainer.optimizer.state
        worker.run()
    dist.destroy_process_group()


@pytest.mark.slow
def test_workers_take_the_same(world: SimpleNamespace, tmp_path: Path) -> None:
    """Also of a sharded model."""
    shared = replace(SETTINGS, steps=3, num_workers=2, batch_size=6, log_every=1, lr=1e-3)
    changes = ({"micro_batch": 1}, {"micro_batch": MicroBatch.AUTO}, {"micro_batch": MicroBatch.AUTO, "shard": True})
    outputs = [str(tmp_path / str(number)) for number in range(len(changes))]
    jobs = [
        make_job(world.caches, output, world.base, world.image_encoder, METHOD, replace(shared, **change))  # type: ignore[arg-type]
        for output, change in zip(outputs, changes, strict=True)
    ]
    spawn(train, (f"tcp://127.0.0.1:{free_port()}", jobs), nprocs=2)
    losses = [[row["loss"] for row in read_rows(output, Store()) if "loss" in row] for output in outputs]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and losses[2] == pytest.approx(losses[0], abs=1e-5)
