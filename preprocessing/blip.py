"""BLIP captions, greedy and at one batch shape: the same picture gets the same words in whatever company."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessorPil

from preprocessing.models import frozen, pad_batch, prepare_torch
from preprocessing.settings import CaptionSettings, ComputeSettings
from realcustom.identity import split_revision


class BlipCaptioner:
    """Pictures -> captions."""

    def __init__(self, settings: CaptionSettings, compute: ComputeSettings):
        assert settings.model is not None
        model, revision = split_revision(settings.model)
        self._device = prepare_torch(compute)
        self._settings = settings
        self._model = frozen(BlipForConditionalGeneration.from_pretrained(model, revision=revision), self._device)
        self._processor = BlipImageProcessorPil.from_pretrained(model, revision=revision)
        self._tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Captions of at most `batch_size` RGB pictures."""
        padded = pad_batch(list(pictures), self._settings.batch_size)
        pixel_values = self._processor(padded, return_tensors="pt").pixel_values.to(self._device)
        tokens = self._model.generate(
            pixel_values=pixel_values, max_new_tokens=self._settings.max_new_tokens, num_beams=1, do_sample=False
        )
        texts = self._tokenizer.batch_decode(tokens[: len(pictures)], skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]
