"""The metrics as Ray Serve's, which Ray exports for Prometheus. Made in a replica: Ray adds deployment and replica."""

from __future__ import annotations

from typing import Any

from ray.serve import metrics as ray_metrics

from realcustom.inference.metrics import METRICS, PREFIX, Kind, Metric


class RayObserver:
    """See `metrics.Observer`."""

    def __init__(self) -> None:
        self._made = {name: _made(name, metric) for name, metric in METRICS.items()}

    def observe(self, name: str, value: float, tag: str | None = None) -> None:
        """See `metrics.Observer`."""
        metric, made = METRICS[name], self._made[name]
        tags = {} if metric.tag is None else {metric.tag: str(tag)}
        if metric.kind is Kind.COUNTER:
            if value > 0:  # Ray refuses a rise of 0
                made.inc(value, tags=tags)
        elif metric.kind is Kind.GAUGE:
            made.set(value, tags=tags)
        else:
            made.observe(value, tags=tags)


def _made(name: str, metric: Metric) -> Any:
    tags = () if metric.tag is None else (metric.tag,)
    name = PREFIX + name
    if metric.kind is Kind.COUNTER:
        return ray_metrics.Counter(name, description=metric.help, tag_keys=tags)
    if metric.kind is Kind.GAUGE:
        return ray_metrics.Gauge(name, description=metric.help, tag_keys=tags)
    return ray_metrics.Histogram(name, description=metric.help, boundaries=list(metric.buckets), tag_keys=tags)
