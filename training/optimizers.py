"""The optimizers, and their moments as plain tensors by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import torch
from torch import nn

from realcustom.errors import UsageError
from realcustom.training.settings import Optimizer, TrainSettings

MOMENTS = {"exp_avg": True, "exp_avg_sq": False}  # by name: whether it has a sign
_PARTS = ("codes", "scale")  # of a moment in 8 bits


def check_optimizer(settings: TrainSettings) -> None:
    """Raise UsageError where the optimizer's package is not installed."""
    if settings.optimizer is Optimizer.ADAMW_8BIT and importlib.util.find_spec("torchao") is None:
        raise UsageError(
            "train.optimizer=adamw_8bit needs torchao: pip install 'PATH_OF_THE_CLONE[torchao]', or take adamw"
        )


def make_optimizer(
    settings: TrainSettings, parameters: Mapping[str, nn.Parameter], fused: bool
) -> torch.optim.Optimizer:
    """The optimizer over parameters that require gradients.

    Args:
        fused: one kernel for all of AdamW's arithmetic. It obeys `found_inf`, a number on the device: not zero = skip.
    """
    values = list(parameters.values())
    if settings.optimizer is Optimizer.ADAMW:
        chosen = True if fused else None  # None: torch's own choice
        return torch.optim.AdamW(values, lr=0.0, weight_decay=settings.weight_decay, fused=chosen)
    check_optimizer(settings)
    from torchao.optim import AdamW8bit

    quantized: torch.optim.Optimizer = AdamW8bit(values, lr=0.0, weight_decay=settings.weight_decay)
    return quantized


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def moments(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """The optimizer's moments by name, `exp_avg.NAME`; in 8 bits `exp_avg.NAME.codes` and `.scale`. None before a step."""
    return {
        f"{moment}.{name}{part}": tensor
        for name, parameter in parameters.items()
        if parameter in optimizer.state
        for moment in MOMENTS
        for part, tensor in _parts(optimizer.state[parameter][moment]).items()
    }


def start_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], steps: int, fused: bool
) -> None:
    """Give the optimizer moments of zero after `steps` steps, to be filled with `moments`."""
    for parameter in parameters.values():
        new = getattr(optimizer, "_new_buffer", None)  # torchao's: in 8 bits, but for small tensors
        values = {
            name: torch.zeros_like(parameter) if new is None else new(parameter, sign) for name, sign in MOMENTS.items()
        }
        device = parameter.device if fused else None
        optimizer.state[parameter] = {"step": torch.tensor(float(steps), device=device), **values}


def _parts(moment: torch.Tensor) -> dict[str, torch.Tensor]:
    if all(hasattr(moment, part) for part in _PARTS):
        return {f".{part}": getattr(moment, part) for part in _PARTS}
    return {"": moment}
