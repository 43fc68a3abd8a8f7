"""Statistics of a table: images of one subject, and of one prompt, are not independent, so whole clusters are resampled.

The bootstrap draws subjects with replacement, then prompts within each drawn subject (Field and Welsh 2007, two-stage
cluster bootstrap); the images of a prompt go together. Letters: S subjects, P prompts of a subject, R resamples.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from realcustom.errors import UsageError

Place = tuple[str, str, Hashable]  # subject, prompt, seed

SMALL = 0.01  # a difference that published tables take seriously
POWER = 0.8  # probability with which it is to be seen


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over subjects, with what its bootstrap says."""

    mean: float
    low: float  # percentile interval
    high: float
    error: float  # standard error
    p: float  # two-sided, of the mean being 0
    images: int

    @property
    def needed(self) -> int:
        """Images with which a true mean of `SMALL` would leave its 95 % interval around 0 with probability `POWER`.

        As many prompts a subject and images a prompt as here: the number of subjects grows.
        """
        normal = NormalDist()
        factor = normal.inv_cdf(0.975) + normal.inv_cdf(POWER)
        return math.ceil(self.images * (factor * self.error / SMALL) ** 2)


def estimate(
    values: Mapping[Place, float], *, confidence: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Estimate:
    """The mean over subjects of the mean over prompts of the mean over images.

    Args:
        values: of each image, by its place. The result does not depend on their order.
    Raises:
        UsageError: fewer than two subjects.
    """
    table = _by_prompt(values)
    if len(table) < 2:
        raise UsageError(f"an interval over subjects needs at least 2 subjects, got {len(table)}")
    means = np.array([row.mean() for row in table])  # (S,)
    drawn = _resampled(table, resamples, np.random.default_rng(seed))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    below, above = np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0)
    return Estimate(
        mean=float(means.mean()),
        low=float(low),
        high=float(high),
        error=float(drawn.std(ddof=1)),
        p=min(1.0, 2.0 * (min(below, above) + 1) / (resamples + 1)),
        images=len(values),
    )


def difference(first: Mapping[Place, float], second: Mapping[Place, float]) -> dict[Place, float]:
    """`first - second` at the places that both have: the same subject, prompt and seed."""
    return {place: first[place] - second[place] for place in first if place in second}


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number (Holm 1979), in their order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _by_prompt(values: Mapping[Place, float]) -> list[np.ndarray]:
    """Means of each prompt's images, (P,) for each subject; subjects and prompts by name."""
    grouped: dict[str, dict[str, list[tuple[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for (subject, prompt, seed), value in values.items():
        grouped[subject][prompt].append((str(seed), value))
    return [
        np.array([np.mean([value for _, value in sorted(images)]) for _, images in sorted(prompts.items())])
        for _, prompts in sorted(grouped.items())
    ]


def _resampled(table: Sequence[np.ndarray], resamples: int, rng: np.random.Generator) -> np.ndarray:
    """The statistic of each resample, (R,)."""
    counts = np.array([len(row) for row in table])  # (S,)
    widest = int(counts.max())
    padded = np.zeros((len(table), widest))
    for index, row in enumerate(table):
        padded[index, : len(row)] = row
    total = np.zeros(resamples)
    for _ in table:  # one drawn subject at a time: limits the memory to (R, P)
        subject = rng.integers(0, len(table), size=resamples)  # (R,)
        chosen = (rng.random((resamples, widest)) * counts[subject][:, None]).astype(np.int64)  # (R, P)
        used = np.arange(widest) < counts[subject][:, None]
        total += np.where(used, padded[subject[:, None], chosen], 0.0).sum(axis=1) / counts[subject]
    return total / len(table)
