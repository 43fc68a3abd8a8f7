"""UNet calls: what a sampler asks for, and how the calls of several samplers become one.

A sampler's step is a generator that yields its work (UNet calls, masks, scores) and is sent the results. Everything by which two
requests differ (prompt, subjects, adapter, guidance, mask, scheduler, timestep) belongs to the rows of a call, so rows of
any requests share one call if their latents have one size and their texts one length.

Letters: B rows of a call, c h w latent, T text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, Union

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from realcustom.attention import Acting, Conditioning, SubjectTokens
from realcustom.company import Places, join_recorders, join_subjects
from realcustom.maps import MapRecorder
from realcustom.work import Masking, Scoring

T = TypeVar("T")
Work = Union["Launch", Masking, Scoring]
Steps = Generator[Work, Any, T]  # yields work and is sent its results; of a Launch the prediction (B, c, h, w)


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


def padded_rows(count: int, sizes: Sequence[int]) -> int:
    """The smallest of these sizes that has room for so many rows; `count` where none has."""
    return min((size for size in sizes if size >= count), default=count)


@torch.no_grad()
def run_together(
    unet: UNet2DConditionModel, steps: Sequence[Steps[T]], rows: list[int] | None = None, sizes: Sequence[int] = ()
) -> list[T | Exception]:
    """One step of several samplers with as few UNet calls as possible: two for each size of latents, or one.

    Args:
        rows: the number of rows of each UNet call that succeeds is put here, without those that pad it.
        sizes: numbers of rows that UNet calls are padded to, so that a compiled UNet sees few shapes; none = no padding.
    Returns:
        Each one's result, or its own exception, which does not disturb the others: a call that fails is made again for each
        sampler alone.
    """
    calls: list[int] = [] if rows is None else rows
    results: dict[int, T | Exception] = {}
    waiting: dict[int, Work] = {}

    def resume(number: int, found: Any) -> None:
        if isinstance(found, Exception):
            results[number] = found
            return
        try:
            waiting[number] = steps[number].send(found)
        except StopIteration as stop:
            results[number] = stop.value
        except Exception as error:  # the caller raises it, or ends this request alone
            results[number] = error

    for number in range(len(steps)):
        resume(number, None)
    while waiting:
        turn = min(map(_turn, waiting.values()))
        groups: dict[Hashable, list[int]] = {}
        for number, work in waiting.items():
            if _turn(work) == turn:
                groups.setdefault((type(work), work.shape()), []).append(number)
        for members in groups.values():
            works = [waiting.pop(number) for number in members]
            for number, found in zip(members, _done(unet, works, sizes, calls), strict=True):
                resume(number, found)
    return [results[number] for number in range(len(steps))]


def _turn(work: Work) -> int:
    """What is done before what, so that the calls that come last have the rows of all samplers."""
    if isinstance(work, Launch):
        return 0 if work.before_others else 3
    return 1 if isinstance(work, Masking) else 2


def _done(unet: UNet2DConditionModel, works: Sequence[Any], sizes: Sequence[int], rows: list[int]) -> Sequence[Any]:
    """The results of works of one kind and shape, or the exceptions in their place."""
    launches = [work for work in works if isinstance(work, Launch)]
    recorded = [(launch.recorder, launch.recorder.rows) for launch in launches if launch.recorder is not None]
    try:
        if not launches:
            return list(type(works[0]).done(works))
        predictions = predict(unet, launches, sizes)
        rows.append(sum(len(launch.sample) for launch in launches))
        return predictions
    except Exception as error:
        if len(works) == 1:
            return [error]
    # the fault of one of them, or too much for the device's memory; here the error holds no tensors any more
    for recorder, own in recorded:
        recorder.rows = own
        recorder.forget()
    return [_done(unet, [work], sizes, rows)[0] for work in works]


def predict(unet: UNet2DConditionModel, launches: Sequence[Launch], sizes: Sequence[int] = ()) -> list[Tensor]:
    """One UNet call for launches of equal shape: each one's prediction (B, c, h, w). `sizes`: see `run_together`."""
    first = launches[0]
    if len(launches) == 1:
        conditioning = _conditioning(first, first.subjects, [] if first.recorder is None else [first.recorder])
        sample, text, conditions = first.sample, first.encoder_hidden_states, first.added_conditions
        return [_call(unet, first, sample, first.timestep, text, conditions, conditioning, sizes)]
    places = Places.of([len(launch.sample) for launch in launches], [launch.subjects for launch in launches])
    recordings = join_recorders(places, [launch.recorder for launch in launches])
    subjects = join_subjects(places, [launch.subjects for launch in launches])
    conditioning = _conditioning(first, subjects, [recording.recorder for recording in recordings])
    prediction = _call(
        unet,
        first,
        places.gather([launch.sample for launch in launches]),
        places.gather([launch.timestep.reshape(1).expand(len(launch.sample)) for launch in launches]),
        places.gather([launch.encoder_hidden_states for launch in launches]),
        _added_conditions(launches, places),
        conditioning,
        sizes,
    )
    for recording in recordings:
        recording.give_back()
    return places.scatter(prediction)


def _call(
    unet: UNet2DConditionModel,
    first: Launch,
    sample: Tensor,
    timestep: Tensor,
    text: Tensor,
    added_conditions: Mapping[str, Tensor] | None,
    conditioning: Conditioning | None,
    sizes: Sequence[int],
) -> Tensor:
    count = len(sample)
    size = count if first.controls else padded_rows(count, sizes)  # a control's residuals have rows of their own
    conditions = None
    if added_conditions is not None:
        conditions = {name: _padded(condition, size) for name, condition in added_conditions.items()}
    prediction: Tensor = unet(
        _padded(sample, size),
        _padded(timestep, size) if timestep.dim() else timestep,
        _padded(text, size),
        added_cond_kwargs=conditions,
        cross_attention_kwargs=None if conditioning is None else {"conditioning": conditioning},
        return_dict=False,
        **first.controls,
    )[0]
    return prediction[:count]


def _padded(rows: Tensor, size: int) -> Tensor:
    """So many rows: the last one is repeated. No subject acts in them, and nothing of them is recorded."""
    missing = size - len(rows)
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


def _conditioning(first: Launch, subjects: Sequence[Acting], recorders: Sequence[MapRecorder]) -> Conditioning | None:
    return Conditioning(grids=first.grids, subjects=subjects, recorders=recorders) if first.decoupled else None


def _added_conditions(launches: Sequence[Launch], places: Places) -> dict[str, Tensor] | None:
    each = [launch.added_conditions for launch in launches if launch.added_conditions is not None]
    return {name: places.gather([conditions[name] for conditions in each]) for name in each[0]} if each else None
