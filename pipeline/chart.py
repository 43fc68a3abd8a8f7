"""Charts over the steps of a training run as SVGs. Their colours are the page's own, so that they follow its light or dark
mode; the page has `STYLE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

import numpy as np

WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 428, 14, 244  # of the area that is drawn in
Points = Sequence[tuple[int, float]]
STYLE = """
svg { width: 100%; height: auto; font: 13px system-ui, sans-serif; fill: var(--soft); display: block; }
svg .axis { stroke: var(--line); } svg .level { stroke: var(--ink); stroke-dasharray: 5 4; } svg .label { fill: var(--ink); }
svg .value { fill: var(--ink); font-weight: 600; stroke: var(--paper); stroke-width: 4px; paint-order: stroke; }
svg polyline { fill: none; } svg .curve { stroke: var(--accent); stroke-width: 2.5; }
svg .thin { stroke: var(--bar); stroke-width: 1.5; } svg .interval { stroke: var(--accent); stroke-width: 2; }
svg .dot { fill: var(--accent); }
"""


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


@dataclass(frozen=True, kw_only=True)
class Frame:
    """From steps and values to places in the picture."""

    last: int  # step at the right edge
    low: float  # value at the bottom
    high: float

    def x(self, step: float) -> float:
        """Of a step."""
        return LEFT + (RIGHT - LEFT) * step / self.last

    def y(self, value: float) -> float:
        """Of a value."""
        return BOTTOM - (BOTTOM - TOP) * (value - self.low) / (self.high - self.low)

    def axes(self, digits: int) -> str:
        """Three labelled values and steps, with lines across."""
        parts = []
        for share in (0.0, 0.5, 1.0):
            value = self.low + share * (self.high - self.low)
            y = self.y(value)
            parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.{digits}f}</text>')
        for step, anchor in {self.last: "end", round(self.last / 2): "middle", 0: "middle"}.items():  # each number once
            parts.append(f'<text x="{self.x(step):.1f}" y="{BOTTOM + 22}" text-anchor="{anchor}">step {step}</text>')
        return "".join(parts)

    def line(self, points: Points, kind: str) -> str:
        """A line through points."""
        joined = " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in points)
        return f'<polyline class="{kind}" points="{joined}"/>'

    def dots(self, points: Points) -> str:
        """A dot at each point."""
        return "".join(
            f'<circle class="dot" cx="{self.x(step):.1f}" cy="{self.y(value):.1f}" r="5"/>' for step, value in points
        )

    def level(self, value: float, label: str) -> str:
        """A broken line across at `value`, with its label below it: at the right end of a low one, at the left of a high
        one, where a rising curve is not.
        """
        y = self.y(value)
        low = value < (self.low + self.high) / 2
        place = f'x="{RIGHT}" text-anchor="end"' if low else f'x="{LEFT + 4}"'
        return (
            f'<line class="level" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="label" {place} y="{y + 15:.1f}">{escape(label)}</text>'
        )


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
    values = "".join(
        f'<text class="value" x="{frame.x(step) + (-9 if step == frame.last else 9):.1f}" y="{frame.y(value.mean) + 16:.1f}" '
        f'text-anchor="{"end" if step == frame.last else "start"}">{value.mean:.2f}</text>'
        for step, value in learned
    )
    lines = "".join(frame.level(value, f"{label} {value:.2f}") for label, value in levels)
    return _svg(
        f"{name} over training steps",
        frame.axes(1) + lines + frame.line(points, "curve") + bars + frame.dots(points) + values,
    )


def loss_svg(training: Points, validation: Points) -> str:
    """Loss over steps: training (smoothed, thin) and validation at fixed noise (dots)."""
    smoothed = _smooth(training)
    values = [loss for _, loss in [*smoothed, *validation]]
    low, high = min(values), max(values)
    room = 0.08 * (high - low + 1e-9)
    frame = Frame(last=max(step for step, _ in [*training, *validation]) or 1, low=low - room, high=high + room)
    return _svg(
        "loss over training steps",
        frame.axes(3) + frame.line(smoothed, "thin") + frame.line(validation, "curve") + frame.dots(validation),
    )


def _svg(label: str, content: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{content}</svg>'


def _smooth(points: Points, window: int = 9) -> Points:
    """Running mean over this many neighbours."""
    half = window // 2
    losses = [loss for _, loss in points]
    return [
        (step, float(np.mean(losses[max(0, index - half) : index + half + 1])))
        for index, (step, _) in enumerate(points)
    ]
