"""The engine: one pipeline, one thread, one request at a time, a bounded queue before it. Pure: no Ray, no HTTP.

A request that is cancelled or past its deadline is stopped within one denoising step; its place is free at once.
"""

from __future__ import annotations

import collections
import copy
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from realcustom import config
from realcustom.checkpoint import adapter_sha256, read_header
from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.errors import UsageError
from realcustom.inference.errors import Cancelled, DeadlineExceeded, QueueFull, RequestError, WordNotInPrompt
from realcustom.inference.progress import Progress, Usage
from realcustom.inference.settings import ServeSettings
from realcustom.sampling import SamplingParams
from realcustom.tokens import chunks_of
from realcustom.words import TargetWordNotFound, find_word

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GenerationJob:
    """A request, checked and decoded."""

    prompt: str
    subjects: tuple[Subject, ...] = ()
    sampling: SamplingParams  # with a seed
    adapter: str | None = None  # sha256 of the adapter that draws; None = the base alone

    def seeds(self) -> list[int]:
        """The seed of each image."""
        assert self.sampling.seed is not None
        return [self.sampling.seed + i for i in range(self.sampling.n)]


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
        self.deadline = deadline  # time.monotonic() seconds
        self.future: Future[Generation] = Future()
        self.future.set_running_or_notify_cancel()  # only the engine ends it: a waiter's cancel() must not race with it
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Cancel the job: it is not started if it still waits, and stopped within one step if it runs."""
        self._cancelled.set()

    def seconds_left(self) -> float:
        """Seconds until the deadline; 0 after it."""
        return max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raises Cancelled or DeadlineExceeded if the job must stop."""
        if self._cancelled.is_set():
            raise Cancelled("the request was cancelled")
        if time.monotonic() > self.deadline:
            raise DeadlineExceeded("the request was not done before its deadline; ask for fewer steps or images")


class Engine:
    """Serves jobs from a bounded queue with one pipeline, in a thread of its own.

    Args:
        pipeline: owned by the engine from now on.
        max_queue: jobs that may wait behind the one that runs.
        deadline_seconds: from `submit` to the last step.
        threads: CPU threads of torch in the engine's thread.
        adapter: description of the loaded adapter; `sha256` is its checkpoint's.
    """

    def __init__(
        self,
        pipeline: RealCustomPipeline,
        *,
        max_queue: int = 16,
        deadline_seconds: float = 300.0,
        threads: int = 2,
        adapter: Mapping[str, Any] | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.adapter = dict(adapter) if adapter is not None else None
        # a tokenizer's truncation is state that a call sets: one for the engine's thread, one for `check`
        self._tokenizer, self._tokenizing = copy.deepcopy(pipeline.base.tokenizer), threading.Lock()
        self.max_queue = max_queue
        self.deadline_seconds = deadline_seconds
        self._changed = threading.Condition()
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._running: Ticket | None = None
        self._closed = False
        self._seconds_per_job = 1.0  # running mean of seconds per job, for Retry-After
        self._thread = threading.Thread(target=self._work, args=(threads,), name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    def check(self, job: GenerationJob) -> None:
        """Refuse a job that would be refused when it runs. Raises RequestError; any thread may call."""
        if job.subjects and self.pipeline.image_encoder is None:
            raise RequestError("subjects: this server runs without an adapter, it takes none", "subjects")
        words = self.pipeline.settings.words
        for i, subject in enumerate(job.subjects):
            try:
                occurrence = subject.chosen_occurrence(words.occurrence)
                with self._tokenizing:
                    chunks = chunks_of(self._tokenizer, job.prompt) if job.sampling.long_prompt else 1
                    for word in subject.words:
                        find_word(self._tokenizer, job.prompt, word, occurrence, words.plural, words.match, chunks)
            except TargetWordNotFound as error:
                raise WordNotInPrompt(str(error), f"subjects[{i}].word") from error
            except UsageError as error:  # empty, or after the last token that the text encoder reads
                raise RequestError(str(error), f"subjects[{i}].word") from error
        factor = self.pipeline.base.vae_scale_factor
        for name, side in (("width", job.sampling.width), ("height", job.sampling.height)):
            if side is not None and side % factor:
                raise RequestError(f"size: the {name} must be a multiple of {factor} pixels, got {side}", "size")

    def submit(
        self,
        job: GenerationJob,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        deadline_seconds: float | None = None,
    ) -> Ticket:
        """Queue `job`. Raises QueueFull with the seconds after which a place is likely, Cancelled once closed.

        Args:
            on_progress: called after every step of the job, in the engine's thread: it only hands over.
            deadline_seconds: from now to the last step; None, or more than the engine's own: the engine's own.
        """
        seconds = self.deadline_seconds if deadline_seconds is None else min(deadline_seconds, self.deadline_seconds)
        ticket = Ticket(job, time.monotonic() + seconds, on_progress)
        with self._changed:
            if self._closed:
                raise Cancelled("the engine is closed")
            self._drop_given_up()
            busy = self._running is not None
            if len(self._waiting) >= self.max_queue + (0 if busy else 1):
                wait = math.ceil(self._seconds_per_job * (len(self._waiting) + busy) / 2)
                raise QueueFull(f"{len(self._waiting)} requests are waiting already; try again later", max(1, wait))
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def close(self) -> None:
        """Stop the running job at its next step, cancel the waiting ones, end the thread."""
        with self._changed:
            self._closed = True
            for ticket in [*self._waiting, *([self._running] if self._running else [])]:
                ticket.cancel()
            self._drop_given_up()
            self._changed.notify_all()
        self._thread.join()

    def _drop_given_up(self) -> None:
        """Free the places of waiting jobs that were cancelled or are too late (the lock is held)."""
        for ticket in list(self._waiting):
            try:
                ticket.check()
            except RequestError as error:
                self._waiting.remove(ticket)
                ticket.future.set_exception(error)

    def _work(self, threads: int) -> None:
        torch.set_num_threads(threads)  # Ray sets OMP_NUM_THREADS=1 in its workers
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                ticket = self._running = self._waiting.popleft()
            started = time.monotonic()
            try:
                ticket.future.set_result(self._generate(ticket))
                self._seconds_per_job += 0.3 * (time.monotonic() - started - self._seconds_per_job)
            except RequestError as error:
                ticket.future.set_exception(error)
            except Exception as error:  # a bug fails this request, not the engine
                logger.exception("a job failed")
                ticket.future.set_exception(error)
            finally:
                with self._changed:
                    self._running = None

    def _generate(self, ticket: Ticket) -> Generation:
        ticket.check()
        job, started, forwards = ticket.job, time.monotonic(), 0

        def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            ticket.check()
            if ticket.on_progress is not None:
                masks = None if tensors["masks"] is None else torch.cat(tensors["masks"], 1)
                of = pipeline.num_timesteps
                ticket.on_progress(Progress(step=step + 1, of=of, latents=tensors["latents"], masks=masks))
            return tensors

        def count(unet: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            nonlocal forwards
            forwards += len(inputs[0])

        counting = self.pipeline.base.unet.register_forward_pre_hook(count)
        try:
            output = self.pipeline.draw(job.prompt, job.subjects, job.sampling, callback_on_step_end=after_step)
        except UsageError as error:  # the pipeline's refusal of arguments that `check` does not test
            raise RequestError(str(error)) from error
        finally:
            counting.remove()
        assert isinstance(output.images, list)
        masks = None
        if output.masks:  # (steps, n, subjects, h, w)
            masks = torch.stack([torch.cat(step, 1) for step in output.masks]).float().cpu().numpy()
        usage = Usage(forwards=forwards, seconds=time.monotonic() - started, queue_seconds=started - ticket.submitted)
        return Generation(images=output.images, seeds=job.seeds(), masks=masks, usage=usage)


def load_engine(settings: ServeSettings, base: str, adapter: str | None, image_encoder: str | None) -> Engine:
    """Load the models and start an engine. Raises UsageError that says what is wrong with a model."""
    pipeline = RealCustomPipeline.from_pretrained(
        base,
        adapter=adapter,
        image_encoder=image_encoder,
        device=settings.device,
        torch_dtype=settings.dtype.to_torch(),
    )
    pipeline.set_progress_bar_config(disable=True)  # a server's log has lines alone
    return Engine(
        pipeline,
        max_queue=settings.max_queue,
        deadline_seconds=settings.deadline_seconds,
        threads=settings.threads,
        adapter=None if adapter is None else describe_adapter(adapter),
    )


def describe_adapter(uri: str) -> dict[str, Any]:
    """An adapter checkpoint's metadata as plain data; without its path."""
    header, digest = read_header(uri), adapter_sha256(uri)
    return {
        "id": digest[:12],
        "sha256": digest,
        "base": header.base,
        "image_encoder": header.image_encoder,
        "settings": config.to_dict(header.settings),
    }
