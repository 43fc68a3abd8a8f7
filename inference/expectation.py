"""How long a job will take, from the steps so far, and whether that is too long for its deadline."""

from __future__ import annotations

import math
from collections.abc import Sequence

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.guidance import Weights
from realcustom.inference.cost import StepCost
from realcustom.inference.errors import DeadlineExceeded, QueueFull
from realcustom.inference.jobs import GenerationJob, width_height_steps

SURE = 0.7  # of the expected seconds: a job is refused for its deadline where not even these are left


def expected_seconds(pipeline: RealCustomPipeline, job: GenerationJob, cost: StepCost) -> float:
    """Seconds that a job takes alone; 0 before the first step of any."""
    width, height, steps = width_height_steps(job.sampling, pipeline)
    factor = pipeline.base.vae_scale_factor
    weights = Weights(settings=pipeline.settings.guidance, has_subjects=bool(job.subjects))
    return cost.seconds((height // factor, width // factor), steps, steps * job.sampling.n * len(weights.branches()))


def check_time(own: float, others: Sequence[float], seconds: float) -> None:
    """Refuse a job that would not be done in time.

    Raises DeadlineExceeded where it takes longer than its deadline even alone, QueueFull where it does beside the others.

    Args:
        own: seconds that it takes alone.
        others: seconds that the jobs in the engine still take, each alone.
        seconds: to its deadline.
    """
    if SURE * own > seconds:
        raise DeadlineExceeded(
            f"this request takes about {own:.1f} s alone, and has {seconds:g} s: ask for fewer steps or images"
        )
    ahead = sum(min(own, other) for other in others)  # of a longer one only about as much runs before this one ends
    if SURE * (own + ahead) > seconds:
        raise QueueFull(
            f"this request would take about {own + ahead:.1f} s beside those that run, and has {seconds:g} s; try later",
            max(1, math.ceil(own + ahead - seconds)),
        )
