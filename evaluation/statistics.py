"""Bootstrap intervals (Efron and Tibshirani 1993, percentile method) of a mean and of a paired difference; seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from realcustom.errors import UsageError

_CHUNK = 1 << 22  # drawn indices held at once: limits the memory, not the number of resamples


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, *, confidence: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Interval:
    """The mean of `values`, (n,), and the percentile interval of its bootstrap distribution.

    Raises UsageError on fewer than 2 values (one value has no interval) and on values that are not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) < 2:
        raise UsageError(f"an interval needs a list of at least 2 values, got shape {data.shape}")
    if not np.isfinite(data).all():
        raise UsageError(f"{np.count_nonzero(~np.isfinite(data))} of {len(data)} values are not finite")
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(data))
    means = [
        data[rng.integers(0, len(data), size=(min(rows, resamples - start), len(data)))].mean(axis=1)  # (rows,)
        for start in range(0, resamples, rows)
    ]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(means), [tail, 1.0 - tail])
    return Interval(mean=float(data.mean()), low=float(low), high=float(high))


def bootstrap_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Mean of `first - second`, value by value (the same cases in the same order), with its interval.

    Pairing removes what the cases have in common (prompt, starting noise) from the interval.
    """
    if len(first) != len(second):
        raise UsageError(f"pairs need lists of one length, got {len(first)} and {len(second)}")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return bootstrap_mean(differences, confidence=confidence, resamples=resamples, seed=seed)
