"""What a stage's run on Ray gives to Prometheus, through Ray's own export. Ray puts `ray_` before each name.

realcustom_stage_units_total{stage, outcome}    units: done, failed, taken (by another client)
realcustom_stage_rows_total{stage, outcome}     rows of the units that are done: kept, dropped, quarantined
realcustom_stage_unit_seconds{stage, operator}  of one unit in one operator, measured in the worker
"""

from __future__ import annotations

import functools

from ray.util.metrics import Counter, Histogram

from realcustom.preprocessing.engine.unit import Counts

SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


class StageMetrics:
    """The counters of one run, in its driver."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        tags = ("stage", "outcome")
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
                self._rows.inc(number, tags={"stage": self._stage, "outcome": outcome})

    def unit_ended(self, outcome: str) -> None:
        """Count a unit."""
        self._units.inc(1, tags={"stage": self._stage, "outcome": outcome})


def observe_seconds(stage: str, operator: str, seconds: float) -> None:
    """Note how long a unit took in an operator; in a worker."""
    _seconds().observe(seconds, tags={"stage": stage, "operator": operator})


@functools.cache
def _seconds() -> Histogram:
    return Histogram(
        "realcustom_stage_unit_seconds",
        "Seconds of one unit in one operator.",
        boundaries=SECONDS,
        tag_keys=("stage", "operator"),
    )
