"""Neural scores of a picture: CLIP's image-text similarity, and small linear heads on its image embedding."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from realcustom.errors import UsageError
from realcustom.identity import split_revision
from realcustom.model_cache import local
from realcustom.preprocessing.engine.models import Runtime, pad_batch
from realcustom.preprocessing.settings import JUDGED, ScoreSettings

_PROBABILITIES = ("nsfw", "watermark")  # heads that end in a sigmoid; the aesthetic score is the plain value


class ClipScorer:
    """Pictures and their alt texts -> scores by name, as in the record's `scores`."""

    def __init__(self, settings: ScoreSettings, runtime: Runtime):
        assert settings.clip is not None
        model, revision = split_revision(settings.clip)
        self._runtime = runtime
        self._model = runtime.load(CLIPModel, settings.clip)
        self._processor = CLIPImageProcessorPil.from_pretrained(model, revision=revision)
        self._tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        self._length = self._model.config.text_config.max_position_embeddings
        self._heads = load_heads(settings.heads, self._model.config.projection_dim) if settings.heads else {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scores that it gives."""
        return ("image_text", *self._heads)

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        """The model's input, (3, R, R)."""
        pixel_values: torch.Tensor = self._processor([picture], return_tensors="pt").pixel_values
        return pixel_values[0]

    def __call__(
        self, prepared: Sequence[torch.Tensor], texts: Sequence[str | None], batch_size: int
    ) -> list[dict[str, float]]:
        """Scores of at most `batch_size` pictures. `image_text` (cosine, -1..1) only where there is a text."""
        words = pad_batch([text or "" for text in texts], batch_size)
        tokens = self._tokenizer(
            words, padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
        )
        pixel_values = torch.stack(pad_batch(list(prepared), batch_size))
        with self._runtime.inference():
            output = self._model(
                input_ids=tokens.input_ids.to(self._runtime.device),
                attention_mask=tokens.attention_mask.to(self._runtime.device),
                pixel_values=pixel_values.to(self._runtime.device),
            )
        image_embeds = output.image_embeds.float().cpu().numpy()  # (B, D), L2-normalised
        text_embeds = output.text_embeds.float().cpu().numpy()  # (B, D), L2-normalised
        return [self._scores(image_embeds[i], text_embeds[i] if texts[i] else None) for i in range(len(prepared))]

    def _scores(self, image_embed: np.ndarray, text_embed: np.ndarray | None) -> dict[str, float]:
        scores = {}
        for name, (weight, bias) in self._heads.items():
            value = float(image_embed @ weight + bias)
            scores[name] = 1 / (1 + float(np.exp(-value))) if name in _PROBABILITIES else value
        if text_embed is not None:
            scores["image_text"] = float(image_embed @ text_embed)
        return scores


def load_heads(folder: str, embed_dim: int) -> dict[str, tuple[np.ndarray, float]]:
    """Heads of `folder`/heads.safetensors, which may be in a store: name -> (weight (D,), bias).

    Raises UsageError for an unknown or incomplete head, or one for another embedding size.
    """
    path = posixpath.join(local(folder), "heads.safetensors")
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise UsageError(f"score.heads: no file at {path}") from error
    heads = {}
    for name in sorted({key.split(".")[0] for key in tensors}):
        keys = {f"{name}.weight", f"{name}.bias"}
        if name not in JUDGED or keys != {key for key in tensors if key.split(".")[0] == name}:
            raise UsageError(f"{path}: expected weight and bias of {', '.join(JUDGED)}, found {', '.join(tensors)}")
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        if weight.shape != (1, embed_dim):
            raise UsageError(f"{path}: {name}.weight is {weight.shape}, score.clip embeds in {embed_dim} dimensions")
        heads[name] = (weight[0].astype(np.float64), float(bias[0]))
    return heads
