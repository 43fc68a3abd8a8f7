"""What a row counts: steps, and the time that they take."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from realcustom.store import Store
from realcustom.training.background import Background
from realcustom.training.loop import StepResult
from realcustom.training.metrics import Metrics
from realcustom.training.metrics_file import read_rows, read_starts

STEP = StepResult(loss=0.5, grad_norm=1.0, grad_norms={}, lr=1e-3, skipped=False, stop=False, save=False)


def test_a_validation_between_two_rows_takes_nothing_from_their_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of 5 records and 2 s each, of which 1 s waits, with a validation of 100 s between them."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Background() as background:
        metrics = Metrics(str(tmp_path), Store(), background, (), steps=2, step=0, progress={})
        now[0] += 2
        metrics.add_step(STEP, 5.0)
        with metrics.pause():
            now[0] += 100
        now[0] += 2
        metrics.add_step(STEP, 5.0)
        assert metrics.seconds == 4
        metrics.close_row(2, STEP, {"data": 2.0}, {})
        metrics.finish()
    (row,) = read_rows(str(tmp_path), Store())
    assert row["images_per_second"] == 2.5 and row["data_wait"] == 0.5


def test_a_start_is_known_after_the_next_one_has_cut_its_rows(tmp_path: Path) -> None:
    """Killed after step 4, then after step 6, without a checkpoint."""
    for steps in (4, 6, 8):
        with Background() as background:
            metrics = Metrics(str(tmp_path), Store(), background, (), steps=8, step=0, progress={})
            for step in range(2, steps + 1, 2):
                metrics.add_step(STEP, 5.0)
                metrics.close_row(step, STEP, {}, {})
            metrics.flush()
    assert [start["repeated"] for start in read_starts(str(tmp_path), Store())] == [0, 4, 6]
