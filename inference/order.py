"""Which of the running jobs take part in the next step.

The job that would end with the largest stretch leads, were it passed over once more: its time in the engine, when it ends,
over its time alone. A step of others is much of a short job's time, so it is led past long ones at once; a long job's stretch
grows for as long as it is passed over, so it never starves. Others of the leader's size come with it: as many rows as make a
UNet call efficient, none of much more work than the leader's, who would pay for them with its own time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from realcustom.inference.cost import LEAST_ROWS, Load, StepCost
from realcustom.inference.expectation import SURE
from realcustom.inference.jobs import Ticket
from realcustom.launch import padded_rows
from realcustom.sampler import Sampler

COMPANY = 8.0  # jobs of at most so many times the leader's work come with it
URGENT = 0.6  # a job leads all others when its work alone would take this part of the time to its deadline


@dataclass(kw_only=True, eq=False)
class Running:
    """A job that takes steps."""

    ticket: Ticket
    sampler: Sampler
    forwards: int  # single-image UNet forwards of all its steps
    started: float | None = None  # time.monotonic() seconds of its first step's start; None: it waits for it
    masks: list[tuple[torch.Tensor, ...]] = field(default_factory=list)  # of each step, where the job asks for them

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of its latents: jobs of one size may share a UNet call."""
        height, width = self.sampler.latents.shape[-2:]
        return int(height), int(width)

    @property
    def rows(self) -> int:
        """Rows of its largest UNet call."""
        return len(self.sampler.latents) * len(self.sampler.weights.branches())

    def load(self, left: int | None = None) -> Load:
        """The UNet calls of its steps, were it alone; of those with so many forwards left, else of all."""
        steps = len(self.sampler.start.timesteps)
        per_row = self.forwards / max(1, self.rows * steps)  # UNet calls a step: 1, or more while masks are new
        part = 1.0 if left is None else left / max(1, self.forwards)
        calls = steps * max(1.0, per_row)
        return Load(size=self.size, calls=part * calls, rows=part * self.forwards, alone=self.sampler.alone)

    def load_left(self) -> Load:
        """Of the steps that are left."""
        return self.load(self.sampler.forwards_left())

    def seconds(self, cost: StepCost) -> tuple[float, float]:
        """Expected seconds alone: of what is left, and of all steps."""
        return cost.seconds_of([self.load_left()]), cost.seconds_of([self.load()])


class Order(Protocol):
    """A rule for who takes part in the next step."""

    def choose(self, running: Sequence[Running], cost: StepCost, now: float) -> list[Running]:
        """Some of `running`, which is not empty: those that step together, all of one size of latents."""
        ...


@dataclass(frozen=True, kw_only=True)
class LargestStretch:
    """The rule of this module.

    Args:
        max_cells: latent cells of all rows of a UNet call at most, for its memory: a job that needs more alone runs alone.
        batch_sizes: numbers of rows that UNet calls are padded to; none = they are not.
    """

    max_cells: int = 64 * 64 * 64  # 64 rows of Stable Diffusion 1.5's size
    batch_sizes: Sequence[int] = ()

    def choose(self, running: Sequence[Running], cost: StepCost, now: float) -> list[Running]:
        """See `Order`."""
        work = {one: one.seconds(cost) for one in running}
        waits = {one.size: cost.seconds(one.size, 1, LEAST_ROWS) for one in running}
        ranked = _fairly([(one, _urgency(one, *work[one], waits[one.size], now)) for one in running])
        leader = ranked[0]
        if leader.sampler.alone:
            return [leader]
        limit = self._limit(leader.size, max(leader.rows, cost.full_rows(leader.size)))
        chosen, rows = [leader], leader.rows
        for one in ranked[1:]:
            fits = one.size == leader.size and not one.sampler.alone and rows + one.rows <= limit
            if fits and work[one][1] <= COMPANY * work[leader][1]:
                chosen.append(one)
                rows += one.rows
        return chosen

    def _limit(self, size: tuple[int, int], wanted: int) -> int:
        """Rows of a UNet call at most, where so many are wanted; with padding the rows that would pad it come in as well."""
        fitting = self.max_cells // (size[0] * size[1])
        limit = min(fitting, wanted)
        sizes = [rows for rows in self.batch_sizes if rows <= fitting]
        return min(padded_rows(limit, sizes), max(sizes, default=limit))


def _urgency(one: Running, left: float, whole: float, wait: float, now: float) -> float:
    """The stretch at which a job would end if it ran alone after one step of others; infinite near its deadline.

    One that cannot end before its deadline any more comes last: it would take the others' time for nothing.
    """
    until = one.ticket.deadline - now
    if SURE * left > until:
        return -math.inf
    if left > URGENT * until:
        return math.inf
    return (now - one.ticket.submitted + wait + left) / whole if whole > 0 else now - one.ticket.submitted


def _fairly(jobs: Sequence[tuple[Running, float]]) -> list[Running]:
    """The most urgent first; of each owner the first job before the second of any other. Hopeless ones after all owners'."""
    ranked = sorted(jobs, key=lambda job: -job[1])
    places: dict[str, int] = defaultdict(int)
    keyed = []
    for number, (one, urgency) in enumerate(ranked):
        owner = one.ticket.job.owner
        keyed.append(((urgency == -math.inf, places[owner], number), one))
        places[owner] += 1
    return [one for _, one in sorted(keyed, key=lambda item: item[0])]
