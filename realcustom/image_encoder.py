"""The frozen image encoder: a CLIP vision model whose patch tokens carry the subject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from realcustom.identity import model_identity, split_revision
from realcustom.reference import on_white
from realcustom.settings import ImageEncoderSettings


class ImageEncoder:
    """Patch tokens of a hidden state (section 3.1; by default the last but one, without the class token).

    `prepare` makes pixels, `encode` makes tokens; both are the same in training, caches and serving.
    """

    def __init__(self, model: CLIPVisionModel, processor: Any, identity: str, settings: ImageEncoderSettings) -> None:
        self.model = model.requires_grad_(False).eval()
        self.processor, self.identity, self.settings = processor, identity, settings
        layers = model.config.num_hidden_layers
        if not -layers - 1 <= settings.layers[-1] <= layers:
            raise ValueError(f"image_encoder.layers is {list(settings.layers)}, the encoder has {layers} layers")

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        settings: ImageEncoderSettings,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> ImageEncoder:
        """Load from a hub id or folder of a CLIP model or CLIP vision model. Raises ValueError if it is neither."""
        if model.startswith((".", "/", "~")) and not Path(model).is_dir():
            raise ValueError(f"no image encoder at {model}: give a folder or a hub id")
        name, revision = split_revision(model)
        kind = AutoConfig.from_pretrained(name, revision=revision).model_type
        if kind not in ("clip", "clip_vision_model"):
            raise ValueError(
                f"the image encoder {model} is a '{kind}' model; variant realcustom takes CLIP vision models"
            )
        encoder = CLIPVisionModel.from_pretrained(name, revision=revision, dtype=dtype)
        processor = CLIPImageProcessorPil.from_pretrained(name, revision=revision)
        return cls(encoder.to(device) if device is not None else encoder, processor, model_identity(model), settings)

    @property
    def embed_dim(self) -> int:
        """Width of a token."""
        return int(self.model.config.hidden_size)

    def prepare(self, image: Image.Image) -> Tensor:
        """A square picture as the processor scales and normalises it: (3, H, W)."""
        return self.processor(on_white(image), return_tensors="pt").pixel_values[0]

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) -> tokens (B, S, D)."""
        pixel_values = pixel_values.to(self.model.device, self.model.dtype)
        hidden = self.model(pixel_values, output_hidden_states=True).hidden_states[self.settings.layers[-1]]
        return hidden[:, 1:] if self.settings.drop_prefix else hidden
