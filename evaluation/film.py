"""The influence mask over the steps of a drawing, as one small picture: where the subject could act, and when."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

MOMENTS, LINE = 8, 4  # steps that are shown, the first and the last among them; and of those in a line


def film_of(masks: Sequence[tuple[Tensor, ...]], row: int) -> bytes | None:
    """PNG, grey: the masks of up to `MOMENTS` steps in reading order, `LINE` in a line, each subject's lines below another.

    Args:
        masks: of each step, of each subject, (B, 1, h, w) in [0, 1].
        row: of the batch.
    Returns:
        None where no step had a mask.
    """
    if not masks:
        return None
    steps = np.unique(np.linspace(0, len(masks) - 1, MOMENTS).round().astype(int))
    lines = [
        _line([masks[step][subject][row, 0].float().cpu().numpy() for step in steps[start : start + LINE]])
        for subject in range(len(masks[0]))
        for start in range(0, len(steps), LINE)
    ]
    buffer = io.BytesIO()
    Image.fromarray((np.concatenate(lines) * 255).round().clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _line(shown: Sequence[np.ndarray]) -> np.ndarray:
    """Masks (h, w) side by side, black where there are fewer than `LINE`: (h, LINE * w)."""
    joined = np.concatenate(shown, axis=1)
    return np.pad(joined, ((0, 0), (0, LINE * shown[0].shape[1] - joined.shape[1])))
