"""A step that hangs is ended; checkpoints come by the clock too."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from realcustom.store import Store
from realcustom.training.checkpoints import list_checkpoints
from realcustom.training.watch import StepWatch
from realcustom.training.worker import Worker
from tests.support.training_runs import SETTINGS, fit

HANGING = """
import time
from realcustom.training.watch import StepWatch
with StepWatch(0.01) as watch:
    for seconds in (0.1, 0.1, 60):
        with watch.step():
            time.sleep(seconds)
"""


def test_a_hanging_step_ends_its_process_and_shows_where(tmp_path: Path) -> None:
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=50)
    assert run.returncode == 1 and time.monotonic() - start < 40
    assert "has not ended for 0.01 minutes" in run.stderr and "Thread" in run.stderr


def test_what_is_beside_the_steps_may_take_longer() -> None:
    with StepWatch(0.005) as watch:
        with watch.step():
            time.sleep(0.05)
        time.sleep(0.6)
        with watch.step():
            time.sleep(0.05)


def test_checkpoints_come_by_the_clock(world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after_step = Worker._after_step

    def slow(worker: Worker, *arguments: object) -> None:
        if worker.trainer.step_count in (3, 7):
            worker.outputs.saved -= 61
        after_step(worker, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "_after_step", slow)
    fit(world, tmp_path, replace(SETTINGS, checkpoint_every=0, checkpoint_minutes=1, keep_checkpoints=9, steps=9))
    kept = [int(uri[-20:-12]) for uri in list_checkpoints(str(tmp_path / "checkpoints"), Store())]
    assert kept == [4, 8, 9]  # a step later: all workers agree on it
