"""What is measured while serving, by Prometheus' conventions. No Ray: `ray_metrics.py` gives the numbers to Ray."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

PREFIX = "realcustom_"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)


class Kind(enum.Enum):
    """How a metric's values are put together."""

    COUNTER = "counter"  # only rises
    GAUGE = "gauge"  # the last value
    HISTOGRAM = "histogram"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric; `tag` names what its values are told apart by."""

    kind: Kind
    help: str
    tag: str | None = None
    buckets: tuple[float, ...] = _SECONDS  # of a histogram


METRICS: Mapping[str, Metric] = {
    "requests_total": Metric(kind=Kind.COUNTER, tag="status", help="HTTP requests that were answered, by status"),
    "request_seconds": Metric(kind=Kind.HISTOGRAM, help="from a drawing request's arrival to the end of its answer"),
    "queue_seconds": Metric(
        kind=Kind.HISTOGRAM, help="from an engine's taking a request to the start of its first step"
    ),
    "time_to_first_step_seconds": Metric(
        kind=Kind.HISTOGRAM, help="from an engine's taking a request to the end of its first step"
    ),
    "time_to_first_preview_seconds": Metric(kind=Kind.HISTOGRAM, help="the same to the first preview of a stream"),
    "step_seconds": Metric(kind=Kind.HISTOGRAM, help="one step of the running batch"),
    "batch_rows": Metric(
        kind=Kind.HISTOGRAM, help="rows of a UNet call", buckets=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
    ),
    "batch_cells_used_ratio": Metric(
        kind=Kind.HISTOGRAM,
        help="rows of a step's largest UNet call to the rows at which a call is full",
        buckets=(0.1, 0.25, 0.5, 0.75, 0.9, 1.0),
    ),
    "forwards_total": Metric(kind=Kind.COUNTER, tag="branch", help="UNet forwards of single images, by branch"),
    "running": Metric(kind=Kind.GAUGE, help="requests in an engine that take steps"),
    "waiting": Metric(kind=Kind.GAUGE, help="requests in an engine whose first step has not begun"),
    "cancelled_total": Metric(kind=Kind.COUNTER, help="requests that were cancelled, or whose client went away"),
    "cache_bytes": Metric(
        kind=Kind.GAUGE,
        tag="kind",
        help="bytes that an engine keeps: subjects (host), their tokens and prompts (device)",
    ),
    "cache_hits_total": Metric(
        kind=Kind.COUNTER, tag="kind", help="requests for what was there: subjects, adapters, prompts"
    ),
}


class Observer(Protocol):
    """Takes the numbers. Any thread may call."""

    def observe(self, name: str, value: float, tag: str | None = None) -> None:
        """A value of a metric in `METRICS`: what a counter rises by, a gauge's value, one of a histogram's."""
        ...


class Unobserved:
    """Takes them and does nothing."""

    def observe(self, name: str, value: float, tag: str | None = None) -> None:
        """See `Observer`."""
        assert name in METRICS


UNOBSERVED: Observer = Unobserved()
