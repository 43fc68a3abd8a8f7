"""UNet calls: what a sampler asks for, and how the calls of several samplers become one.

A sampler's step is a generator that yields its calls one by one and is sent the predictions. Everything by which two
requests differ (prompt, subjects, adapter, guidance, mask, scheduler, timestep) belongs to the rows of a call, so rows of
any requests share one call if their latents have one size and their texts one length.

Letters: B rows of a call, c h w latent, T text tokens, D text width.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from realcustom.attention import Conditioning, SubjectTokens, shifted
from realcustom.maps import MapRecorder

T = TypeVar("T")
Steps = Generator["Launch", Tensor, T]  # yields calls, is sent their predictions (B, c, h, w)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The rows that one sampler needs predictions of."""

    sample: Tensor  # (B, c, h, w), as the UNet sees it
    timestep: Tensor  # a scalar: rows of one sampler are at one timestep
    encoder_hidden_states: Tensor  # (B, T, D)
    added_conditions: Mapping[str, Tensor] | None = None  # SDXL: text_embeds (B, P), time_ids (B, 6)
    grids: Mapping[int, tuple[int, int]]  # number of queries -> (h, w) of that level
    subjects: Sequence[SubjectTokens] = ()
    recorder: MapRecorder | None = None
    before_others: bool = False  # the sampler's other call of this step needs this one's maps
    decoupled: bool = True  # the UNet has our attention processors, which take subjects and recorders
    controls: Mapping[str, Any] = field(default_factory=dict)  # residuals of ControlNets and T2I-adapters
    alone: bool = False  # never shares a call, so that its bits do not depend on other requests

    def shape(self) -> Hashable:
        """Launches of equal shape may share a call."""
        if self.alone or self.controls:
            return id(self)
        return self.sample.shape[1:], self.encoder_hidden_states.shape[1:], self.decoupled


@torch.no_grad()
def run_together(
    unet: UNet2DConditionModel, steps: Sequence[Steps[T]], rows: list[int] | None = None
) -> list[T | Exception]:
    """One step of several samplers with as few UNet calls as possible: two for each size of latents, or one.

    Args:
        rows: the number of rows of each UNet call is put here.
    Returns:
        Each one's result, or its own exception, which does not disturb the others. What the UNet raises goes to all samplers
        of that call.
    """
    results: dict[int, T | Exception] = {}
    waiting: dict[int, Launch] = {}

    def resume(number: int, prediction: Tensor | None) -> None:
        try:
            waiting[number] = next(steps[number]) if prediction is None else steps[number].send(prediction)
        except StopIteration as stop:
            results[number] = stop.value
        except Exception as error:  # the caller raises it, or ends this request alone
            results[number] = error

    for number in range(len(steps)):
        resume(number, None)
    while waiting:
        ready = [number for number, launch in waiting.items() if launch.before_others] or list(waiting)
        groups: dict[Hashable, list[int]] = {}
        for number in ready:
            groups.setdefault(waiting[number].shape(), []).append(number)
        for members in groups.values():
            launches = [waiting.pop(number) for number in members]
            if rows is not None:
                rows.append(sum(len(launch.sample) for launch in launches))
            try:
                predictions = predict(unet, launches)
            except Exception as error:
                results.update(dict.fromkeys(members, error))
                continue
            for number, prediction in zip(members, predictions, strict=True):
                resume(number, prediction)
    return [results[number] for number in range(len(steps))]


def predict(unet: UNet2DConditionModel, launches: Sequence[Launch]) -> list[Tensor]:
    """One UNet call for launches of equal shape: each one's prediction (B, c, h, w)."""
    first = launches[0]
    counts = [len(launch.sample) for launch in launches]
    conditioning = _conditioning(launches, counts) if first.decoupled else None
    prediction: Tensor = unet(
        joined([launch.sample for launch in launches]),
        _timesteps(launches),
        joined([launch.encoder_hidden_states for launch in launches]),
        added_cond_kwargs=_added_conditions(launches),
        cross_attention_kwargs=None if conditioning is None else {"conditioning": conditioning},
        return_dict=False,
        **first.controls,
    )[0]
    return [prediction] if len(launches) == 1 else list(prediction.split(counts))


def _conditioning(launches: Sequence[Launch], counts: Sequence[int]) -> Conditioning:
    """Subjects and recorders at the call's rows."""
    subjects: list[SubjectTokens] = []
    recorders: list[MapRecorder] = []
    for launch, offset in zip(launches, itertools.accumulate(counts[:-1], initial=0), strict=True):
        subjects += [subject.at(offset) for subject in launch.subjects]
        if launch.recorder is not None:
            launch.recorder.rows = shifted(launch.recorder.rows, offset)  # it is made for this call alone
            recorders.append(launch.recorder)
    return Conditioning(grids=launches[0].grids, subjects=subjects, recorders=recorders)


def _timesteps(launches: Sequence[Launch]) -> Tensor:
    """A scalar for one launch, as diffusers' pipelines pass it; else (B,)."""
    if len(launches) == 1:
        return launches[0].timestep
    return torch.cat([launch.timestep.reshape(1).expand(len(launch.sample)) for launch in launches])


def _added_conditions(launches: Sequence[Launch]) -> dict[str, Tensor] | None:
    each = [launch.added_conditions for launch in launches if launch.added_conditions is not None]
    return {name: joined([conditions[name] for conditions in each]) for name in each[0]} if each else None


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows one below the other; the tensor itself if it is the only one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
