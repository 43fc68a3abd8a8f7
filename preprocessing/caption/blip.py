"""BLIP captions, greedy and at one batch shape: a picture's caption does not depend on the rest of its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessorPil

from realcustom.identity import split_revision
from realcustom.preprocessing.engine.models import Runtime, pad_batch
from realcustom.preprocessing.settings import CaptionSettings


class BlipCaptioner:
    """Pictures -> captions."""

    def __init__(self, settings: CaptionSettings, runtime: Runtime):
        assert settings.model is not None
        model, revision = split_revision(settings.model)
        self._runtime = runtime
        self._longest = settings.max_new_tokens
        self._model = runtime.load(BlipForConditionalGeneration, settings.model)
        self._processor = BlipImageProcessorPil.from_pretrained(model, revision=revision)
        self._tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)

    def __call__(self, pictures: Sequence[Image.Image], batch_size: int) -> list[str]:
        """Captions of at most `batch_size` RGB pictures."""
        return self.caption([self.prepare(picture) for picture in pictures], batch_size)

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        """The model's input for an RGB picture, (3, R, R); made in threads beside the model."""
        pixel_values: torch.Tensor = self._processor([picture], return_tensors="pt").pixel_values
        return pixel_values[0]

    def caption(self, prepared: Sequence[torch.Tensor], batch_size: int) -> list[str]:
        """Captions of at most `batch_size` prepared pictures."""
        tokens = self._generate(pad_batch(list(prepared), batch_size))
        texts = self._tokenizer.batch_decode(tokens[: len(prepared)], skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def try_batch(self, pictures: Sequence[Image.Image]) -> None:
        """One batch, every caption of the greatest length allowed.

        Raises torch.OutOfMemoryError where it does not fit.
        """
        self._generate([self.prepare(picture) for picture in pictures], min_new_tokens=self._longest)

    def _generate(self, prepared: Sequence[torch.Tensor], min_new_tokens: int | None = None) -> torch.Tensor:
        pixel_values = torch.stack(list(prepared)).to(self._runtime.device)
        with self._runtime.inference():
            tokens: torch.Tensor = self._model.generate(
                pixel_values=pixel_values,
                max_new_tokens=self._longest,
                min_new_tokens=min_new_tokens,
                num_beams=1,
                do_sample=False,
            )
        return tokens
