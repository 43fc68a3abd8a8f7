"""Charts over steps as SVGs. Their colours are the page's own, so that they follow its light or dark mode; it has `STYLE`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 66, 452, 12, 234  # of the area that is drawn in
LINE = 14  # height of a line of text
Points = Sequence[tuple[float, float]]
STYLE = """
svg { width: 100%; height: auto; font: 13px system-ui, sans-serif; fill: var(--soft); display: block; }
svg .axis { stroke: var(--line); } svg .level { stroke: var(--ink); stroke-dasharray: 5 4; } svg .label { fill: var(--ink); }
svg .value { fill: var(--ink); font-weight: 600; stroke: var(--paper); stroke-width: 4px; paint-order: stroke; }
svg polyline { fill: none; } svg .curve { stroke: var(--accent); stroke-width: 2; }
svg .thin { stroke: var(--bar); stroke-width: 1.5; } svg .interval { stroke: var(--accent); stroke-width: 2; }
svg .dot { fill: var(--accent); }
"""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """From steps and values to places in the picture."""

    last: float  # step at the right edge
    low: float  # value at the bottom
    high: float

    @classmethod
    def around(cls, *lines: Points) -> Frame:
        """With room above and below some lines, of which at least one has a point."""
        values = [value for line in lines for _, value in line]
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or abs(high) or 1.0
        return cls(last=max(step for line in lines for step, _ in line), low=low - room, high=high + room)

    def x(self, step: float) -> float:
        """Of a step."""
        return LEFT + (RIGHT - LEFT) * step / (self.last or 1)

    def y(self, value: float) -> float:
        """Of a value."""
        return BOTTOM - (BOTTOM - TOP) * (value - self.low) / (self.high - self.low)

    def axes(self) -> str:
        """Some labelled values, with lines across, and three steps."""
        parts = []
        for value, label in ticks(self.low, self.high):
            y = self.y(value)
            parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        places = {round(self.last): "end", round(self.last / 2): "middle", 0: "start"}  # each number once
        for step, anchor in places.items():
            parts.append(f'<text x="{self.x(step):.1f}" y="{BOTTOM + 22}" text-anchor="{anchor}">{step}</text>')
        return "".join(parts)

    def line(self, points: Points, kind: str) -> str:
        """A line through points."""
        joined = " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in points)
        return f'<polyline class="{kind}" points="{joined}"/>'

    def dots(self, points: Points) -> str:
        """A dot at each point."""
        return "".join(
            f'<circle class="dot" cx="{self.x(step):.1f}" cy="{self.y(value):.1f}" r="4"/>' for step, value in points
        )

    def level(self, value: float, label: str, beside: list[tuple[float, float]]) -> str:
        """A broken line across at `value`, with its label below it: at the right end of a low one, at the left of a high
        one, where a rising curve is not.

        Args:
            beside: places of other text, (x, y), where this label is not put; its own place is added.
        """
        y = self.y(value)
        low = value < (self.low + self.high) / 2
        x = RIGHT if low else LEFT + 4
        near = [other_y for other_x, other_y in beside if (other_x > (LEFT + RIGHT) / 2) == low]
        places = [y + move for move in (15, 30, 45, 60, 75, -14, -29) if TOP <= y + move <= BOTTOM]
        text_y = next((each for each in places if all(abs(each - other) >= LINE for other in near)), places[0])
        beside.append((x, text_y))
        return (
            f'<line class="level" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="label" x="{x}" y="{text_y:.1f}" text-anchor="{"end" if low else "start"}">{escape(label)}</text>'
        )


def svg(name: str, *content: str) -> str:
    """A chart of what is drawn in a frame, by its name for a reader who does not see it."""
    label = escape(f"{name} over steps", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(content)}</svg>'


def curve_svg(name: str, points: Points) -> str:
    """One line; of one point, a dot."""
    frame = Frame.around(points)
    return svg(name, frame.axes(), frame.line(points, "curve"), frame.dots(points) if len(points) == 1 else "")


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers between two values, at most five, with their labels."""
    power = 10.0 ** math.floor(math.log10(high - low))
    step = next(size * power for size in (0.2, 0.5, 1, 2, 5) if math.floor((high - low) / (size * power)) <= 4)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [(value, f"{value:.{decimals}f}" if decimals <= 4 else f"{value:.3g}") for value in values]
