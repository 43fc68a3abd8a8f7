"""Which image encoder there is, and loading it: all its weights, and its own image processor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    SiglipVisionModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from realcustom.encoders import ClipEncoder, ImageEncoder, SiglipDinoEncoder, count_views
from realcustom.errors import UsageError
from realcustom.identity import model_identity, split_models, split_revision
from realcustom.loading import LoadOptions, load_refusals
from realcustom.settings import EncoderKind, ImageEncoderSettings

__all__ = ["ImageEncoder", "count_local_views", "feature_width", "load_image_encoder"]

_CLIP: Mapping[str, Any] = {"clip": CLIPVisionModel, "clip_vision_model": CLIPVisionModel}
_SIGLIP: Mapping[str, Any] = {"siglip": SiglipVisionModel, "siglip_vision_model": SiglipVisionModel}
_DINO: Mapping[str, Any] = {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel}


def load_image_encoder(
    model: str,
    settings: ImageEncoderSettings,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    options: LoadOptions | None = None,
) -> ImageEncoder:
    """Load the encoder of `settings.kind`.

    Args:
        model: folder or hub id (`id@revision`) of a CLIP model or CLIP vision model; for siglip_dino two of them,
            "SIGLIP,DINOV2", of a SigLIP (vision) model and a DINOv2, with registers or without.
        device: None = the CPU.
        options: of a download.
    Raises:
        UsageError: the models are not of the required kinds, lack weights, or do not fit the settings.
    """
    names, identity = split_models(model), model_identity(model)
    hub = (options or LoadOptions()).hub()
    if settings.kind is EncoderKind.CLIP:
        if len(names) != 1:
            raise UsageError(f"image_encoder.kind clip takes one model, got {len(names)}: {model}")
        wanted = "image_encoder.kind clip takes CLIP vision models"
        encoder, processor = _load(names[0], _CLIP, CLIPImageProcessorPil, wanted, device, dtype, hub)
        return ClipEncoder(encoder, processor, identity, settings)
    siglip_name, dino_name = _two(names)
    wanted = "image_encoder.kind siglip_dino takes a SigLIP vision model first and a DINOv2 second"
    siglip, siglip_processor = _load(siglip_name, _SIGLIP, SiglipImageProcessorPil, wanted, device, dtype, hub)
    dino, dino_processor = _load(dino_name, _DINO, BitImageProcessorPil, wanted, device, dtype, hub)
    return SiglipDinoEncoder(siglip, dino, (siglip_processor, dino_processor), identity, settings)


def feature_width(model: str) -> int:
    """`embed_dim` of the encoder that `load_image_encoder` would load, from its configuration alone."""
    configs = [_config(name) for name in split_models(model)]
    return sum(int(getattr(config, "vision_config", config).hidden_size) for config in configs)


def count_local_views(model: str, settings: ImageEncoderSettings) -> int:
    """`local_views` of the encoder that `load_image_encoder` would load, from its configuration alone."""
    if settings.kind is EncoderKind.CLIP:
        return 0
    config = _config(_two(split_models(model))[0])
    return count_views(int(getattr(config, "vision_config", config).image_size), settings)


def _load(
    model: str,
    classes: Mapping[str, Any],
    processor: Any,
    wanted: str,
    device: torch.device | str | None,
    dtype: torch.dtype,
    hub: Mapping[str, Any],
) -> tuple[Any, Any]:
    """A model of one of the classes, by its `model_type`, and its image processor."""
    found = _config(model, hub).model_type
    if found not in classes:
        raise UsageError(f"the image encoder {model} is a '{found}' model; {wanted}")
    name, revision = split_revision(model)
    with load_refusals("image encoder", model):
        images = processor.from_pretrained(name, revision=revision, **hub)
        encoder, report = classes[found].from_pretrained(
            name, revision=revision, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **hub
        )
    mismatched = [key for key, *_ in report["mismatched_keys"]]
    for problem, keys in (("lacks weights", report["missing_keys"]), ("has weights of another shape", mismatched)):
        if keys:  # transformers would initialise them at random
            raise UsageError(f"the image encoder {model} {problem}: {', '.join(sorted(keys)[:4])}")
    return encoder.to(device or "cpu"), images


def _config(model: str, hub: Mapping[str, Any] | None = None) -> Any:
    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise UsageError(f"no image encoder at {model}: give a folder or a hub id")
    name, revision = split_revision(model)
    try:
        with load_refusals("image encoder", model):
            return AutoConfig.from_pretrained(name, revision=revision, **(hub or {}))
    except UsageError:
        raise
    except ValueError as error:  # of a folder without a `model_type`, or with one that transformers does not know
        raise UsageError(f"the image encoder {model} is no model that transformers knows: {error}") from error


def _two(names: list[str]) -> tuple[str, str]:
    if len(names) != 2:
        raise UsageError(
            f'image_encoder.kind siglip_dino takes two models, "SIGLIP,DINOV2", got {len(names)}: {",".join(names)}'
        )
    return names[0], names[1]
