"""What the engine gives to the metrics, of jobs, steps and caches."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from realcustom.guidance import Branch
from realcustom.inference.cost import StepCost
from realcustom.inference.jobs import Ticket
from realcustom.inference.metrics import UNOBSERVED, Observer
from realcustom.inference.order import Running


class Measures:
    """Those of one engine; its threads call, each for what it does."""

    def __init__(self) -> None:
        self.observer: Observer = UNOBSERVED
        self._told: tuple[int, int] | None = None  # the gauges' last values

    def jobs(self, running: int, waiting: int) -> None:
        """So many jobs take steps, and so many have none yet. Told where that has changed."""
        if (running, waiting) != self._told:
            self._told = running, waiting
            self.observer.observe("running", running)
            self.observer.observe("waiting", waiting)

    def caches(self, hits: int, prompt_bytes: int, token_bytes: int) -> None:
        """So many more jobs found their prompts, and so much is kept on the device."""
        self.observer.observe("cache_hits_total", hits, "prompts")
        self.observer.observe("cache_bytes", prompt_bytes, "prompts")
        self.observer.observe("cache_bytes", token_bytes, "tokens")

    def begun(self, ticket: Ticket) -> None:
        """A job's first step begins."""
        self.observer.observe("queue_seconds", time.monotonic() - ticket.submitted)

    def first_step(self, ticket: Ticket) -> None:
        """A job's first step is done."""
        self.observer.observe("time_to_first_step_seconds", time.monotonic() - ticket.submitted)

    def cancelled(self) -> None:
        """A job was cancelled."""
        self.observer.observe("cancelled_total", 1)

    def step(
        self,
        cost: StepCost,
        jobs: Sequence[Running],
        forwards_left: Sequence[int],
        calls: Sequence[int],
        seconds: float,
    ) -> None:
        """A step is done.

        Args:
            jobs: that took it.
            forwards_left: that each of them had left before it.
            calls: rows of each UNet call.
        """
        observe = self.observer.observe
        observe("step_seconds", seconds)
        observe("batch_cells_used_ratio", min(1.0, max(calls) / cost.full_rows(jobs[0].size)))
        for rows in calls:
            observe("batch_rows", rows)
        forwards: Counter[Branch] = Counter()
        for one, left in zip(jobs, forwards_left, strict=True):
            branches, images = one.sampler.weights.branches(), len(one.sampler.latents)
            forwards.update(dict.fromkeys(branches, images))
            passes = left - one.sampler.forwards_left() - images * len(branches)  # for the mask alone
            forwards[Branch.GUIDANCE] += max(0, passes)
        for branch, images in (+forwards).items():
            observe("forwards_total", images, branch.value)
