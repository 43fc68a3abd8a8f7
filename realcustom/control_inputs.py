"""A call's ControlNets and T2I-adapters, checked against the base, each with its picture and its weight.

Letters: P prompts, B rows, H W pixels, C_l h_l w_l a level of the UNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from diffusers import ControlNetModel, MultiAdapter, MultiControlNetModel, T2IAdapter
from torch import Tensor, nn

from realcustom.arguments import latent_size
from realcustom.base import Base
from realcustom.controls import ControlNet, Controls
from realcustom.errors import UsageError
from realcustom.image_inputs import ImageInputs, Shares, each_row, read_pictures
from realcustom.sampling import SamplingParams, is_number

ControlNets: TypeAlias = ControlNetModel | MultiControlNetModel | Sequence[ControlNetModel]
T2IAdapters: TypeAlias = T2IAdapter | MultiAdapter | Sequence[T2IAdapter]


def make_controls(
    base: Base,
    images: ImageInputs,
    controlnet: ControlNets | None,
    t2i_adapter: T2IAdapters | None,
    *,
    prompts: int,
    sampling: SamplingParams,
) -> Controls:
    """What guides a call. The models are frozen, and moved to the base's device and dtype.

    Args:
        prompts: P.
    Raises:
        UsageError: a picture without a model, or a model, a picture or a number that does not fit.
    """
    factor = base.vae_scale_factor
    height, width = latent_size(sampling.height, sampling.width, base.resolution, factor)
    rows, size = prompts * sampling.n, (height * factor, width * factor)
    nets = _control_nets(base, images, controlnet, prompts, rows, size)
    return Controls(
        nets=nets,
        # diffusers guesses in any case where the first one's residuals have no places
        guess_mode=images.guess_mode or any(net.model.config.global_pool_conditions for net in nets[:1]),
        features=_adapter_features(base, images, t2i_adapter, prompts, rows, size),
    )


def _control_nets(
    base: Base, images: ImageInputs, controlnet: ControlNets | None, prompts: int, rows: int, size: tuple[int, int]
) -> tuple[ControlNet, ...]:
    if images.control_image is None:
        return ()
    models = _models(controlnet, "controlnet", ControlNetModel)
    for model in models:
        _check_net(base, model)
        _make_ready(model, base)
    count = len(models)
    scales = _shares("controlnet_conditioning_scale", images.controlnet_conditioning_scale, count)
    starts = _shares("control_guidance_start", images.control_guidance_start, count)
    ends = _shares("control_guidance_end", images.control_guidance_end, count)
    for start, end in zip(starts, ends, strict=True):
        if not 0 <= start < end <= 1:
            raise UsageError(
                f"control_guidance_start and control_guidance_end are shares of the steps, 0 <= start < end <= 1, got {start} "
                f"and {end}"
            )
    pictures = [
        read_pictures(value, "control_image", prompts, size)
        for value in _of_each_model("control_image", images.control_image, count)
    ]
    return tuple(
        ControlNet(
            model=model,
            pixels=each_row(pixels, rows)
            .to(base.device, base.dtype)
            .contiguous(),  # as in diffusers, for its last bits
            scale=scale,
            start=start,
            end=end,
        )
        for model, pixels, scale, start, end in zip(models, pictures, scales, starts, ends, strict=True)
    )


@torch.no_grad()
def _adapter_features(
    base: Base, images: ImageInputs, t2i_adapter: T2IAdapters | None, prompts: int, rows: int, size: tuple[int, int]
) -> tuple[Tensor, ...]:
    """(B, C_l, h_l, w_l) for each level."""
    if images.adapter_image is None:
        return ()
    models = _models(t2i_adapter, "t2i_adapter", T2IAdapter)
    scales = _shares("adapter_conditioning_scale", images.adapter_conditioning_scale, len(models))
    values = _of_each_model("adapter_image", images.adapter_image, len(models))
    total: list[Tensor] = []
    for model, value, scale in zip(models, values, scales, strict=True):
        _check_adapter(base, model, size)
        _make_ready(model, base)
        pixels = read_pictures(value, "adapter_image", prompts, size, channels=model.config.in_channels)
        levels = [scale * level for level in model(pixels.to(base.device, base.dtype))]
        total = [one + other for one, other in zip(total, levels, strict=True)] if total else levels
    return tuple(each_row(level, rows) for level in total)


def _models(given: Any, name: str, kind: type[Any]) -> list[Any]:
    """The models one by one."""
    models = given.nets if isinstance(given, MultiControlNetModel) else given
    models = models.adapters if isinstance(models, MultiAdapter) else models
    models = [*models] if isinstance(models, (list, tuple, nn.ModuleList)) else [models]
    if models in ([], [None]):
        raise UsageError(f"no {kind.__name__} is loaded: pipe.{name} = {kind.__name__}.from_pretrained(...)")
    for model in models:
        if not isinstance(model, kind):
            raise UsageError(f"pipe.{name} is a {kind.__name__} or a list of them, got a {type(model).__name__}")
    return models


def _check_net(base: Base, net: ControlNetModel) -> None:
    factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    if factor != base.vae_scale_factor:
        raise UsageError(
            f"this ControlNet has {factor} pixels of its picture per latent cell, the base's VAE {base.vae_scale_factor}: load "
            "one for this base"
        )
    for name in ("block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type"):
        other, own = _setting(net, name), _setting(base.unet, name)
        if other != own:
            raise UsageError(f"this ControlNet is for another base: its {name} is {other}, here {own}")


def _setting(model: Any, name: str) -> Any:
    """Of a model's configuration, which has tuples when it is made and lists when it is loaded."""
    value = model.config.get(name)
    return list(value) if isinstance(value, tuple) else value


def _check_adapter(base: Base, adapter: T2IAdapter, size: tuple[int, int]) -> None:
    channels, own = tuple(adapter.config.channels), tuple(base.unet.config.block_out_channels)
    # the first level is added within a block with text, and behind a block without, which ends at half the size
    halved = not getattr(base.unet.down_blocks[0], "has_cross_attention", False)
    factor, wanted = int(adapter.config.downscale_factor), base.vae_scale_factor * (2 if halved else 1)
    if set(channels) != set(own) or factor != wanted:
        raise UsageError(
            f"this T2I-adapter is for another base: it has channels {channels} from {factor} pixels a cell on, here "
            f"{own} from {wanted}"
        )
    if any(side % factor for side in size):
        raise UsageError(
            f"this T2I-adapter takes sides that are multiples of {factor} pixels, got {size[0]} x {size[1]}"
        )


def _make_ready(model: nn.Module, base: Base) -> None:
    model.to(base.device, base.dtype).requires_grad_(False).eval()


def _shares(name: str, value: Shares, count: int) -> list[float]:
    values: Any = [value] * count if is_number(value) else value
    if not isinstance(values, (list, tuple)) or not all(is_number(one) for one in values) or len(values) != count:
        raise UsageError(f"{name} is a number, or a list with one for each of {count} models, got {value!r}")
    return [float(one) for one in values]


def _of_each_model(name: str, value: Any, count: int) -> list[Any]:
    """The pictures of each model. With several models and prompts diffusers has a list for each prompt."""
    if count == 1:
        return [value]
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, (list, tuple)) for one in value):
        if all(len(one) == count for one in value):
            return [list(one) for one in zip(*value, strict=True)]
    elif isinstance(value, (list, tuple)) and len(value) == count:
        return list(value)
    raise UsageError(f"{name} for {count} models is a list of {count} pictures, or such a list for each prompt")
