"""The influence mask over the steps of a drawing, as one small picture: where the subject could act, and when."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

MOMENTS = 8  # steps that are shown, the first and the last among them


def film_of(masks: Sequence[tuple[Tensor, ...]], row: int) -> bytes | None:
    """PNG, grey: a column for each of up to `MOMENTS` steps, from the first to the last, a line for each subject.

    Args:
        masks: of each step, of each subject, (B, 1, h, w) in [0, 1].
        row: of the batch.
    Returns:
        None where no step had a mask.
    """
    if not masks:
        return None
    steps = np.unique(np.linspace(0, len(masks) - 1, MOMENTS).round().astype(int))
    columns = [np.concatenate([mask[row, 0].float().cpu().numpy() for mask in masks[step]]) for step in steps]
    grey = np.concatenate(columns, axis=1)  # (subjects * h, moments * w)
    buffer = io.BytesIO()
    Image.fromarray((grey * 255).round().clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
