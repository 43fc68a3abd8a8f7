"""Trained weights sharded over two workers: the same run as with whole ones, and one goes on as the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

from realcustom.checkpoint import load_adapter
from realcustom.errors import UsageError
from realcustom.store import Store
from realcustom.training.job import TrainingJob
from realcustom.training.loop import World
from realcustom.training.metrics_file import read_rows
from realcustom.training.run import make_job
from realcustom.training.settings import Optimizer, TrainSettings
from realcustom.training.worker import Worker
from tests.support.loopback import free_port
from tests.support.training_runs import METHOD, SETTINGS

SHARED = replace(SETTINGS, steps=12, num_workers=2, batch_size=6, gradient_accumulation=2, log_every=1, lr=1e-3)


def train(rank: int, address: str, jobs: list[TrainingJob]) -> None:
    """Runs in each of two processes: one run after the other, or one going on with the other's."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for job in jobs:
        worker = Worker(job, World(rank=rank, size=2))
        sharded = {isinstance(value, DTensor) for value in worker.trainer.parameters.values()}
        assert sharded == {job.settings.shard}
        worker.run()
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_run_goes_on_sharded_and_whole_again(world: SimpleNamespace, tmp_path: Path) -> None:
    whole, changing = tmp_path / "whole", tmp_path / "changing"

    def job(output: Path, steps: int, shard: bool) -> TrainingJob:
        settings = replace(SHARED, steps=steps, shard=shard)
        return make_job(world.caches, str(output), world.base, world.image_encoder, METHOD, settings)

    jobs = [job(whole, 12, False), *(job(changing, steps, steps == 8) for steps in (4, 8, 12))]
    address = f"tcp://127.0.0.1:{free_port()}"
    spawn(train, (address, jobs), nprocs=2)
    rows = [read_rows(str(output), Store()) for output in (changing, whole)]
    kept = {row["step"]: row for row in rows[1] if "loss" in row}
    assert len(kept) == 12
    for row in rows[0]:
        if "loss" in row:
            assert row["loss"] == pytest.approx(kept[row["step"]]["loss"], abs=1e-5)
            assert row["grad_norm"] == pytest.approx(kept[row["step"]]["grad_norm"], rel=1e-4)
    ours, theirs = (load_adapter(str(output / "adapter.safetensors")).tensors for output in (changing, whole))
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-5), name


@pytest.mark.parametrize("other", [{"optimizer": Optimizer.ADAMW_8BIT}, {"ema_on_host": True}], ids=str)
def test_what_cannot_be_sharded_is_refused(other: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="shard=true is for optimizer=adamw with ema_on_host=false"):
        TrainSettings(shard=True, **other)  # type: ignore[arg-type]
