"""The detector and the segmenter of preprocessing as evaluation's segmenter: the best box of the word, and its mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from realcustom.identity import model_identity
from realcustom.preprocessing.settings import PreprocessSettings


class SubjectSegmenter:
    """Finds the subject that a word names by the models of `preprocess.subjects`, which are loaded at the first picture."""

    def __init__(self, settings: PreprocessSettings) -> None:
        subjects = settings.subjects
        models = [model_identity(str(model)) for model in (subjects.detector, subjects.segmenter)]
        self.identity = f"{' '.join(models)} {subjects.min_detection_score}"
        self._settings = settings
        self._models: tuple[object, object] | None = None

    @classmethod
    def of(cls, settings: PreprocessSettings) -> SubjectSegmenter | None:
        """None where the settings name no detector or no segmenter."""
        return cls(settings) if settings.subjects.detector and settings.subjects.segmenter else None

    def __call__(self, pictures: Sequence[Image.Image], words: Sequence[str]) -> list[np.ndarray]:
        """Masks, bool (H, W); all false where the word is not found."""
        from realcustom.preprocessing.engine.models import Runtime
        from realcustom.preprocessing.subjects.detector import Detector
        from realcustom.preprocessing.subjects.segmenter import Segmenter

        if self._models is None:
            runtime = Runtime(self._settings.compute)
            self._models = Detector(self._settings.subjects, runtime), Segmenter(self._settings.subjects, runtime)
        detector, segmenter = self._models
        assert isinstance(detector, Detector) and isinstance(segmenter, Segmenter)
        masks = []
        for picture, word in zip(pictures, words, strict=True):
            found = detector([picture], [word], 1)[0].candidates
            empty = np.zeros((picture.height, picture.width), dtype=bool)
            masks.append(segmenter([picture], [found[0].box], 1)[0].mask if found else empty)
        return masks
