"""What others do in the place of `realcustom.inference.order.LargestStretch`, for comparison on the same engine."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from realcustom.inference.cost import StepCost
from realcustom.inference.order import Running


def oldest(running: Sequence[Running]) -> Running:
    """First in, first out."""
    return min(running, key=lambda one: one.ticket.submitted)


def key_of(one: Running) -> Hashable:
    """What engines that batch steps ask to be equal: size, guidance, adapter."""
    return one.size, one.sampler.guidance, one.ticket.job.adapter


class OneSlot:
    """One job at a time, as diffusers in a web server does."""

    def choose(self, running: Sequence[Running], cost: StepCost, now: float) -> list[Running]:
        """See `Order`."""
        return [oldest(running)]


class RequestBatches:
    """Compatible jobs are fused before they start; the batch is closed until all its jobs have ended."""

    def __init__(self, max_jobs: int = 8) -> None:
        self.max_jobs = max_jobs
        self._batch: list[Running] = []

    def choose(self, running: Sequence[Running], cost: StepCost, now: float) -> list[Running]:
        """See `Order`."""
        self._batch = [one for one in self._batch if one in running]
        if not self._batch:
            first = oldest(running)
            wanted = key_of(first), first.sampler.start.steps
            fitting = [one for one in running if (key_of(one), one.sampler.start.steps) == wanted]
            self._batch = sorted(fitting, key=lambda one: one.ticket.submitted)[: self.max_jobs]
        return self._batch


class KeyedSteps:
    """Batches at the denoising step with one compatibility key: the oldest job's, until no job of it is left."""

    def __init__(self, max_jobs: int = 8) -> None:
        self.max_jobs = max_jobs
        self._key: Hashable = None

    def choose(self, running: Sequence[Running], cost: StepCost, now: float) -> list[Running]:
        """See `Order`."""
        if all(key_of(one) != self._key for one in running):
            self._key = key_of(oldest(running))
        fitting = [one for one in running if key_of(one) == self._key]
        return sorted(fitting, key=lambda one: one.ticket.submitted)[: self.max_jobs]
