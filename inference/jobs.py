"""A request's work in the engine: the job, its place there, its result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from PIL import Image

from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.inference.errors import Cancelled, DeadlineExceeded, RequestError
from realcustom.inference.progress import Progress, Usage
from realcustom.sampling import SamplingParams


@dataclass(frozen=True, kw_only=True)
class GenerationJob:
    """A request, checked and decoded."""

    prompt: str
    subjects: tuple[Subject, ...] = ()
    sampling: SamplingParams  # with a seed
    adapter: str | None = None  # sha256 of the adapter that draws; None = the base alone
    owner: str = ""  # who asks: places in a step go round among owners
    alone: bool = False  # shares no UNet call, so that its bytes are the same in any company

    def seeds(self) -> list[int]:
        """The seed of each image."""
        assert self.sampling.seed is not None
        return [self.sampling.seed + i for i in range(self.sampling.n)]


def width_height_steps(sampling: SamplingParams, pipeline: RealCustomPipeline) -> tuple[int, int, int]:
    """An image's size in pixels and its denoising steps; what the request leaves out is the pipeline's own."""
    side = pipeline.base.resolution
    steps = sampling.num_inference_steps or pipeline.settings.sampler.num_inference_steps
    return sampling.width or side, sampling.height or side, steps


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The result of a job: image i was generated from `seeds[i]`."""

    images: list[Image.Image]
    seeds: list[int]
    masks: np.ndarray | None  # (steps, n, subjects, h, w) in [0, 1]; None unless asked for
    usage: Usage


class Ticket:
    """A job's place in the engine: its future result, and its cancellation."""

    def __init__(
        self, job: GenerationJob, deadline: float, on_progress: Callable[[Progress], None] | None = None
    ) -> None:
        self.job = job
        self.submitted = time.monotonic()
        self.on_progress = on_progress
        self.deadline = deadline  # of the last step, time.monotonic() seconds
        self.future: Future[Generation] = Future()
        self.future.set_running_or_notify_cancel()  # only the engine ends it: a waiter's cancel() must not race with it
        self._ended_by: RequestError | None = None

    def cancel(self) -> None:
        """Cancel the job: it is not started if it still waits, and stopped within one step if it runs."""
        self.end(Cancelled("the request was cancelled"))

    def end(self, error: RequestError) -> None:
        """As `cancel`, for this reason."""
        self._ended_by = self._ended_by or error

    def meet_deadline(self) -> None:
        """All steps were done in time: what follows has no deadline."""
        self.deadline = math.inf

    def seconds_left(self) -> float:
        """Seconds until the deadline; 0 after it, infinite once it was met."""
        return max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raises Cancelled, DeadlineExceeded or what else ended it if the job must stop."""
        if self._ended_by is not None:
            raise self._ended_by
        if time.monotonic() > self.deadline:
            raise DeadlineExceeded("the request was not done before its deadline; ask for fewer steps or images")
