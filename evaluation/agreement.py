"""How far repeated judgements agree: Krippendorff's alpha for scores on an interval scale (Krippendorff 2011)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def krippendorff(ratings: Sequence[Sequence[float | None]]) -> float | None:
    """1 - observed over expected disagreement; 1 = they agree, 0 = as by chance, below 0 = they contradict each other.

    Args:
        ratings: of each image, the scores that were given; None = one that is missing. An image with fewer than two
            counts for nothing.
    Returns:
        None where no image has two, or all scores are one number: then nothing can be said.
    """
    units = [np.array([value for value in row if value is not None], dtype=np.float64) for row in ratings]
    units = [unit for unit in units if len(unit) > 1]
    if not units:
        return None
    pooled = np.concatenate(units)
    n = len(pooled)
    # the sum over ordered pairs of (a - b)^2 is 2 (k sum a^2 - (sum a)^2)
    observed = sum(2 * (len(u) * (u**2).sum() - u.sum() ** 2) / (len(u) - 1) for u in units) / n
    expected = 2 * (n * (pooled**2).sum() - pooled.sum() ** 2) / (n * (n - 1))
    return None if expected <= 0 else float(1.0 - observed / expected)
