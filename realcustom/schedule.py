"""The sampling schedule: a diffusers scheduler as the settings name it, and the noise level that the scores go by."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers
from torch import Tensor

from realcustom.settings import SamplerSettings, TimestepSpacing

OWN = "base"
SHORT_NAMES = {"ddim": "DDIMScheduler", "dpmpp_single": "DPMSolverSinglestepScheduler"}


def make_scheduler(own: Any, settings: SamplerSettings) -> Any:
    """The scheduler that the settings name, built from the base model's own configuration.

    Raises ValueError for a name that is not a diffusers scheduler, or one that the method is not defined on.
    """
    kind: Any = type(own)
    if settings.scheduler != OWN:
        name = SHORT_NAMES.get(settings.scheduler, settings.scheduler)
        kind = getattr(diffusers, name, None)
        if kind is None or not name.endswith("Scheduler"):
            raise ValueError(
                f"sampler.scheduler '{settings.scheduler}' is not ddim, dpmpp_single, base or a scheduler of diffusers, "
                "e.g. EulerDiscreteScheduler"
            )
    changes: dict[str, Any] = {}
    if "clip_sample" in own.config or settings.scheduler != OWN:
        changes["clip_sample"] = False
    if settings.timestep_spacing is not TimestepSpacing.BASE:
        changes["timestep_spacing"] = settings.timestep_spacing.value
    scheduler = kind.from_config({**own.config, **changes})
    check_scheduler(scheduler)
    return scheduler


def check_scheduler(scheduler: Any) -> None:
    """Raise ValueError for a scheduler that the method is not defined on."""
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"{type(scheduler).__name__} is a flow-matching scheduler or has no alphas_cumprod; RealCustom's scores are "
            "weighted by it: use a diffusion scheduler (DDIM, DPM-Solver++, Euler, ...)"
        )
    if getattr(scheduler.config, "clip_sample", False):
        warnings.warn(
            "the scheduler clips samples (clip_sample=True): guidance is then not what the paper's eq. 13 says; the "
            "pipeline's own schedulers set clip_sample=False",
            stacklevel=2,
        )


def alphas_cumprod_at(scheduler: Any, timestep: Tensor) -> Tensor:
    """alphas_cumprod at a step, a scalar, in variance-preserving form; between integers by the schedule's sigma."""
    value = float(timestep)
    if value.is_integer():
        return scheduler.alphas_cumprod[int(value)]
    sigma = scheduler.sigmas[scheduler.index_for_timestep(timestep)]
    return 1 / (1 + sigma**2)
