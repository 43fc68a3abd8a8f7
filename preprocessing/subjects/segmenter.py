"""Masks from boxes with SAM (version 1), prompted by the box alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import SamImageProcessorPil, SamModel, SamProcessor

from realcustom.identity import split_revision
from realcustom.preprocessing.engine.models import Runtime, pad_batch
from realcustom.preprocessing.settings import SubjectsSettings


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A subject's mask."""

    mask: np.ndarray  # (H, W) bool, picture coordinates
    score: float  # SAM's own estimate of the mask's IoU


class Segmenter:
    """Pictures and one box for each -> masks."""

    def __init__(self, settings: SubjectsSettings, runtime: Runtime):
        assert settings.segmenter is not None
        model, revision = split_revision(settings.segmenter)
        self._runtime = runtime
        self._model = runtime.load(SamModel, settings.segmenter)
        self._processor = SamProcessor(SamImageProcessorPil.from_pretrained(model, revision=revision))

    def __call__(
        self, pictures: Sequence[Image.Image], boxes: Sequence[tuple[float, float, float, float]], batch_size: int
    ) -> list[Segment]:
        """Masks of at most `batch_size` RGB pictures, each for its box (x0 y0 x1 y1, pixels)."""
        padded = pad_batch(list(pictures), batch_size)
        prompts = [[list(box)] for box in pad_batch(list(boxes), batch_size)]
        inputs = self._processor(padded, input_boxes=prompts, return_tensors="pt")
        with self._runtime.inference():
            output = self._model(
                pixel_values=inputs.pixel_values.to(self._runtime.device),
                input_boxes=inputs.input_boxes.to(self._runtime.device, torch.float32),
                multimask_output=False,  # a box is not ambiguous, unlike a point
            )
        masks = self._processor.post_process_masks(
            output.pred_masks[: len(pictures)].float().cpu(),
            inputs.original_sizes[: len(pictures)],
            inputs.reshaped_input_sizes[: len(pictures)],
        )
        scores = output.iou_scores.float().cpu().numpy()  # (B, 1, 1)
        found = []
        for index, mask in enumerate(masks):
            found.append(Segment(mask=mask.reshape(mask.shape[-2:]).numpy(), score=float(scores[index, 0, 0])))
        return found


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0 y0 x1 y1 in pixels, the end excluded, of a mask (H, W) that is not empty."""
    columns, lines = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(lines[0]), int(columns[-1]) + 1, int(lines[-1]) + 1


def border_contact(mask: np.ndarray) -> float:
    """How much the picture's border cuts a subject: mask pixels on the border over the outline of the mask's box, 0..1."""
    x0, y0, x1, y1 = mask_box(mask)
    touching = int(mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum())
    return touching / (2 * (x1 - x0 + y1 - y0))
