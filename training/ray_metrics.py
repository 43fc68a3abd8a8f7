"""What a run on Ray gives to Prometheus, through Ray's own export. Ray puts `ray_` before each name; all are told apart by `run`.

realcustom_train_step                       the last step of the latest row
realcustom_train_loss                       mean loss of its steps
realcustom_train_validation_loss
realcustom_train_images_per_second
realcustom_train_data_wait_ratio            share of the time in which steps waited for records
realcustom_train_checkpoint_time_seconds    when the last checkpoint was taken, in seconds since 1970; its start, before the first
realcustom_train_skipped_steps_total        steps that were not finite
realcustom_train_repeated_steps_total       steps that were done again after workers were lost
"""

from __future__ import annotations

import time

from ray.util.metrics import Counter, Gauge

from realcustom.training.metrics_file import Row

_GAUGES = {  # by the row's field
    "step": ("realcustom_train_step", "Last step of the latest row."),
    "loss": ("realcustom_train_loss", "Mean loss of the latest row's steps."),
    "val_loss": ("realcustom_train_validation_loss", "Latest validation loss."),
    "images_per_second": ("realcustom_train_images_per_second", "Images a second over the latest row's steps."),
    "data_wait": ("realcustom_train_data_wait_ratio", "Share of the time in which steps waited for records."),
}
_COUNTERS = {
    "skipped": ("realcustom_train_skipped_steps_total", "Steps that were not finite."),
    "repeated": ("realcustom_train_repeated_steps_total", "Steps that were done again after workers were lost."),
}


class RayMetrics:
    """See `sinks.Sink`. Made in the first worker."""

    def __init__(self, run: str) -> None:
        """Begin with the metrics of a run, by its identity."""
        tags, default = ("run",), {"run": run}
        self._gauges = {field: Gauge(name, text, tags) for field, (name, text) in _GAUGES.items()}
        self._counters = {field: Counter(name, text, tags) for field, (name, text) in _COUNTERS.items()}
        self._checkpoint = Gauge(
            "realcustom_train_checkpoint_time_seconds", "When the last checkpoint was taken, since 1970.", tags
        )
        for metric in (*self._gauges.values(), *self._counters.values(), self._checkpoint):
            metric.set_default_tags(default)

    def add(self, row: Row) -> None:
        """Give Ray a row's numbers."""
        if "val_loss" in row:  # it may be of a step long past
            row = {"val_loss": row["val_loss"]}
        for field, gauge in self._gauges.items():
            if row.get(field) is not None:
                gauge.set(row[field])
        for field, counter in self._counters.items():
            if row.get(field):  # Ray refuses a rise of 0
                counter.inc(row[field])
        if "checkpoint_age" in row:
            self._checkpoint.set(time.time() - row["checkpoint_age"])

    def flush(self) -> None:
        """Nothing: Ray sends by itself."""

    def close(self) -> None:
        """Nothing: the series end with the worker."""
