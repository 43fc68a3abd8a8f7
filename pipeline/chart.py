"""Charts of a training run: what was measured of its adapters, and its losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from realcustom.training.chart import LEFT, RIGHT, Frame, Points, svg

VALUE_WIDTH = 36  # of a value's text, with room beside it


class Mean(Protocol):
    """A mean with its interval."""

    @property
    def mean(self) -> float:
        """The mean."""

    @property
    def low(self) -> float:
        """The interval's lower end."""

    @property
    def high(self) -> float:
        """And its upper end."""


def measured_svg(name: str, learned: Sequence[tuple[int, Mean]], levels: Sequence[tuple[str, float]]) -> str:
    """A metric by training step, each value with its interval, between levels to compare it with.

    Args:
        name: of the metric.
        learned: steps, ascending, at least one, and the metric of the images drawn with the adapter saved then.
        levels: names and values of what does not depend on the step.
    """
    ends = [0.0, 1.0, *(end for _, value in learned for end in (value.low, value.high)), *(end for _, end in levels)]
    frame = Frame(last=learned[-1][0], low=min(ends), high=max(ends))
    points = [(step, value.mean) for step, value in learned]
    bars = "".join(
        f'<line class="interval" x1="{frame.x(step):.1f}" x2="{frame.x(step):.1f}" '
        f'y1="{frame.y(value.low):.1f}" y2="{frame.y(value.high):.1f}"/>'
        for step, value in learned
    )
    # The values that do not overlap; the last one stands on the other side of its dot.
    every = math.ceil(VALUE_WIDTH * len(learned) / (RIGHT - LEFT))
    shown = [one for one in learned[:-1:every] if frame.x(one[0]) < RIGHT - 2 * VALUE_WIDTH] + [learned[-1]]
    texts = [(frame.x(step) + (-9 if step == frame.last else 9), frame.y(value.mean) + 16) for step, value in shown]
    values = "".join(
        f'<text class="value" x="{x:.1f}" y="{y:.1f}" text-anchor="{"end" if step == frame.last else "start"}">'
        f"{value.mean:.2f}</text>"
        for (x, y), (step, value) in zip(texts, shown, strict=True)
    )
    by_value: dict[str, list[tuple[str, float]]] = {}
    for label, value in levels:
        by_value.setdefault(f"{value:.2f}", []).append((label, value))  # a line for those that would lie on each other
    lines = "".join(
        frame.level(group[0][1], f"{', '.join(label for label, _ in group)} {text}", texts)
        for text, group in by_value.items()
    )
    return svg(name, frame.axes(), lines, frame.line(points, "curve"), bars, frame.dots(points), values)


def loss_svg(training: Points, validation: Points) -> str:
    """Loss over steps: training (smoothed, thin) and validation at fixed noise (dots)."""
    smoothed = _smooth(training)
    frame = Frame.around(smoothed, validation)
    return svg(
        "loss", frame.axes(), frame.line(smoothed, "thin"), frame.line(validation, "curve"), frame.dots(validation)
    )


def _smooth(points: Points, window: int = 9) -> Points:
    """Running mean over this many neighbours."""
    half = window // 2
    losses = [loss for _, loss in points]
    return [
        (step, float(np.mean(losses[max(0, index - half) : index + half + 1])))
        for index, (step, _) in enumerate(points)
    ]
