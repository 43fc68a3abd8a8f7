"""Intervals over clusters against a plain loop; pairs; Holm; the number of images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from realcustom.errors import UsageError
from realcustom.evaluation.clusters import Place, difference, estimate, holm


def made(subjects: int, prompts: int, seeds: int, spread: float, rng: np.random.Generator) -> dict[Place, float]:
    """Values with a part of their own for each subject, and one for each image."""
    return {
        (f"s{s}", f"p{p}", k): float(level + rng.normal(scale=0.1))
        for s, level in enumerate(rng.normal(scale=spread, size=subjects))
        for p in range(prompts)
        for k in range(seeds)
    }


def test_the_mean_is_over_subjects_then_prompts_then_images() -> None:
    values: dict[Place, float] = {("a", "0", 0): 1.0, ("a", "0", 1): 2.0, ("a", "1", 0): 6.0, ("b", "0", 0): 0.25}
    assert estimate(values).mean == pytest.approx(((1.5 + 6.0) / 2 + 0.25) / 2)


def test_the_interval_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    values = made(6, 3, 2, 0.2, rng)
    means = {f"s{s}": [np.mean([values[f"s{s}", f"p{p}", k] for k in range(2)]) for p in range(3)] for s in range(6)}
    drawn = []
    for _ in range(6000):
        subjects = rng.integers(0, 6, 6)
        drawn.append(np.mean([np.mean(rng.choice(means[f"s{s}"], 3)) for s in subjects]))
    found = estimate(values, resamples=20_000)
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    assert found.error == pytest.approx(np.std(drawn), rel=0.05)


def test_images_of_one_subject_do_not_make_the_interval_narrow() -> None:
    few, many = (made(5, 4, seeds, 1.0, np.random.default_rng(0)) for seeds in (1, 20))
    assert estimate(many).error > 0.8 * estimate(few).error


def test_the_order_of_the_images_changes_nothing() -> None:
    values = made(5, 3, 2, 0.3, np.random.default_rng(1))
    turned = dict(sorted(values.items(), key=lambda entry: entry[1]))
    assert estimate(values) == estimate(turned)


def test_pairs_are_of_one_subject_prompt_and_seed() -> None:
    first: dict[Place, float] = {("a", "0", 0): 1.0, ("a", "0", 1): 2.0, ("b", "0", 0): 3.0}
    second: dict[Place, float] = {("a", "0", 0): 0.5, ("b", "0", 0): 1.0, ("c", "0", 0): 9.0}
    assert difference(first, second) == {("a", "0", 0): 0.5, ("b", "0", 0): 2.0}


def test_pairing_finds_what_plain_means_do_not() -> None:
    values = made(12, 4, 1, 1.0, np.random.default_rng(2))
    better = {place: value + 0.05 for place, value in values.items()}
    paired = estimate(difference(better, values))
    assert paired.low > 0 and paired.p < 0.001
    assert estimate(values).low < estimate(better).mean < estimate(values).high


def test_no_difference_is_seldom_significant() -> None:
    rng = np.random.default_rng(5)
    found = [estimate(made(15, 2, 1, 0.3, rng), resamples=500).p < 0.05 for _ in range(200)]
    assert np.mean(found) < 0.13  # the percentile bootstrap of 15 clusters is somewhat too narrow


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_the_number_of_images_that_a_small_difference_needs() -> None:
    found = estimate(made(10, 5, 2, 0.0, np.random.default_rng(4)))
    assert found.needed == math.ceil(100 * ((1.959964 + 0.841621) * found.error / 0.01) ** 2)
    some, many = (estimate(made(number, 5, 2, 0.0, np.random.default_rng(4))) for number in (40, 160))
    assert many.needed == pytest.approx(some.needed, rel=0.3)  # it does not depend on the number that is there


def test_one_subject_has_no_interval() -> None:
    with pytest.raises(UsageError, match="at least 2 subjects, got 1"):
        estimate({("a", "0", 0): 1.0, ("a", "1", 0): 2.0})
