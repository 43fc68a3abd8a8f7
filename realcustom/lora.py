"""The weight of the base's LoRA in one call, as diffusers' pipelines take it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import LoraLayer

from realcustom.base import MODELS, Base
from realcustom.errors import UsageError
from realcustom.sampling import is_number


@contextmanager
def lora_scaled(base: Base, cross_attention_kwargs: Mapping[str, Any] | None) -> Iterator[None]:
    """Multiply the LoRAs of UNet and text encoders by `cross_attention_kwargs["scale"]` while the context is open.

    Raises UsageError for any other key: the attention processors are the adapter's own.
    """
    if cross_attention_kwargs is not None and not isinstance(cross_attention_kwargs, Mapping):
        raise UsageError(
            f"cross_attention_kwargs is a dict, {{'scale': 0.5}}, got a {type(cross_attention_kwargs).__name__}"
        )
    given = dict(cross_attention_kwargs or {})
    scale = given.pop("scale", 1.0)
    if given:
        raise UsageError(f"cross_attention_kwargs takes scale, the weight of a LoRA, got {', '.join(map(str, given))}")
    if not is_number(scale):
        raise UsageError(f"the scale in cross_attention_kwargs is a number, got {scale!r}")
    models = [getattr(base.pipeline, name, None) for name in MODELS if name != "vae" and scale != 1]
    modules = [module for model in models if model is not None for module in model.modules()]
    before = {module: dict(module.scaling) for module in modules if isinstance(module, LoraLayer)}
    try:
        for layer in before:
            layer.scale_layer(scale)
        yield
    finally:
        for layer, scaling in before.items():
            layer.scaling.update(scaling)
