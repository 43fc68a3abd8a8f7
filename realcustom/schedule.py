"""The sampling schedule: the diffusers scheduler that the settings name, its steps, and the noise level that weights the
scores."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import diffusers
import torch
from torch import Tensor

from realcustom.errors import UsageError
from realcustom.released_solver import ReleasedSolver
from realcustom.settings import RELEASED_SOLVER, SamplerSettings, TimestepSpacing
from realcustom.warning import warn

OWN = "base"
BENDING = ("clip_sample", "thresholding")  # options that make a step no longer affine in the prediction
ZERO_SNR = 2**-24  # what diffusers' schedulers have in the place of an alphas_cumprod of 0, whose logarithm is infinite
SHORT_NAMES = {"ddim": "DDIMScheduler", "dpmpp_single": "DPMSolverSinglestepScheduler"}

Generators = torch.Generator | list[torch.Generator] | None  # as diffusers takes them: one for all images, or one each


def make_scheduler(own: Any, settings: SamplerSettings) -> Any:
    """The scheduler that the settings name, built from the base model's own configuration.

    Raises UsageError for a name that is not a diffusers scheduler, or one that the method is not defined on.
    """
    if settings.scheduler == RELEASED_SOLVER:
        return ReleasedSolver.of(own.config)
    kind: Any = type(own)
    if settings.scheduler != OWN:
        name = SHORT_NAMES.get(settings.scheduler, settings.scheduler)
        kind = getattr(diffusers, name, None)
        if kind is None or not name.endswith("Scheduler"):
            raise UsageError(
                f"sampler.scheduler '{settings.scheduler}' is not ddim, dpmpp_single, {RELEASED_SOLVER}, base or a "
                "scheduler of diffusers, e.g. EulerDiscreteScheduler"
            )
    changes: dict[str, Any] = {name: False for name in BENDING if name in own.config or settings.scheduler != OWN}
    if kind is diffusers.DPMSolverSinglestepScheduler:
        changes["lower_order_final"] = True  # it does so anyway, and logs a line
    if settings.timestep_spacing is not TimestepSpacing.BASE:
        changes["timestep_spacing"] = settings.timestep_spacing.value
    scheduler = kind.from_config({**own.config, **changes})
    check_scheduler(scheduler)
    return scheduler


class SchedulerChoice:
    """The scheduler of a pipeline: the one that was assigned, or the one that its settings name, built once."""

    def __init__(self) -> None:
        self.assigned: Any = None
        self._built: tuple[SamplerSettings, Any, Any] | None = None  # its settings, the base's scheduler, and it

    def assign(self, scheduler: Any) -> None:
        """Use this one from now on. Raises as `check_scheduler`."""
        check_scheduler(scheduler)
        self.assigned = scheduler

    def of(self, own: Any, settings: SamplerSettings) -> Any:
        """The scheduler of a call; `own` is the base model's. Raises as `make_scheduler`."""
        if self.assigned is not None:
            return self.assigned
        settings = replace(settings, num_inference_steps=1)  # each call sets its own
        if self._built is None or self._built[0] != settings or self._built[1] is not own:
            self._built = settings, own, make_scheduler(own, settings)
        return self._built[2]

    def to_save(self, own: Any, settings: SamplerSettings) -> tuple[Any, SamplerSettings]:
        """A scheduler of diffusers for a folder, and the settings with which `of` makes that of the calls from it.

        Raises UsageError for an assigned scheduler of another library, which diffusers would not find.
        """
        if self.assigned is not None:
            own, settings = self.assigned, replace(settings, scheduler=OWN, timestep_spacing=TimestepSpacing.BASE)
        kind = type(own)
        if kind is ReleasedSolver:  # ours: the settings name it
            if settings.scheduler == OWN:
                settings = replace(settings, scheduler=RELEASED_SOLVER, timestep_spacing=TimestepSpacing.BASE)
            return diffusers.DPMSolverSinglestepScheduler.from_config(own.config), settings
        if getattr(diffusers, kind.__name__, None) is not kind:
            raise UsageError(
                f"{kind.__name__} is not one of diffusers' schedulers, and a folder with it would not load: assign one of them "
                "before saving, and yours again after loading"
            )
        return own, settings


def set_timesteps(
    scheduler: Any,
    num_inference_steps: int,
    device: torch.device,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
) -> None:
    """Set a call's schedule: so many steps, or the given timesteps or noise levels, as diffusers' pipelines do.

    Raises UsageError for both at once, for a scheduler that does not take them, and for values that it refuses.
    """
    kind = type(scheduler).__name__
    given: dict[str, Any] = {"timesteps": timesteps, "sigmas": sigmas}
    named = {name: values for name, values in given.items() if values is not None}
    if len(named) > 1:
        raise UsageError("give timesteps or sigmas, not both")
    for name, values in named.items():
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            raise UsageError(f"{kind} takes no {name}: leave them out, or assign a scheduler that does")
        if not values:
            raise UsageError(f"{name} is empty: give one for each step")
    chosen = named or {"num_inference_steps": num_inference_steps}
    try:
        scheduler.set_timesteps(**chosen, device=device)
    except ValueError as error:
        raise UsageError(
            f"{kind} refuses {' '.join(f'{name} {value}' for name, value in chosen.items())}: {error}"
        ) from error
    last, known = float(scheduler.timesteps.max()), len(scheduler.alphas_cumprod)
    if last > known - 1:
        said = "" if named else f": ask for fewer steps than {num_inference_steps}"
        raise UsageError(f"{kind} has timesteps from 0 to {known - 1}, this schedule begins at {last:g}{said}")


def cut_schedule(scheduler: Any, steps: int, strength: float) -> tuple[Tensor, int]:
    """The last part of the schedule, as diffusers cuts it: its timesteps and its number of steps.

    Args:
        steps: of the whole schedule.
        strength: the part of them that is run, 0 to 1.
    Raises:
        UsageError: none would be run.
    """
    left = min(int(steps * strength), steps)
    if left < 1:
        raise UsageError(
            f"strength {strength} of {steps} steps runs none: give more steps, or a strength of at least {1 / steps:g}"
        )
    first = (steps - left) * int(getattr(scheduler, "order", 1))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return scheduler.timesteps[first:], left


def step_arguments(scheduler: Any, generators: Generators, eta: float | None) -> dict[str, Any]:
    """What a scheduler's `step` takes besides prediction, timestep and sample: as diffusers' pipelines give it.

    Args:
        eta: share of noise in a step (the eta of DDIM); None = 0 where the scheduler takes one.
    Raises:
        UsageError: an eta is given and the scheduler takes none.
    """
    taken = inspect.signature(scheduler.step).parameters
    if eta is not None and "eta" not in taken:
        raise UsageError(f"{type(scheduler).__name__} takes no eta, got {eta}: leave it out, or assign DDIM or TCD")
    given = {"eta": eta or 0.0, "generator": generators}
    return {name: value for name, value in given.items() if name in taken}


def check_scheduler(scheduler: Any) -> None:
    """Raise UsageError for what is no scheduler of diffusers, or one that the method is not defined on."""
    if isinstance(scheduler, type) or not hasattr(scheduler, "set_timesteps"):
        raise UsageError(
            f"scheduler is one of diffusers' schedulers, got {scheduler!r}: e.g. "
            "EulerDiscreteScheduler.from_config(pipe.scheduler.config)"
        )
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
    """alphas_cumprod at a step, a scalar on its device, in variance-preserving form: abar = 1 / (1 + sigma^2).

    Between integers sigma = sqrt((1 - abar) / abar) is interpolated by its logarithm, as in diffusers' schedulers with
    such timesteps; logit(abar) = -2 log(sigma). Continuous timesteps are log(sigma) / 4 (EDM's noise conditioning).
    """
    position = timestep.to(torch.float32)
    if _is_continuous(scheduler):
        return torch.sigmoid(-8 * position)
    # nothing waits for the device in a step: no value is read back
    table: Tensor = scheduler.alphas_cumprod.to(position.device, non_blocking=True)
    last = len(table) - 1
    position = position.clamp(0, last)
    below = position.floor()
    low, high = (table.take(index.clamp(max=last).long()) for index in (below, below + 1))
    between = torch.lerp(low.logit(ZERO_SNR), high.logit(ZERO_SNR), position - below).sigmoid()
    return torch.where(position == below, low, between)


def _is_continuous(scheduler: Any) -> bool:
    """Whether timesteps are noise levels; diffusers has that for v-prediction alone."""
    config = scheduler.config
    return (config.get("timestep_type"), config.get("prediction_type")) == ("continuous", "v_prediction")
