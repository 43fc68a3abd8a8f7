"""What a stage's run on Ray gives to Prometheus, through Ray's own export. Ray puts `ray_` before each name.

realcustom_stage_units_total{stage, run, outcome}   units: done, failed, taken (done by another client)
realcustom_stage_units_left{stage, run}             units that have not ended; from the start on, and 0 at the end
realcustom_stage_rows_total{stage, run, outcome}    rows of the units that are done: kept, dropped, quarantined
realcustom_stage_unit_seconds{stage, operator}      of one unit in one operator, measured in the worker

A `run` is the name of the stage's directory.
"""

from __future__ import annotations

import functools

from ray.util.metrics import Counter, Gauge, Histogram

from realcustom.preprocessing.engine.unit import Counts

SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


class StageMetrics:
    """The counters of one run, in its driver.

    Args:
        run: name of the stage's directory.
        units: how many are to be done.
    """

    def __init__(self, stage: str, run: str, units: int) -> None:
        self._tags = {"stage": stage, "run": run}
        self._remaining = units
        tags = (*self._tags, "outcome")
        self._left = _left()
        self._left.set(units, tags=self._tags)  # a counter is not there before its first rise
        self._units = Counter("realcustom_stage_units_total", "Units by how they ended.", tag_keys=tags)
        self._rows = Counter(
            "realcustom_stage_rows_total", "Rows of finished units by what became of them.", tag_keys=tags
        )

    def unit_done(self, counts: Counts) -> None:
        """Count a unit and its rows."""
        self.unit_ended("done")
        rows = {"kept": counts.kept, "dropped": sum(counts.dropped.values()), "quarantined": counts.errors}
        for outcome, number in rows.items():
            if number:  # Ray refuses a rise of 0
                self._rows.inc(number, tags={**self._tags, "outcome": outcome})

    def unit_ended(self, outcome: str) -> None:
        """Count a unit."""
        self._units.inc(1, tags={**self._tags, "outcome": outcome})
        self._remaining -= 1
        self._left.set(self._remaining, tags=self._tags)

    def close(self) -> None:
        """Nothing is left that is worked on."""
        self._left.set(0, tags=self._tags)


def tell_left(stage: str, run: str, units: int) -> None:
    """Set how many units of a run have not ended, where none of them is worked on here."""
    _left().set(units, tags={"stage": stage, "run": run})


def observe_seconds(stage: str, operator: str, seconds: float) -> None:
    """Note how long a unit took in an operator; in a worker."""
    _seconds().observe(seconds, tags={"stage": stage, "operator": operator})


def _left() -> Gauge:
    return Gauge("realcustom_stage_units_left", "Units that have not ended.", tag_keys=("stage", "run"))


@functools.cache
def _seconds() -> Histogram:
    return Histogram(
        "realcustom_stage_unit_seconds",
        "Seconds of one unit in one operator.",
        boundaries=SECONDS,
        tag_keys=("stage", "operator"),
    )
