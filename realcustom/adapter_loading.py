"""An adapter on its base, with its image encoder: the parts that a pipeline is made of."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import DiffusionPipeline
from torch import nn

from realcustom import attention
from realcustom.base import Base
from realcustom.base_loading import IN_MEMORY, Stock, load_base
from realcustom.checkpoint import Adapter, load_adapter
from realcustom.encoders import ImageEncoder
from realcustom.errors import UsageError
from realcustom.identity import model_identity, same_content
from realcustom.image_encoder import load_image_encoder
from realcustom.loading import LoadOptions
from realcustom.model import RealCustomModel
from realcustom.saved import Saved, saved_in
from realcustom.settings import GuidanceSettings, MethodSettings
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
    image_encoder: str | Path | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    options: LoadOptions,
) -> Parts:
    """Load them; arguments and errors as `RealCustomPipeline.from_pretrained`."""
    given = isinstance(base, DiffusionPipeline)
    saved = saved_in(str(base)) if adapter is None and isinstance(base, (str, Path)) else None
    if saved is not None:
        adapter, image_encoder = saved.adapter, image_encoder or saved.image_encoder
    if adapter is not None:
        check_readable(str(adapter))  # a wrong address is reported at once, an outage is retried
    checkpoint = None if adapter is None else load_adapter(adapter)
    if device is None and not given:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_base(base, device, dtype, options, inpainting=True)
    if checkpoint is None:
        scale = inspect.signature(type(loaded.pipeline).__call__).parameters["guidance_scale"].default  # diffusers' own
        return Parts(base=loaded, settings=MethodSettings(guidance=GuidanceSettings(guidance_scale=scale)))
    attention.check_unused(loaded.unet)
    encoder = _load_encoder(checkpoint, image_encoder, loaded, options)
    _warn_of_others(checkpoint, loaded, encoder, saved)
    return _attach(checkpoint, loaded, encoder, beside=False)


def load_beside(
    base: Base, adapter: str | Path, image_encoder: str | Path | None, loaded: ImageEncoder | None
) -> Parts:
    """Another adapter on a base that has one in its layers; the base's weights are shared.

    Args:
        image_encoder: folder or hub id; None = `loaded` if it is the one that the adapter was trained with, else the
            adapter's own.
        loaded: the first adapter's image encoder.
    """
    check_readable(str(adapter))
    checkpoint = load_adapter(adapter)
    encoder = loaded
    if image_encoder is not None or encoder is None or not _fits(checkpoint, encoder):
        encoder = _load_encoder(checkpoint, image_encoder, base, LoadOptions())
    _warn_of_others(checkpoint, base, encoder, None)
    return _attach(checkpoint, base, encoder, beside=attention.holds_adapter(base.unet))


def _fits(checkpoint: Adapter, encoder: ImageEncoder) -> bool:
    """Whether the adapter was trained with this image encoder, read in the same way."""
    own, here = checkpoint.settings.image_encoder, encoder.settings
    return same_content(checkpoint.image_encoder, encoder.identity) and replace(own, model=here.model) == here


def _load_encoder(
    checkpoint: Adapter, image_encoder: str | Path | None, base: Base, options: LoadOptions
) -> ImageEncoder:
    name = _encoder_to_load(checkpoint.image_encoder, image_encoder)
    return load_image_encoder(name, checkpoint.settings.image_encoder, base.device, base.unet.dtype, options)


def _attach(checkpoint: Adapter, base: Base, encoder: ImageEncoder, *, beside: bool) -> Parts:
    """The adapter's model on the base's UNet: its layers in the UNet's, or beside another adapter's."""
    settings = checkpoint.settings
    model = RealCustomModel(base.unet, settings, encoder.embed_dim, local_views=encoder.local_views, beside=beside)
    model.load_adapter_state_dict(checkpoint.tensors)
    for module in model.own_modules():
        module.to(base.device)  # where a base with offload runs, not where its UNet waits
    return Parts(
        base=base,
        settings=settings,
        model=model.requires_grad_(False).eval(),
        image_encoder=encoder,
        checkpoint=replace(checkpoint, tensors={}),
    )


@contextlib.contextmanager
def unchanged_if_it_fails(base: object) -> Iterator[None]:
    """If loading onto a loaded pipeline raises an error, the pipeline is left as it was given."""
    if not isinstance(base, get_args(Stock)):
        yield
        return
    pipeline: Any = base
    models = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    modules = {module: module.training for model in models for module in model.modules()}
    children = {module: {name for name, _ in module.named_children()} for module in modules}
    gradients = {parameter: parameter.requires_grad for model in models for parameter in model.parameters()}
    processors, device = dict(pipeline.unet.attn_processors), pipeline.device
    try:
        yield
    except BaseException:
        for module, training in modules.items():
            module.training = training
            for name in [name for name, _ in module.named_children() if name not in children[module]]:
                delattr(module, name)
        pipeline.unet.set_attn_processor(processors)
        for parameter, wanted in gradients.items():
            parameter.requires_grad_(wanted)
        if pipeline.device != device:
            pipeline.to(device)
        raise


def _encoder_to_load(trained_with: str, given: str | Path | None) -> str:
    if given is not None:
        if not isinstance(given, (str, Path)):
            raise UsageError(f"image_encoder is a folder or a hub id, got a {type(given).__name__}")
        return str(given)
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
