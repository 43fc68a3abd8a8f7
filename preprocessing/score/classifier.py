"""Scores of image classification models of any architecture: the probability of the label with the score's name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from realcustom.errors import UsageError
from realcustom.identity import split_revision
from realcustom.preprocessing.engine.model_check import find_label
from realcustom.preprocessing.engine.models import Runtime, pad_batch

_SIZES = ((64, 64), (96, 64), (64, 96))


class Classifier:
    """Pictures -> a score by its name, the probability 0..1 of the label of that name, case ignored."""

    def __init__(self, score: str, model: str, runtime: Runtime):
        name, revision = split_revision(model)
        self._runtime = runtime
        self._model = runtime.load(AutoModelForImageClassification, model)
        # the image processor of transformers that needs no torchvision, so that scores do not depend on it
        self._processor = AutoImageProcessor.from_pretrained(name, revision=revision, backend="pil")
        self._is_multi_label = self._model.config.problem_type == "multi_label_classification"
        self._check_shapes(model)
        self._score, self._label = score, find_label(self._model.config.id2label, score, f"score.{score}", model)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the score that it gives."""
        return (self._score,)

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        """The model's input, (3, R, R)."""
        pixel_values: torch.Tensor = self._processor([picture], return_tensors="pt").pixel_values
        return pixel_values[0]

    def __call__(
        self, prepared: Sequence[torch.Tensor], texts: Sequence[str | None], batch_size: int
    ) -> list[dict[str, float]]:
        """Scores of at most `batch_size` pictures; their texts do not matter."""
        pixel_values = torch.stack(pad_batch(list(prepared), batch_size))
        with self._runtime.inference():
            logits = self._model(pixel_values=pixel_values.to(self._runtime.device)).logits  # (B, labels)
        normalise = torch.sigmoid if self._is_multi_label else partial(torch.softmax, dim=-1)
        probabilities = normalise(logits.float())[: len(prepared), self._label].cpu().tolist()
        return [{self._score: probability} for probability in probabilities]

    def _check_shapes(self, model: str) -> None:
        """Raise UsageError if pictures of different shapes would not fit into one batch."""
        shapes = {self._processor(Image.new("RGB", size), return_tensors="pt").pixel_values.shape for size in _SIZES}
        if len(shapes) > 1:
            raise UsageError(
                f"{model} brings pictures of different shapes to {' and '.join(map(str, shapes))}: no batch"
            )
