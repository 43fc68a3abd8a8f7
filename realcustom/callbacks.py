"""The steps of a call as diffusers' loops run them: progress bar, interrupt, and a callback that reads and changes tensors.

A callback gets the pipeline, whose `_interrupt`, `_guidance_scale` and `_subject_guidance_scale` it may set, and the tensors
that it asks for; it returns those that it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from realcustom.errors import UsageError
from realcustom.guidance import Branch, Weights
from realcustom.sampler import Sampler, Step
from realcustom.settings import GuidanceSettings

if TYPE_CHECKING:
    from realcustom.diffusion_pipeline import RealCustomPipeline

Callback = Callable[["RealCustomPipeline", int, Any, dict[str, Any]], dict[str, Any] | None]
DEFAULT = ("latents", "masks")
# by diffusers' name: the tensors of the rows with the prompt and of the unconditional ones; with guidance it gives both,
# the unconditional rows first
PAIRS: Mapping[str, tuple[str, str]] = {
    "prompt_embeds": ("prompt_embeds", "negative_prompt_embeds"),
    "add_text_embeds": ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    "add_time_ids": ("time_ids", "negative_time_ids"),
}


def tensor_inputs(callback: Callback | None, given: Sequence[str] | None, is_sdxl: bool) -> tuple[str, ...]:
    """Names of the tensors that the callback gets: its own `tensor_inputs`, those given, or latents and masks.

    Raises UsageError for a name that there is none of, and where the callback is no function or the names no list.
    """
    if callback is not None and not callable(callback):
        raise UsageError(
            f"callback_on_step_end is a function (pipeline, step, timestep, tensors) -> dict, got a {type(callback).__name__}"
        )
    wanted: Sequence[str] = DEFAULT if given is None else given
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        wanted = callback.tensor_inputs
    if not isinstance(wanted, (list, tuple)) or not all(isinstance(name, str) for name in wanted):
        raise UsageError(f"callback_on_step_end_tensor_inputs is a list of names, ['latents'], got {wanted!r}")
    offered = (*DEFAULT, *PAIRS) if is_sdxl else (*DEFAULT, "prompt_embeds", "negative_prompt_embeds")
    unknown = [name for name in wanted if name not in offered]
    if unknown:
        raise UsageError(f"a callback may ask for {', '.join(offered)} of this base, not for {', '.join(unknown)}")
    return tuple(dict.fromkeys(wanted))


def steered(settings: GuidanceSettings, text: float, subject: float) -> GuidanceSettings:
    """The guidance of the next step, from the call's own and the weights as a callback left them.

    diffusers' callbacks set a guidance scale of 0 or 1 to end guidance: then the prediction is that of the prompt and the
    subjects alone (method, section 7: both weights 1).
    """
    if text != settings.guidance_scale and text <= 1:
        kept = 1.0 if subject else 0.0
        return replace(settings, guidance_scale=1.0, subject_guidance_scale=kept, guidance_rescale=0.0)
    return replace(settings, guidance_scale=text, subject_guidance_scale=subject)


def is_guided(weights: Weights) -> bool:
    """Whether the unconditional branch has a part in the step."""
    return Branch.UNCONDITIONAL in weights.branches()


def run_steps(
    pipe: RealCustomPipeline, sampler: Sampler, callback: Callback | None, inputs: Sequence[str]
) -> Iterator[Step]:
    """All steps until the pipeline is interrupted."""
    timesteps, steps = sampler.start.timesteps, sampler.start.steps
    order = int(getattr(sampler.scheduler, "order", 1))
    warmup = len(timesteps) - steps * order
    with pipe.progress_bar(total=steps) as bar:
        for index in range(len(timesteps)):
            if pipe.interrupt:
                return
            step = sampler.step()
            yield step
            if callback is not None:
                _call(pipe, sampler, step, callback, inputs)
            if index == len(timesteps) - 1 or (index + 1 > warmup and (index + 1) % order == 0):
                bar.update()


def _call(pipe: RealCustomPipeline, sampler: Sampler, step: Step, callback: Callback, inputs: Sequence[str]) -> None:
    given = {name: _read(sampler, step, name) for name in inputs}
    returned = callback(pipe, step.index, step.timestep, dict(given))
    if returned is not None and not isinstance(returned, Mapping):
        raise UsageError(f"a callback returns a dict of the tensors that it changes, got a {type(returned).__name__}")
    for name, value in (returned or {}).items():
        if name == "latents":
            _check_rows(name, value, step.latents.shape[1:], (len(step.latents),))
            sampler.latents = value
        elif name in PAIRS and name in given:  # the same tensor too, which may have been written to
            _write(sampler, name, value)
        elif name not in given or value is not given[name]:
            raise UsageError(
                f"a callback may return new latents{''.join(f', {pair}' for pair in PAIRS if pair in given)}, not "
                f"{name}: ask for what it changes with callback_on_step_end_tensor_inputs"
            )
    guidance = pipe._next_guidance()
    if guidance != sampler.guidance:
        sampler.change_guidance(guidance)


def _read(sampler: Sampler, step: Step, name: str) -> Any:
    if name in ("latents", "masks"):
        return getattr(step, name)
    if name not in PAIRS:
        return sampler.rows.negative_prompt_embeds
    own, unconditional = (getattr(sampler.rows, attribute) for attribute in PAIRS[name])
    return torch.cat([unconditional, own]) if is_guided(sampler.weights) else own


def _write(sampler: Sampler, name: str, value: Tensor) -> None:
    own, unconditional = PAIRS[name]
    count = len(sampler.latents)
    _check_rows(name, value, getattr(sampler.rows, own).shape[1:], (count, 2 * count))
    changed = {own: value[-count:]}
    if len(value) == 2 * count:
        changed[unconditional] = value[:count]
    sampler.change_text(changed)


def _check_rows(name: str, value: Any, shape: Sequence[int], counts: Sequence[int]) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape[1:]) != tuple(shape) or len(value) not in counts:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        allowed = " or ".join(str((count, *shape)) for count in counts)
        raise UsageError(f"the callback returned {name} {found}; they are a tensor {allowed}: one row for each image")
