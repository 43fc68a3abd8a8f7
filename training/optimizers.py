"""The optimizers, and their moments as plain tensors by name."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping

import torch
from torch import nn

from realcustom.errors import UsageError
from realcustom.training.settings import Optimizer, TrainSettings

logger = logging.getLogger(__name__)

MOMENTS = {"exp_avg": True, "exp_avg_sq": False}  # by name: whether it has a sign
_PARTS = ("codes", "scale")  # of a moment in 8 bits
_PACKAGES = {Optimizer.ADAMW_8BIT: "torchao", Optimizer.PRODIGY: "prodigyopt"}  # extras have their names
_OF_PRODIGY = ("s", "p0")  # further tensors of a parameter: sum of gradients, first value; flat
_ESTIMATE = "estimate"  # Prodigy's numbers of all parameters together:
_NUMBERS = ("d", "d_max", "d_numerator", "k")


def check_optimizer(settings: TrainSettings) -> None:
    """Raise UsageError where the optimizer's package is not installed."""
    package = _PACKAGES.get(settings.optimizer)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UsageError(
            f"train.optimizer={settings.optimizer.value} needs {package}: pip install 'PATH_OF_THE_CLONE[{package}]', or "
            "take adamw"
        )
    if settings.optimizer is Optimizer.PRODIGY and settings.lr < 0.1:
        logger.warning(
            "train.optimizer=prodigy finds its rate and multiplies it by train.lr: 1 is usual, not %g", settings.lr
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
    if settings.optimizer is Optimizer.PRODIGY:
        from prodigyopt import Prodigy

        # by group: its constructor prints that it decays the weights
        group = {"params": values, "weight_decay": settings.weight_decay}
        # its author's advice for diffusion models and for a warm-up
        prodigy: torch.optim.Optimizer = Prodigy([group], use_bias_correction=True, safeguard_warmup=True)
        return prodigy
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


def rate_factor(optimizer: torch.optim.Optimizer) -> float:
    """What the optimizer multiplied the rate of its last step by: Prodigy's estimate; others nothing."""
    return float(optimizer.param_groups[0].get("d", 1.0))


def moments(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """The optimizer's moments by name, `exp_avg.NAME`; in 8 bits `exp_avg.NAME.codes` and `.scale`. None before a step.

    Prodigy's are more: `s.NAME`, `p0.NAME`, and its numbers, `estimate`.
    """
    found = {
        f"{moment}.{name}{part}": tensor
        for name, parameter in parameters.items()
        if parameter in optimizer.state
        for moment in MOMENTS
        for part, tensor in _parts(optimizer.state[parameter][moment]).items()
    }
    if found and _is_prodigy(optimizer):
        for name, parameter in parameters.items():
            state = optimizer.state[parameter]
            # expanded: of weights that begin as zero it keeps one zero
            found |= {f"{kind}.{name}": state[kind].expand_as(state["s"]) for kind in _OF_PRODIGY}
        group = optimizer.param_groups[0]
        found[_ESTIMATE] = torch.tensor([float(group[name]) for name in _NUMBERS], dtype=torch.float64)
    return found


def take_estimate(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give Prodigy its numbers back, from among the tensors of `moments`."""
    if _ESTIMATE in tensors:
        *numbers, steps = tensors[_ESTIMATE].tolist()
        optimizer.param_groups[0].update(zip(_NUMBERS, [*numbers, int(steps)], strict=True))


def _is_prodigy(optimizer: torch.optim.Optimizer) -> bool:
    return "d_numerator" in optimizer.param_groups[0]


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
        if _is_prodigy(optimizer):
            values |= {name: torch.zeros_like(parameter).flatten() for name in _OF_PRODIGY}
        optimizer.state[parameter] = {"step": torch.tensor(float(steps), device=device), **values}


def _parts(moment: torch.Tensor) -> dict[str, torch.Tensor]:
    if all(hasattr(moment, part) for part in _PARTS):
        return {f".{part}": getattr(moment, part) for part in _PARTS}
    return {"": moment}
