"""Steps that take a while, so that something can happen between two of them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from realcustom.inference.engine import Engine


def slow_steps(engine: Engine, monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[float]:
    """Make each step of the engine's jobs take longer; the returned list gets the time (monotonic) at which each began."""
    scheduler = type(engine.pipeline.scheduler)  # each job has one of its own
    step, began = scheduler.step, list[float]()

    def slow(*args: Any, **kwargs: Any) -> Any:
        began.append(time.monotonic())
        time.sleep(seconds)
        return step(*args, **kwargs)

    monkeypatch.setattr(scheduler, "step", slow)
    return began
