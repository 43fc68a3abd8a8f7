"""How long a job will take, from the steps so far, and whether that is too long for its deadline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.guidance import Weights
from realcustom.inference.cost import Load, StepCost
from realcustom.inference.errors import DeadlineExceeded, QueueFull
from realcustom.inference.jobs import GenerationJob, width_height_steps

SURE = 0.7  # of the expected seconds: a job is refused for its deadline where not even these are left


def expected_load(pipeline: RealCustomPipeline, job: GenerationJob) -> Load:
    """The UNet calls of all steps of a job, were it alone."""
    width, height, steps = width_height_steps(job.sampling, pipeline)
    factor = pipeline.base.vae_scale_factor
    weights = Weights(settings=pipeline.settings.guidance, has_subjects=bool(job.subjects))
    rows = steps * job.sampling.n * len(weights.branches())
    return Load(size=(height // factor, width // factor), calls=steps, rows=rows, alone=job.alone)


def check_time(own: Load, others: Sequence[Load], seconds: float, cost: StepCost) -> None:
    """Refuse a job that would not be done in time.

    Raises DeadlineExceeded where it takes longer than its deadline even alone, QueueFull where it does beside the others.

    Args:
        own: what it needs.
        others: what the jobs in the engine still need.
        seconds: to its deadline.
    """
    alone = cost.seconds_of([own])
    if SURE * alone > seconds:
        raise DeadlineExceeded(
            f"this request takes about {alone:.1f} s alone, and has {seconds:g} s: ask for fewer steps or images"
        )
    beside = cost.seconds_of([own, *(_until(alone, other, cost) for other in others)])
    if SURE * beside > seconds:
        raise QueueFull(
            f"this request would take about {beside:.1f} s beside those that run, and has {seconds:g} s; try later",
            max(1, math.ceil(beside - seconds)),
        )


def _until(seconds: float, load: Load, cost: StepCost) -> Load:
    """Of a longer job only about as much runs before one of so many seconds ends."""
    whole = cost.seconds_of([load])
    part = min(1.0, seconds / whole) if whole > 0 else 1.0
    return replace(load, calls=part * load.calls, rows=part * load.rows)
