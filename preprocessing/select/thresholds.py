"""Thresholds over scores: cheap to change, as the scores are computed once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from realcustom.errors import UsageError
from realcustom.preprocessing.settings import SelectSettings

COLUMNS = ["width", "height", "scores"]  # columns that thresholds read


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


def check_scores(settings: SelectSettings, description: dict[str, Any] | None) -> None:
    """Raise UsageError if a threshold is set for a score that the previous stage did not compute.

    Args:
        description: its stage.json; null: a user's own table, whose scores are known when it is read.
    """
    if description is None:
        return
    models = description["models"]
    wanted = {
        "min_aesthetic": (settings.min_aesthetic, ("heads", "aesthetic")),
        "max_nsfw": (settings.max_nsfw, ("heads", "nsfw")),
        "max_watermark": (settings.max_watermark, ("heads", "watermark")),
        "min_image_text": (settings.min_image_text, ("clip",)),
    }
    for name, (value, makers) in wanted.items():
        if value is not None and not any(maker in models for maker in makers):
            without = " and ".join(f"score.{maker}" for maker in makers)
            raise UsageError(f"select.{name}={value} has nothing to judge: score ran without {without}")


def integers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of integers as int64."""
    values: np.ndarray = column.to_numpy().astype(np.int64)
    return values


def _score(scores: pa.StructArray, name: str) -> np.ndarray:
    values: np.ndarray = scores.field(name).to_numpy(zero_copy_only=False).astype(np.float64)
    return values  # null -> nan, which fails no check
