"""Spearman's rho and Kendall's tau-b with bootstrap intervals, from one matrix of signs.

With S[i, j] the sign of x[i] - x[j], a resample in which value i counts w[i] times has the (centred) ranks S w, and
concordant minus discordant pairs w' (Sx o Sy) w: all resamples are one product of matrices. n values, r resamples.
"""

from __future__ import annotations

import numpy as np


def correlations(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> dict[str, list[float]]:
    """`spearman` and `kendall` of x and y, (n,): value, and the ends of the 95 % interval.

    Args:
        counts: (r, n), how often each value counts in each resample.
    """
    weights = np.concatenate([np.ones((1, len(x))), counts]).astype(np.float32).T  # (n, 1 + r), the data first
    one, other = (np.sign(values[:, None] - values[None, :]).astype(np.float32) for values in (x, y))
    found = {"spearman": _spearman(one, other, weights), "kendall": _kendall(one, other, weights)}
    return {
        name: [round(float(value), 3) for value in (all_[0], *np.quantile(all_[1:], [0.025, 0.975]))]
        for name, all_ in found.items()
    }


def _spearman(one: np.ndarray, other: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the ranks, (1 + r,)."""
    # (n, 1 + r): ranks, whose weighted mean is zero
    first, second = ((signs @ weights).astype(np.float64) for signs in (one, other))
    return _cosine((weights * first * second).sum(0), (weights * first**2).sum(0), (weights * second**2).sum(0))


def _kendall(one: np.ndarray, other: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """tau-b, (1 + r,): ties of either side count in the divisor as they do in the ranks."""
    signs = (one * other, np.abs(one), np.abs(other))
    agreeing, first, second = (np.einsum("nr,nr->r", weights, pairs @ weights) for pairs in signs)
    return _cosine(agreeing, first, second)


def _cosine(product: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    divisor = np.sqrt(first.astype(np.float64) * second)
    values: np.ndarray = np.divide(product, divisor, out=np.zeros_like(divisor), where=divisor > 0)
    return values
