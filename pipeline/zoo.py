"""Measures of the shipped models; those of preprocessing are run by the classes of its stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from realcustom.pipeline import recipes
from realcustom.preprocessing.caption.blip import BlipCaptioner
from realcustom.preprocessing.engine.models import Runtime
from realcustom.preprocessing.settings import PreprocessSettings
from realcustom.preprocessing.subjects.detector import Detector
from realcustom.preprocessing.subjects.segmenter import Segmenter
from realcustom.sprites import inspect_zoo
from realcustom.sprites.inspect_zoo import Box

BATCH = 32  # pictures of one forward

T = TypeVar("T")


def measure_zoo(images: int = 256, seed: int = 0) -> dict[str, float]:
    """Measures of every shipped model on `images` drawings, by name; see `sprites.inspect_zoo`."""
    settings = recipes.sprites().preprocess
    return inspect_zoo.inspect_zoo(
        images, seed, detector=detector(settings), segmenter=segmenter(settings), captioner=captioner(settings)
    )


def detector(settings: PreprocessSettings) -> inspect_zoo.Detector:
    """The detector of the stage `subjects`: boxes of at least its `min_detection_score`, best first."""
    model = Detector(settings.subjects, Runtime(settings.compute))

    def detect(pictures: list[Image.Image], nouns: list[str]) -> list[list[Box]]:
        found = _in_batches(model, pictures, nouns)
        return [[candidate.box for candidate in detections.candidates] for detections in found]

    return detect


def segmenter(settings: PreprocessSettings) -> inspect_zoo.Segmenter:
    """The segmenter of the stage `subjects`: a mask for each box, and its own estimate of the mask's IoU."""
    model = Segmenter(settings.subjects, Runtime(settings.compute))

    def segment(pictures: list[Image.Image], boxes: list[Box]) -> list[tuple[np.ndarray, float]]:
        return [(found.mask, found.score) for found in _in_batches(model, pictures, boxes)]

    return segment


def captioner(settings: PreprocessSettings) -> inspect_zoo.Captioner:
    """The captioner of the stage `caption`."""
    model = BlipCaptioner(settings.caption, Runtime(settings.compute))

    def caption(pictures: list[Image.Image]) -> list[str]:
        return _in_batches(model, pictures)

    return caption


def _in_batches(model: Callable[..., list[T]], *inputs: Sequence[Any]) -> list[T]:
    """The model's answers to pictures and a question for each, `BATCH` of them at a time."""
    answers: list[T] = []
    for start in range(0, len(inputs[0]), BATCH):
        answers += model(*(values[start : start + BATCH] for values in inputs), BATCH)
    return answers
