"""A subject's crop as a vector whose cosine with another's says how alike they look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, CLIPVisionModel, Dinov2Model, Dinov2WithRegistersModel

from realcustom.errors import UsageError
from realcustom.identity import split_revision
from realcustom.preprocessing.engine.models import Runtime, pad_batch
from realcustom.preprocessing.settings import ViewsSettings
from realcustom.reference import square
from realcustom.settings import Fit

_CLASSES: Mapping[str, Any] = {
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
}


class Embedder:
    """Crops -> vectors of length 1: the encoder's class token beside the mean of its patches, as DINOv2's linear probes."""

    def __init__(self, settings: ViewsSettings, runtime: Runtime):
        assert settings.encoder is not None
        name, revision = split_revision(settings.encoder)
        kind = AutoConfig.from_pretrained(name, revision=revision).model_type
        if kind not in _CLASSES:
            raise UsageError(
                f"views.encoder: {settings.encoder} is a model of type '{kind}', none of {', '.join(_CLASSES)}"
            )
        self._runtime = runtime
        self._model = runtime.load(_CLASSES[kind], settings.encoder)
        self._processor = AutoImageProcessor.from_pretrained(name, revision=revision, backend="pil")
        self._patches = 1 + int(getattr(self._model.config, "num_register_tokens", 0))  # tokens before the patches

    def __call__(self, crops: Sequence[Image.Image], batch_size: int) -> np.ndarray:
        """Of at most `batch_size` RGB pictures: float32 (crops, 2 D), rows of length 1."""
        squares = [square(crop, Fit.PAD) for crop in pad_batch(list(crops), batch_size)]
        side = self._processor.crop_size or self._processor.size
        pixel_values = self._processor(
            squares, size={"height": side["height"], "width": side["width"]}, do_center_crop=False, return_tensors="pt"
        ).pixel_values  # nothing is cropped: the processor's own resize would be larger than its crop
        with self._runtime.inference():
            tokens = self._model(pixel_values=pixel_values.to(self._runtime.device)).last_hidden_state.float()
        parts = (tokens[:, 0], tokens[:, self._patches :].mean(1))  # (B, D) each
        vectors = torch.cat([torch.nn.functional.normalize(part, dim=-1) for part in parts], 1) / 2**0.5
        found: np.ndarray = vectors[: len(crops)].cpu().numpy()
        return found
