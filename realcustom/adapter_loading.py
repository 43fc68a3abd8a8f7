"""An adapter on its base, with its image encoder: the parts that a pipeline is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from realcustom import attention
from realcustom.base import Base
from realcustom.base_loading import IN_MEMORY, load_base
from realcustom.checkpoint import Adapter, load_adapter
from realcustom.errors import UsageError
from realcustom.identity import model_identity, same_content
from realcustom.image_encoder import ImageEncoder, load_image_encoder
from realcustom.loading import LoadOptions
from realcustom.model import RealCustomModel
from realcustom.saving import Saved, saved_in
from realcustom.settings import MethodSettings
from realcustom.store import check_readable
from realcustom.warning import warn


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a pipeline is made of; without an adapter the base alone."""

    base: Base
    settings: MethodSettings
    model: RealCustomModel | None = None
    image_encoder: ImageEncoder | None = None
    checkpoint: Adapter | None = None  # what the adapter was loaded from, without its tensors


def load_parts(
    base: str | Path | DiffusionPipeline,
    adapter: str | Path | None,
    image_encoder: str | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    options: LoadOptions,
) -> Parts:
    """Load them; arguments and errors as `RealCustomPipeline.from_pretrained`."""
    given = isinstance(base, DiffusionPipeline)
    saved = None if given or adapter is not None else saved_in(str(base))
    if saved is not None:
        adapter, image_encoder = saved.adapter, image_encoder or saved.image_encoder
    if adapter is not None:
        check_readable(str(adapter))  # a wrong address is reported at once, an outage is retried
    checkpoint = None if adapter is None else load_adapter(adapter)
    if device is None and not given:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_base(base, device, dtype, options, inpainting=True)
    if checkpoint is None:
        return Parts(base=loaded, settings=MethodSettings())
    attention.check_unused(loaded.unet)
    settings, unet = checkpoint.settings, loaded.unet
    name = _encoder_to_load(checkpoint.image_encoder, image_encoder)
    encoder = load_image_encoder(name, settings.image_encoder, loaded.device, unet.dtype, options)
    _warn_of_others(checkpoint, loaded, encoder, saved)
    model = RealCustomModel(unet, settings, encoder.embed_dim, local_views=encoder.local_views)
    model.load_adapter_state_dict(checkpoint.tensors)
    for module in model.own_modules():
        module.to(loaded.device)  # where a base with offload runs, not where its UNet waits
    return Parts(
        base=loaded,
        settings=settings,
        model=model.requires_grad_(False).eval(),
        image_encoder=encoder,
        checkpoint=replace(checkpoint, tensors={}),
    )


def _encoder_to_load(trained_with: str, given: str | None) -> str:
    if given is not None:
        return given
    if "@sha256-" in trained_with:
        raise UsageError(
            f"the adapter's image encoder is the local folder '{trained_with}': name where it is with image_encoder="
        )
    return trained_with


def _warn_of_others(checkpoint: Adapter, base: Base, encoder: ImageEncoder, saved: Saved | None) -> None:
    """Warn of a base or an image encoder that the adapter was not trained with; those saved with it have new hashes."""
    if saved is None and base.identity != IN_MEMORY:
        _compare("base model", checkpoint.base, base.identity)
    if saved is None or encoder.identity != model_identity(saved.image_encoder):
        _compare("image encoder", checkpoint.image_encoder, encoder.identity)


def _compare(what: str, trained_with: str, here: str) -> None:
    if not same_content(trained_with, here):
        warn(f"the adapter was trained with the {what} {trained_with}, this is {here}")
