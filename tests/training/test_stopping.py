"""A run that is sent SIGTERM or SIGINT ends after its step with a checkpoint and a status of its own; the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from realcustom.store import Store
from realcustom.training import samples
from realcustom.training.batches import BatchMaker
from realcustom.training.checkpoints import list_checkpoints, load_checkpoint, step_of
from realcustom.training.metrics_file import read_rows
from realcustom.training.run import TrainResult
from realcustom.training.stopping import Stopped, stop_at_signals
from realcustom.training.worker import Worker
from tests.support.training_runs import SETTINGS, curve, fit, write_settings
from tests.support.waiting import wait_for

SEVERAL = replace(SETTINGS, checkpoint_every=1000, log_every=1, steps=400)


def write_config(world: SimpleNamespace, path: Path, **train: Any) -> list[str]:
    """A command line of a run with these models and settings."""
    write_settings(path, world.base, world.image_encoder, replace(SEVERAL, **train))
    start = "from realcustom.pipeline.cli.main import main; main()"
    output = str(path.parent / "run")
    return [sys.executable, "-c", start, "train", "--input", world.caches, "--output", output, "--config", str(path)]


def signal_under_way(command: list[str], run: Path, number: signal.Signals) -> subprocess.Popen[str]:
    """Start a command, and send it and what it starts a signal when a few steps are done, as a terminal does."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        if len(read_rows(str(run), Store())) > 4:
            os.killpg(process.pid, number)
            break
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_command_ends_with_the_signal_s_status_and_goes_on_to_the_same_bytes(
    world: SimpleNamespace, tmp_path: Path, number: signal.Signals
) -> None:
    command = [*write_config(world, tmp_path / "settings.yaml"), "--local"]
    process = signal_under_way([*command, "--set", "train.log_every=1"], tmp_path / "run", number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said
    (checkpoint,) = list_checkpoints(str(tmp_path / "run" / "checkpoints"), Store())
    step = int(checkpoint[-20:-12])
    assert (
        4 < step < 400 and f"stopped after step {step}, which is kept" in said and "goes on: realcustom train" in said
    )
    assert "interrupted" not in said
    assert read_rows(str(tmp_path / "run"), Store())[-1]["step"] == step
    shorter = replace(SEVERAL, steps=step + 2)
    whole = fit(world, tmp_path / "whole", shorter)
    further = fit(world, tmp_path / "run", shorter)
    assert further.sha256 == whole.sha256 and curve(further) == curve(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_in_this_process_is_stopped_and_continued(
    world: SimpleNamespace,
    undisturbed: TrainResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    after_step = Worker._after_step

    def terminated(worker: Worker, *arguments: object) -> None:
        if worker.trainer.step_count == 7:
            signal.raise_signal(number)
        after_step(worker, *arguments)  # type: ignore[arg-type]

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_after_step", terminated)
        with pytest.raises(Stopped) as caught:
            fit(world, tmp_path)
    assert (caught.value.step, caught.value.number) == (8, number) and signal.getsignal(number) is before
    resumed = fit(world, tmp_path)
    assert resumed.sha256 == undisturbed.sha256 and curve(resumed) == curve(undisturbed)


@pytest.mark.parametrize("number", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_validation_ends_between_two_batches_and_is_made_up_for(
    world: SimpleNamespace, undisturbed: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The one before the first step, the one after step 6, and the last one."""
    validation = BatchMaker.validation
    begun, taken = list[int](), list[int]()

    def asked(maker: BatchMaker, numbers: Any) -> Any:
        begun.append(len(begun))
        for batch in validation(maker, numbers):
            taken.append(begun[-1])
            yield batch
            if begun[-1] == number:
                signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(BatchMaker, "validation", asked)
        with pytest.raises(Stopped) as caught:
            fit(world, tmp_path)
    assert caught.value.step == 6 * number and taken.count(number) == 2  # the second was made, and not used
    if number == 0:
        assert not list_checkpoints(str(tmp_path / "checkpoints"), Store())
        return
    resumed = fit(world, tmp_path)
    assert resumed.sha256 == undisturbed.sha256 and curve(resumed) == curve(undisturbed)
    assert resumed.loss_after == undisturbed.loss_after


def test_a_sheet_is_left_out_and_drawn_by_the_next_start(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, steps=4, sample_records=1, sample_every=2, sample_steps=1)
    after_step = Worker._after_step

    def terminated(worker: Worker, *arguments: object) -> None:
        if worker.trainer.step_count == 1:
            signal.raise_signal(signal.SIGTERM)
        after_step(worker, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_after_step", terminated)
        with pytest.raises(Stopped, match="after step 2"):
            fit(world, tmp_path, settings, records=world.pictures)
    assert not list(tmp_path.glob("samples/*"))
    fit(world, tmp_path, settings, records=world.pictures)
    assert [path.name for path in sorted(tmp_path.glob("samples/*.png"))] == ["step-00000002.png", "step-00000004.png"]


def test_a_signal_within_a_sheet_ends_it_and_the_next_start_draws_it(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = replace(SETTINGS, steps=4, val_every=2, sample_records=1, sample_every=2, sample_steps=2)
    row = samples._row

    def asked(pipeline: Any, encoders: Any, picture: Any, after_step: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return row(pipeline, encoders, picture, after_step)

    with monkeypatch.context() as patch:
        patch.setattr(samples, "_row", asked)
        with pytest.raises(Stopped, match="after step 2"):
            fit(world, tmp_path, settings, records=world.pictures)
    assert "a sample sheet is left out, as the run is asked to end" in caplog.messages
    assert not list(tmp_path.glob("samples/*"))
    result = fit(world, tmp_path, settings, records=world.pictures)
    assert [path.name for path in sorted(tmp_path.glob("samples/*.png"))] == ["step-00000002.png", "step-00000004.png"]
    assert [row["step"] for row in result.curve if "val_loss" in row] == [0, 2, 4]
    assert caplog.text.count("step 2/4  validation loss") == 1  # that had ended


def test_a_second_signal_is_what_it_was_before(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    stop, noticed = threading.Event(), []
    signal.signal(signal.SIGTERM, lambda *_: noticed.append(True))
    try:
        with stop_at_signals(stop):
            signal.raise_signal(signal.SIGINT)
            assert stop.is_set() and not noticed
            wait_for(lambda: "a second Ctrl-C ends at once" in caplog.text, 10.0, lambda: caplog.text)
            signal.raise_signal(signal.SIGTERM)
            assert noticed
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_signal_that_is_ignored_stays_so() -> None:
    stop, before = threading.Event(), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_at_signals(stop):
            signal.raise_signal(signal.SIGINT)
            assert not stop.is_set()
            signal.raise_signal(signal.SIGTERM)
            assert stop.is_set()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_workers_on_ray_are_stopped_by_the_driver_s_signal(
    world: SimpleNamespace, tmp_path: Path, ray_cluster: str
) -> None:
    command = write_config(world, tmp_path / "settings.yaml", num_workers=2, steps=100_000, log_every=20)
    process = signal_under_way([*command, "--address", ray_cluster], tmp_path / "run", signal.SIGTERM)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 143, said
    (checkpoint,) = list_checkpoints(str(tmp_path / "run" / "checkpoints"), Store())
    assert f"stopped after step {int(checkpoint[-20:-12])}" in said


@pytest.mark.slow
def test_ctrl_c_leaves_a_ray_of_the_command_s_own_until_the_step_is_kept(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a validation after each step: it is cut short, on both workers alike."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings: dict[str, Any] = {"steps": 100_000, "val_every": 1, "validation_timesteps": 40, "log_every": 1}
    command = write_config(world, tmp_path / "settings.yaml", num_workers=2, **settings)
    process = signal_under_way(command, tmp_path / "run", signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 130, said
    (checkpoint,) = list_checkpoints(str(tmp_path / "run" / "checkpoints"), Store())
    step = step_of(checkpoint)
    assert f"stopped after step {step}, which is kept" in said and "Traceback" not in said
    assert load_checkpoint(checkpoint, Store()).progress["owes"] == 1.0
    shorter = replace(SEVERAL, **{**settings, "steps": step + 1})
    whole, further = fit(world, tmp_path / "whole", shorter), fit(world, tmp_path / "run", shorter)
    assert [row["step"] for row in further.curve] == [row["step"] for row in whole.curve]
    assert further.loss_after == pytest.approx(whole.loss_after, rel=1e-4)
