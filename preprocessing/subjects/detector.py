"""Open-vocabulary detection with Grounding DINO: the boxes of a phrase in a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil

from realcustom.identity import split_revision
from realcustom.preprocessing.engine.models import Runtime, pad_batch
from realcustom.preprocessing.settings import SubjectsSettings


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A candidate for a subject."""

    box: tuple[float, float, float, float]  # x0 y0 x1 y1, pixels, within the picture
    score: float  # 0..1

    @property
    def sides(self) -> tuple[float, float]:
        """Width and height, pixels."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The result for one phrase in one picture: each of the model's queries is a candidate or counted as rejected."""

    candidates: list[Detection]  # of at least `min_detection_score`, best first
    below: int  # queries with less


@dataclass(frozen=True, kw_only=True)
class DetectorInput:
    """A picture as the model takes it."""

    pixel_values: torch.Tensor  # (3, H, W)
    pixel_mask: torch.Tensor  # (H, W), 1 where the picture is
    size: tuple[int, int]  # of the picture: width and height, pixels


class Detector:
    """Pictures and one phrase for each -> candidates."""

    def __init__(self, settings: SubjectsSettings, runtime: Runtime):
        assert settings.detector is not None
        model, revision = split_revision(settings.detector)
        self._runtime = runtime
        self._settings = settings
        self._model = runtime.load(GroundingDinoForObjectDetection, settings.detector)
        self._processor = GroundingDinoImageProcessorPil.from_pretrained(model, revision=revision)
        self._tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of the model's input for a picture of that size: those of a batch must be equal.

        A processor that keeps aspect ratios gives inputs of many sizes: they are padded on the longer side to one of four
        lengths (the shorter side's, 4:3, 3:2, the greatest), so that a batch fills up and little of it is padding.
        """
        size = self._processor.size
        if not size.longest_edge:
            return int(size.height), int(size.width)
        short, longest = int(size.shortest_edge), int(size.longest_edge)
        wanted = short * max(width, height) / min(width, height)
        lengths = (short, math.ceil(short * 4 / 3), math.ceil(short * 3 / 2))
        long = next((length for length in lengths if wanted <= length <= longest), longest)
        return (short, long) if width >= height else (long, short)

    def __call__(self, pictures: Sequence[Image.Image], phrases: Sequence[str], batch_size: int) -> list[Detections]:
        """The candidates in at most `batch_size` RGB pictures of one `shape`, each for its phrase."""
        return self.detect([self.prepare(picture) for picture in pictures], phrases, batch_size)

    def prepare(self, picture: Image.Image) -> DetectorInput:
        """The model's input for an RGB picture; made in threads beside the model."""
        height, width = self.shape(*picture.size)
        images = self._processor([picture], pad_size={"height": height, "width": width}, return_tensors="pt")
        return DetectorInput(pixel_values=images.pixel_values[0], pixel_mask=images.pixel_mask[0], size=picture.size)

    def detect(self, prepared: Sequence[DetectorInput], phrases: Sequence[str], batch_size: int) -> list[Detections]:
        """As `__call__`, of prepared pictures."""
        padded = pad_batch(list(prepared), batch_size)
        texts = [f"{phrase.lower().strip()}." for phrase in pad_batch(list(phrases), batch_size)]
        tokens = self._tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self._settings.max_text_tokens,
            return_token_type_ids=True,
            return_tensors="pt",
        )
        pixel_values, pixel_mask = (
            torch.stack([getattr(one, name) for one in padded]).to(self._runtime.device)
            for name in ("pixel_values", "pixel_mask")
        )
        with self._runtime.inference():
            output = self._model(
                pixel_values=pixel_values,
                pixel_mask=pixel_mask,
                input_ids=tokens.input_ids.to(self._runtime.device),
                attention_mask=tokens.attention_mask.to(self._runtime.device),
                token_type_ids=tokens.token_type_ids.to(self._runtime.device),
            )
        scores = output.logits.float().sigmoid().amax(dim=-1).cpu().numpy()  # (B, queries): best token of the phrase
        boxes = output.pred_boxes.float().cpu().numpy()  # (B, queries, 4): centre x, y, width, height in 0..1
        return [self._detections(scores[i], boxes[i], one.size) for i, one in enumerate(prepared)]

    def _detections(self, scores: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> Detections:
        half = boxes[:, 2:] / 2
        corners = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1).clip(0, 1)
        corners *= np.array([*size, *size], dtype=corners.dtype)
        found = []
        for index in np.argsort(-scores, kind="stable"):
            if scores[index] < self._settings.min_detection_score:
                break
            x0, y0, x1, y1 = (float(value) for value in corners[index])
            found.append(Detection(box=(x0, y0, x1, y1), score=float(scores[index])))
        return Detections(candidates=found, below=len(scores) - len(found))


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes x0 y0 x1 y1; 0 where both are empty."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    intersection = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = areas[0] + areas[1] - intersection
    return intersection / union if union > 0 else 0.0
