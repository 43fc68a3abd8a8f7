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


@dataclass(frozen=True, kw_only=True)
class SegmenterInput:
    """A picture as SAM takes it."""

    pixel_values: torch.Tensor  # (3, R, R)
    original_size: torch.Tensor  # (2,) height and width, pixels
    reshaped_size: torch.Tensor  # (2,) the same after the processor's resize


@dataclass(frozen=True, kw_only=True)
class _Embedded:
    """What SAM's image encoder saw of one picture."""

    embedding: torch.Tensor  # (C, h, w)
    picture: SegmenterInput


class Segmenter:
    """Pictures and boxes in them -> masks. The image encoder, nearly all of SAM's time, runs once for a picture."""

    def __init__(self, settings: SubjectsSettings, runtime: Runtime):
        assert settings.segmenter is not None
        model, revision = split_revision(settings.segmenter)
        self._runtime = runtime
        self._model = runtime.load(SamModel, settings.segmenter)
        self._processor = SamProcessor(SamImageProcessorPil.from_pretrained(model, revision=revision))

    def __call__(
        self, pictures: Sequence[Image.Image], boxes: Sequence[tuple[float, float, float, float]], batch_size: int
    ) -> list[Segment]:
        """Masks of any number of boxes (x0 y0 x1 y1, pixels), each with its RGB picture; a picture may come again."""
        prepared = {id(picture): self.prepare(picture) for picture in pictures}
        return self.segment([prepared[id(picture)] for picture in pictures], boxes, batch_size)

    def prepare(self, picture: Image.Image) -> SegmenterInput:
        """The model's input for an RGB picture; made in threads beside the model."""
        inputs = self._processor([picture], return_tensors="pt")
        return SegmenterInput(
            pixel_values=inputs.pixel_values[0],
            original_size=inputs.original_sizes[0],
            reshaped_size=inputs.reshaped_input_sizes[0],
        )

    def segment(
        self, prepared: Sequence[SegmenterInput], boxes: Sequence[tuple[float, float, float, float]], batch_size: int
    ) -> list[Segment]:
        """As `__call__`, of prepared pictures."""
        distinct = list({id(picture): picture for picture in prepared}.values())
        embedded: dict[int, _Embedded] = {}
        for start in range(0, len(distinct), batch_size):
            some = distinct[start : start + batch_size]
            embedded |= zip(map(id, some), self._embed(some, batch_size), strict=True)
        found: list[Segment] = []
        for start in range(0, len(boxes), batch_size):
            rows = slice(start, start + batch_size)
            found += self._decode([embedded[id(picture)] for picture in prepared[rows]], boxes[rows], batch_size)
        return found

    def _embed(self, pictures: Sequence[SegmenterInput], batch_size: int) -> list[_Embedded]:
        pixel_values = torch.stack([picture.pixel_values for picture in pad_batch(list(pictures), batch_size)])
        with self._runtime.inference():
            embeddings = self._model.get_image_embeddings(pixel_values.to(self._runtime.device))  # (B, C, h, w)
        pairs = zip(embeddings[: len(pictures)], pictures, strict=True)
        return [_Embedded(embedding=embedding, picture=picture) for embedding, picture in pairs]

    def _decode(
        self, pictures: Sequence[_Embedded], boxes: Sequence[tuple[float, float, float, float]], batch_size: int
    ) -> list[Segment]:
        """Masks of at most `batch_size` boxes, each in its picture."""
        scaled = []  # as SamProcessor does it: in pixels of the resized picture
        for one, box in zip(pictures, boxes, strict=True):
            scale = one.picture.reshaped_size.double() / one.picture.original_size.double()  # (2,): y, x
            scaled.append(torch.tensor(box, dtype=torch.float64) * scale.flip(0).repeat(2))
        embeddings = torch.stack(pad_batch([one.embedding for one in pictures], batch_size))
        prompts = torch.stack(pad_batch(scaled, batch_size))[:, None]  # (B, 1, 4)
        with self._runtime.inference():
            output = self._model(
                image_embeddings=embeddings,
                input_boxes=prompts.to(self._runtime.device, torch.float32),
                multimask_output=False,  # a box is not ambiguous, unlike a point
            )
        masks = self._processor.post_process_masks(
            output.pred_masks[: len(pictures)].float().cpu(),
            torch.stack([one.picture.original_size for one in pictures]),
            torch.stack([one.picture.reshaped_size for one in pictures]),
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
