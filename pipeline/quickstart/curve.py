"""The curve of a training run as an SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def curve_svg(
    training: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]], width: int = 900, height: int = 260
) -> str:
    """Loss over steps: training (smoothed, thin) and validation at fixed noise (dots), as an SVG with labelled axes."""
    values = [loss for _, loss in [*_smooth(training), *validation]]
    low, high = min(values), max(values)
    low, high = low - 0.08 * (high - low + 1e-9), high + 0.08 * (high - low + 1e-9)
    last = max(step for step, _ in [*training, *validation]) or 1
    left, bottom = 70, height - 34

    def place(point: tuple[int, float]) -> tuple[float, float]:
        step, loss = point
        return left + (width - left - 16) * step / last, bottom - (bottom - 12) * (loss - low) / (high - low)

    def line(points: Sequence[tuple[int, float]], style: str) -> str:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, points))
        return f'<polyline points="{joined}" fill="none" {style}/>'

    marks = []
    for share in (0.0, 0.5, 1.0):
        loss, step = low + share * (high - low), round(share * last)
        y, x = place((0, loss))[1], place((step, low))[0]
        marks.append(f'<line x1="{left}" x2="{width - 16}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e7ec"/>')
        marks.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{loss:.4f}</text>')
        anchor = "end" if share == 1 else "middle"
        marks.append(f'<text x="{x:.1f}" y="{height - 12}" text-anchor="{anchor}">step {step}</text>')
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#3056d3"/>' for x, y in map(place, validation)]
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="loss over training steps" '
        'style="width:100%;font:12px system-ui;fill:#667085">'
        + "".join(marks)
        + line(_smooth(training), 'stroke="#b9c6f2" stroke-width="1.5"')
        + line(validation, 'stroke="#3056d3" stroke-width="2"')
        + "".join(dots)
        + f'<text x="{width - 20}" y="22" text-anchor="end">'
        "dots: validation at fixed noise; thin line: training, smoothed</text></svg>"
    )


def _smooth(points: Sequence[tuple[int, float]], window: int = 9) -> list[tuple[int, float]]:
    """Running mean over this many neighbours."""
    half = window // 2
    losses = [loss for _, loss in points]
    return [
        (step, float(np.mean(losses[max(0, index - half) : index + half + 1])))
        for index, (step, _) in enumerate(points)
    ]
