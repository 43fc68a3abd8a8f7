"""Which words of a prompt can name a subject, and which of them a picture shows, by what preprocessing finds subjects with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from PIL import Image

from realcustom.preprocessing.caption.nouns import find_targets
from realcustom.preprocessing.settings import ComputeSettings, SubjectsSettings
from realcustom.reference import on_white

if TYPE_CHECKING:
    from realcustom.preprocessing.subjects.detector import Detector

MAX_NOUNS = 8  # of a prompt that are looked for, and that a message lists


class Naming:
    """The rule that finds target words in captions, and the detector that looks for them in pictures; on a CPU.

    Args:
        detector: Grounding DINO, folder or hub id; None = pictures are not looked at.
    """

    def __init__(self, detector: str | None) -> None:
        self._detector: Detector | None = None
        if detector is not None:  # torch and transformers only here
            from realcustom.preprocessing.engine.models import Runtime
            from realcustom.preprocessing.subjects.detector import Detector

            # `subjects` has both models or none; the segmenter is not loaded here
            self._detector = Detector(
                SubjectsSettings(detector=detector, segmenter=detector), Runtime(ComputeSettings())
            )
        # one picture at a time, and not in the threads that all else shares: memory stays bounded, and nobody else waits
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="look")

    def nouns(self, prompt: str) -> list[str]:
        """The words that can name a subject, at most MAX_NOUNS."""
        return [target.word for target in find_targets(prompt, (), MAX_NOUNS)]

    async def shown(self, picture: Image.Image, words: Sequence[str]) -> list[str] | None:
        """Those of `words` that the detector finds; None = there is no detector."""
        if self._detector is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._looking, _found, self._detector, picture, words)


def _found(detector: Detector, picture: Image.Image, words: Sequence[str]) -> list[str]:
    prepared = detector.prepare(on_white(picture))
    return [word for word in words if detector.detect([prepared], [word], 1)[0].candidates]
