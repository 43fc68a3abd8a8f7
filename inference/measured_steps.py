"""What a step of the running batch gives to the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from realcustom.guidance import Branch
from realcustom.inference.cost import StepCost
from realcustom.inference.metrics import Observer
from realcustom.inference.order import Running


def observe_step(
    observer: Observer,
    cost: StepCost,
    jobs: Sequence[Running],
    forwards_left: Sequence[int],
    calls: Sequence[int],
    seconds: float,
) -> None:
    """Tell of a step.

    Args:
        jobs: that took it.
        forwards_left: that each of them had left before it.
        calls: rows of each UNet call.
    """
    observe = observer.observe
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
