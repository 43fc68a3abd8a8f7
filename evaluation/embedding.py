"""CLIP and DINO as functions from pictures and texts to unit vectors, by transformers' classes and their own processors.

One batch shape: a vector does not depend on its company. Letters: B pictures of a batch, D the width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

from realcustom.errors import UsageError
from realcustom.identity import split_revision
from realcustom.loading import load_refusals

BATCH = 16  # pictures or texts of one forward


class Clip:
    """CLIP's projected embeddings (Radford et al. 2021)."""

    def __init__(self, model: str, device: str | None) -> None:
        self._model = _load(CLIPModel, model, device)
        self._processor, self._tokenizer = _processor(model), _tokenizer(model)
        self._length = self._model.config.text_config.max_position_embeddings
        self.preprocessing = describe(self._processor)

    def pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(n, D), each of length 1."""
        return _in_batches(pictures, self._pictures)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D), each of length 1; a text is cut at the tokenizer's length."""
        return _in_batches(texts, self._texts)

    def _pictures(self, batch: list[Image.Image]) -> torch.Tensor:
        pixels = self._processor(batch, return_tensors="pt").pixel_values.to(self._model.device)
        output = self._model.vision_model(pixel_values=pixels)
        projected: torch.Tensor = self._model.visual_projection(output.pooler_output)
        return projected

    def _texts(self, batch: list[str]) -> torch.Tensor:
        tokens = self._tokenizer(
            batch, padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
        ).to(self._model.device)
        output = self._model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        projected: torch.Tensor = self._model.text_projection(output.pooler_output)
        return projected


class Dino:
    """The class token after the last norm of a vision transformer: DINO ViT-S/16 (DreamBooth's), DINOv2."""

    def __init__(self, model: str, device: str | None) -> None:
        self._model = _load(AutoModel, model, device)
        self._processor = _processor(model)
        self.preprocessing = describe(self._processor)

    def pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(n, D), each of length 1."""
        return _in_batches(pictures, self._pictures)

    def _pictures(self, batch: list[Image.Image]) -> torch.Tensor:
        pixels = self._processor(batch, return_tensors="pt").pixel_values.to(self._model.device)
        states: torch.Tensor = self._model(pixel_values=pixels).last_hidden_state  # (B, 1 + S, D)
        return states[:, 0]


def describe(processor: Any) -> str:
    """What an image processor does with a picture's size, in words: `shortest side 224, bicubic, centre 224 x 224`."""
    parts = []
    if getattr(processor, "do_resize", False):
        size = dict(processor.size)
        sides = {name: value for name, value in size.items() if value is not None}
        wanted = (
            f"shortest side {sides['shortest_edge']}"
            if "shortest_edge" in sides
            else f"{sides['width']} x {sides['height']}"
        )
        parts.append(f"{wanted}, {Image.Resampling(processor.resample).name.lower()}")
    if getattr(processor, "do_center_crop", False):
        crop = dict(processor.crop_size)
        parts.append(f"centre {crop['width']} x {crop['height']}")
    return ", ".join(parts) or "as it is"


def _load(kind: Any, model: str, device: str | None) -> Any:
    name, revision = split_revision(model)
    with load_refusals("model of a metric", model):
        loaded, report = kind.from_pretrained(name, revision=revision, dtype=torch.float32, output_loading_info=True)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))  # no pooler is read
    if missing:
        raise UsageError(f"the model of a metric {model} lacks weights: {', '.join(missing[:4])}")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return loaded.to(where).eval().requires_grad_(False)


def _processor(model: str) -> Any:
    name, revision = split_revision(model)
    with load_refusals("image processor of", model):
        return AutoImageProcessor.from_pretrained(name, revision=revision, backend="pil")


def _tokenizer(model: str) -> Any:
    name, revision = split_revision(model)
    with load_refusals("tokenizer of", model):
        return AutoTokenizer.from_pretrained(name, revision=revision)


def _in_batches(items: Sequence[Any], embed: Any) -> np.ndarray:
    rows = []
    with torch.inference_mode(), _fixed_arithmetic():
        for start in range(0, len(items), BATCH):
            batch = list(items[start : start + BATCH])
            filled = [*batch, *[batch[0]] * (BATCH - len(batch))]
            rows.append(embed(filled)[: len(batch)].double().cpu().numpy())
    vectors = np.concatenate(rows)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@contextlib.contextmanager
def _fixed_arithmetic() -> Iterator[None]:
    """A context in which a GPU computes in full fp32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
