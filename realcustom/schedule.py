"""The sampling schedule: the diffusers scheduler that the settings name, and the noise level that weights the scores."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import torch
from torch import Tensor

from realcustom.errors import UsageError
from realcustom.settings import SamplerSettings, TimestepSpacing
from realcustom.warning import warn

OWN = "base"
BENDING = ("clip_sample", "thresholding")  # options that make a step no longer affine in the prediction
SHORT_NAMES = {"ddim": "DDIMScheduler", "dpmpp_single": "DPMSolverSinglestepScheduler"}


def make_scheduler(own: Any, settings: SamplerSettings) -> Any:
    """The scheduler that the settings name, built from the base model's own configuration.

    Raises UsageError for a name that is not a diffusers scheduler, or one that the method is not defined on.
    """
    kind: Any = type(own)
    if settings.scheduler != OWN:
        name = SHORT_NAMES.get(settings.scheduler, settings.scheduler)
        kind = getattr(diffusers, name, None)
        if kind is None or not name.endswith("Scheduler"):
            raise UsageError(
                f"sampler.scheduler '{settings.scheduler}' is not ddim, dpmpp_single, base or a scheduler of diffusers, "
                "e.g. EulerDiscreteScheduler"
            )
    changes: dict[str, Any] = {name: False for name in BENDING if name in own.config or settings.scheduler != OWN}
    if kind is diffusers.DPMSolverSinglestepScheduler:
        changes["lower_order_final"] = True  # it does so anyway, and logs a line
    if settings.timestep_spacing is not TimestepSpacing.BASE:
        changes["timestep_spacing"] = settings.timestep_spacing.value
    scheduler = kind.from_config({**own.config, **changes})
    check_scheduler(scheduler)
    return scheduler


def check_scheduler(scheduler: Any) -> None:
    """Raise UsageError for a scheduler that the method is not defined on."""
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UsageError(
            f"{type(scheduler).__name__} is a flow-matching scheduler or has no alphas_cumprod; RealCustom's scores are "
            "weighted by it: use a diffusion scheduler (DDIM, DPM-Solver++, Euler, ...)"
        )
    config = scheduler.config
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        raise UsageError(
            f"{type(scheduler).__name__} is set to flow matching (use_flow_sigmas, flow_prediction); RealCustom is defined "
            "on diffusion schedules: build it from the base model's own configuration"
        )
    for name in BENDING:
        if config.get(name):
            warn(
                f"the scheduler bends samples ({name}=True): guidance is then not what the paper's eq. 13 says; the "
                f"pipeline's own schedulers set {name}=False"
            )


def alphas_cumprod_at(scheduler: Any, timestep: Tensor) -> Tensor:
    """alphas_cumprod at a step, a scalar, in variance-preserving form.

    Between integers sigma = sqrt((1 - abar) / abar) is interpolated by its logarithm, as in diffusers' schedulers with
    such timesteps; then abar = 1 / (1 + sigma^2).
    """
    table: Tensor = scheduler.alphas_cumprod
    value = float(timestep)
    low = min(max(math.floor(value), 0), len(table) - 1)
    if value <= low or low == len(table) - 1:
        return table[low]
    logs = ((1 - table[low : low + 2]) / table[low : low + 2]).log() / 2
    return 1 / (1 + torch.lerp(logs[0], logs[1], value - low).exp() ** 2)
