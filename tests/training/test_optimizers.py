"""Optimizers and averages: the guard on the device equals that of the host; 8 bits; host memory."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from realcustom.errors import UsageError
from realcustom.training.failures import TrainingDiverged
from realcustom.training.loop import Trainer
from realcustom.training.optimizers import check_optimizer
from realcustom.training.run import make_job
from realcustom.training.settings import Optimizer, TrainSettings
from realcustom.training.worker import Worker
from realcustom.training.world import World
from tests.support.training_runs import METHOD, SETTINGS, curve, fit, fit_killed, tensors


@dataclass(frozen=True, kw_only=True)
class GuardedWorld(World):
    """A CPU that is used as a GPU is: the host does not read the results of each step."""

    @property
    def asynchronous(self) -> bool:
        return True


def make_worker(world: SimpleNamespace, output: Path, settings: TrainSettings, where: World) -> Worker:
    return Worker(make_job(world.caches, str(output), world.base, world.image_encoder, METHOD, settings), where)


def test_a_step_is_skipped_on_the_device_as_on_the_host(world: SimpleNamespace, tmp_path: Path) -> None:
    guarded, plain = (make_worker(world, tmp_path, SETTINGS, where) for where in (GuardedWorld(), World()))
    assert guarded.trainer.guarded and not plain.trainer.guarded
    for step in range(4):
        batch = plain.batches.training(plain.order.share(step, 0, 1))
        if step == 2:
            batch = replace(batch, latents=torch.full_like(batch.latents, torch.nan))
        guarded.trainer.launch(batch)
        plain.trainer.launch(batch)
        plain.trainer.read()
    assert [result.skipped for result in guarded.trainer.read()] == [False, False, True, False]
    (ours, counters), (theirs, other) = guarded.trainer.state(), plain.trainer.state()
    assert counters == other == {"step": 4, "skipped": 1, "skipped_in_a_row": 0}
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=1e-4, atol=1e-6), name


def test_gradients_take_no_memory_between_steps(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bytes: as many as the trained weights while the optimizer reads them, none for what comes after the step."""
    worker = make_worker(world, tmp_path, SETTINGS, World())
    trainer, held = worker.trainer, list[int]()
    update = Trainer._update

    def count() -> None:
        gradients = [value.grad for value in trainer.parameters.values()]
        held.append(sum(gradient.nbytes for gradient in gradients if gradient is not None))

    def counted(self: Trainer, *arguments: Any) -> None:
        count()
        update(self, *arguments)

    monkeypatch.setattr(Trainer, "_update", counted)
    batch = worker.batches.training(worker.order.share(0, 0, 1))
    bad = replace(batch, latents=torch.full_like(batch.latents, torch.nan))
    for one in (batch, bad, batch):
        result = trainer.step(one)
        assert result.skipped is (one is bad) and result.grad_norms.keys() == {"projections", "scoring"}
        count()
    whole = sum(value.nbytes for value in trainer.parameters.values())
    assert held == [whole, 0] * 3


def test_steps_that_are_not_finite_end_the_run_when_they_are_read(world: SimpleNamespace, tmp_path: Path) -> None:
    worker = make_worker(world, tmp_path, replace(SETTINGS, max_skipped_steps=2), GuardedWorld())
    batch = worker.batches.training(worker.order.share(0, 0, 1))
    bad = replace(batch, latents=torch.full_like(batch.latents, torch.nan))
    worker.trainer.launch(bad)
    worker.trainer.launch(bad)
    with pytest.raises(TrainingDiverged, match="2 steps in a row, up to step 2"):
        worker.trainer.read()


def test_a_run_that_reads_seldom_is_continued_to_the_same_bytes(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are read where a line is logged, a checkpoint or a validation is due; a kill changes nothing."""
    monkeypatch.setattr(World, "asynchronous", property(lambda _: True))
    settings = replace(SETTINGS, steps=8, val_every=0)
    whole = fit(world, tmp_path / "whole", settings)
    fit_killed(8, world, tmp_path / "killed", settings)
    resumed = fit(world, tmp_path / "killed", settings)
    assert resumed.sha256 == whole.sha256 and curve(resumed) == curve(whole)


def test_an_average_in_host_memory_is_the_same(world: SimpleNamespace, tmp_path: Path) -> None:
    results = [fit(world, tmp_path / str(on), replace(SETTINGS, steps=2, ema_on_host=on)) for on in (False, True)]
    first, second = map(tensors, results)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(("optimizer", "package"), [("adamw_8bit", "torchao"), ("prodigy", "prodigyopt")])
def test_what_is_not_installed_is_said(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(UsageError, match=rf"{optimizer} needs {package}: pip install 'PATH_OF_THE_CLONE\[{package}\]'"):
        fit(world, tmp_path, replace(SETTINGS, optimizer=Optimizer(optimizer)))


def test_moments_in_8_bits_are_kept(world: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="an extra, realcustom[torchao]")
    settings = replace(SETTINGS, optimizer=Optimizer.ADAMW_8BIT, steps=6, checkpoint_every=3)
    with torch.compiler.set_stance("force_eager"):  # compiled it takes a compiler, and half a minute
        whole = fit(world, tmp_path / "whole", settings)
        fit_killed(4, world, tmp_path / "killed", settings)
        assert fit(world, tmp_path / "killed", settings).sha256 == whole.sha256
        worker = make_worker(world, tmp_path / "whole", settings, World())
    kept = {name: value.dtype for name, value in worker.trainer.state()[0].items() if name.startswith("exp_avg.")}
    assert torch.uint8 in kept.values() and whole.loss_after < whole.loss_before


def test_prodigy_goes_on_with_its_estimate(
    world: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("prodigyopt", reason="an extra, realcustom[prodigyopt]")
    settings = replace(SETTINGS, optimizer=Optimizer.PRODIGY, lr=1.0, steps=8, checkpoint_every=3, log_every=1)
    whole = fit(world, tmp_path / "whole", settings)
    fit_killed(5, world, tmp_path / "killed", settings)
    resumed = fit(world, tmp_path / "killed", settings)
    assert resumed.sha256 == whole.sha256 and curve(resumed) == curve(whole)
    rates = [row["lr"] for row in whole.curve if "lr" in row]
    assert len(rates) == 8 and rates[-1] > rates[0]
    assert "weight decay" not in capsys.readouterr().out


def test_a_rate_of_adamw_for_prodigy_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    check_optimizer(TrainSettings(optimizer=Optimizer.PRODIGY))
    assert "multiplies it by train.lr: 1 is usual, not 1e-05" in caplog.text
