"""Bootstrap intervals against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from realcustom.evaluation.statistics import bootstrap_difference, bootstrap_mean


def test_interval_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=2000)
    interval = bootstrap_mean(values, resamples=8000, seed=5)
    half = 1.959964 * values.std() / np.sqrt(len(values))  # the bootstrap's variance is the sample's (1/n) over n
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.06 * half)


def test_two_values_enumerated() -> None:
    # the means are 0, 1/2, 1 with probability 1/4, 1/2, 1/4: the 40 % interval is the point 1/2, the 95 % one [0, 1]
    assert bootstrap_mean([0.0, 1.0], confidence=0.4, seed=0).low == 0.5
    wide = bootstrap_mean([0.0, 1.0], confidence=0.95, seed=0)
    assert (wide.low, wide.high) == (0.0, 1.0)


def test_constant_values_and_constant_differences_have_no_width() -> None:
    same = bootstrap_mean([0.25] * 7)
    assert (same.mean, same.low, same.high) == (0.25, 0.25, 0.25)
    values = np.linspace(0.0, 1.0, 9)  # far apart, but the pairs differ by exactly 1/2
    paired = bootstrap_difference(values + 0.5, values)
    assert (paired.low, paired.high) == pytest.approx((0.5, 0.5))


def test_seeded_and_independent_of_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).random(30)
    first = bootstrap_mean(values, resamples=500, seed=3)
    assert first == bootstrap_mean(values, resamples=500, seed=3) != bootstrap_mean(values, resamples=500, seed=4)
    monkeypatch.setattr("realcustom.evaluation.statistics._CHUNK", 100)
    assert first == bootstrap_mean(values, resamples=500, seed=3)


@pytest.mark.parametrize(
    ("values", "message"), [([0.5], "at least 2"), ([0.5, float("nan")], "1 of 2 values are not finite")]
)
def test_values_that_have_no_interval(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(values)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        bootstrap_difference([1, 2, 3], [1, 2])
