"""Thresholds over scores: cheap, to be changed at will, the scores being computed once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from realcustom.preprocessing.settings import SelectSettings

COLUMNS = ["width", "height", "scores"]  # what thresholds read


def failed_threshold(table: pa.Table, settings: SelectSettings) -> list[str | None]:
    """For each row the name of the first threshold that it fails, or None. A null score passes."""
    width, height = integers(table["width"]), integers(table["height"])
    short, long = np.minimum(width, height), np.maximum(width, height)
    scores = table["scores"].combine_chunks()
    checks: list[tuple[str, np.ndarray]] = [
        ("too_small", short < settings.min_side),
        ("aspect_ratio", long > settings.max_aspect * short),
    ]
    for name, lowest in (
        ("sharpness", settings.min_sharpness),
        ("aesthetic", settings.min_aesthetic),
        ("image_text", settings.min_image_text),
    ):
        if lowest is not None:
            checks.append((f"low_{name}", _score(scores, name) < lowest))
    for name, highest in (("nsfw", settings.max_nsfw), ("watermark", settings.max_watermark)):
        if highest is not None:
            checks.append((f"high_{name}", _score(scores, name) > highest))
    reasons: list[str | None] = [None] * table.num_rows
    for reason, failed in reversed(checks):  # the first check wins
        for index in np.flatnonzero(failed):
            reasons[index] = reason
    return reasons


def explain(table: pa.Table, index: int, reason: str, settings: SelectSettings) -> str:
    """Why a row fails the threshold of that name: its value, and the limit."""
    width, height = table["width"][index].as_py(), table["height"][index].as_py()
    if reason == "too_small":
        return f"{width} x {height} pixels; select.min_side={settings.min_side}"
    if reason == "aspect_ratio":
        return f"{width} x {height} pixels; select.max_aspect={settings.max_aspect}"
    bound, _, name = reason.partition("_")
    limit = f"{'min' if bound == 'low' else 'max'}_{name}"
    return f"{table['scores'][index][name].as_py():.4g}; select.{limit}={getattr(settings, limit)}"


def integers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of integers as int64."""
    return column.to_numpy().astype(np.int64)


def _score(scores: pa.StructArray, name: str) -> np.ndarray:
    return scores.field(name).to_numpy(zero_copy_only=False).astype(np.float64)  # null -> nan, which fails no check
