"""The engine: a running batch that jobs join and leave between any two steps. Pure: no Ray, no HTTP.

Three threads: one prepares jobs (text and subjects encoded), one steps, one decodes. What a job needs of a step becomes
rows of at most two UNet calls, whoever the other rows belong to (`realcustom/launch.py`); `order.py` says whose turn it is. A
job that is cancelled or past its deadline is stopped within one denoising step; its place is free at once. A bug in one job
ends that job alone.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from realcustom.compiling import allow_graphs, no_new_graphs
from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.errors import UsageError
from realcustom.inference.cost import Load, StepCost
from realcustom.inference.errors import Cancelled, EngineLost, QueueFull, RequestError, UnknownModel
from realcustom.inference.expectation import check_time, expected_load
from realcustom.inference.job_check import JobCheck
from realcustom.inference.jobs import Generation, GenerationJob, Ticket
from realcustom.inference.measures import Measures
from realcustom.inference.order import LargestStretch, Order, Running
from realcustom.inference.progress import Progress, Usage
from realcustom.inference.prompts import PromptCache
from realcustom.launch import padded_rows, run_together
from realcustom.output import to_images
from realcustom.sampler import Step
from realcustom.settings import MethodSettings

logger = logging.getLogger(__name__)
ENDS = "the engine that drew this request ends; try again"
# a step that takes longer, and so many times what is expected, counts as hung
STALLED_SECONDS, STALLED_TIMES = 60.0, 10.0


class Engine:
    """Serves jobs with pipelines of one base, which share its UNet calls.

    Args:
        pipeline: owned by the engine from now on.
        max_queue: jobs that may be in the engine beside one.
        max_prompt_bytes: of encoded prompts that are kept.
        deadline_seconds: from `submit` to the last step.
        threads: CPU threads of torch in the stepping thread; the other two have one.
        adapter: description of the pipeline's adapter; `sha256` is its checkpoint's.
        order: who takes part in a step.
    """

    def __init__(
        self,
        pipeline: RealCustomPipeline,
        *,
        max_queue: int = 16,
        max_prompt_bytes: int = 64 * 1024 * 1024,
        deadline_seconds: float = 300.0,
        threads: int = 2,
        adapter: Mapping[str, Any] | None = None,
        order: Order | None = None,
    ) -> None:
        self.pipeline = pipeline
        self._device = pipeline.base.device
        self.adapter = dict(adapter) if adapter is not None else None
        self._pipelines: dict[str | None, RealCustomPipeline] = {None: pipeline}
        if adapter is not None:
            self._pipelines = {adapter["sha256"]: pipeline, None: RealCustomPipeline(pipeline.base, MethodSettings())}
        self._check = JobCheck(pipeline.base.tokenizer)
        self.max_queue, self.deadline_seconds = max_queue, deadline_seconds
        self._prompts = PromptCache(max_prompt_bytes)  # of the preparing thread
        self.order: Order = order or LargestStretch()
        self.batch_sizes: dict[tuple[int, int], Sequence[int]] = {}  # by latent size; UNet calls are padded to them
        self.may_compile = True  # False: shapes for which nothing was compiled yet run uncompiled
        self.cost = StepCost()
        self.measures = Measures()
        self._changed = threading.Condition()
        self._waiting: collections.deque[Ticket] = collections.deque()  # not prepared yet
        self._running: list[Running] = []
        self._done: collections.deque[Running] = collections.deque()  # all steps done, not decoded yet
        self._tickets: set[Ticket] = set()  # of all jobs without a result
        self._preparing = 0  # jobs that the preparing thread has in hand
        self._closed = False
        self._step_began: float | None = None
        self._step_expected = 0.0  # seconds, of the step that runs
        self._seconds_per_job = 1.0  # running mean of seconds between ends of jobs while busy, for Retry-After
        self._last_end = time.monotonic()
        self._threads = [
            threading.Thread(target=self._work, args=(act, count), name=name, daemon=True)
            for name, act, count in (
                ("prepare", self._prepare, 1),
                ("step", self._step, threads),
                ("finish", self._finish, 1),
            )
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether the engine's threads run, and no step hangs."""
        began = self._step_began
        longest = max(STALLED_SECONDS, STALLED_TIMES * self._step_expected)
        hangs = began is not None and time.monotonic() - began > longest
        return all(thread.is_alive() for thread in self._threads) and not hangs

    @property
    def jobs(self) -> int:
        """Jobs in the engine that have no result yet."""
        return len(self._tickets)

    def ahead(self, ticket: Ticket) -> int:
        """Jobs that came before this one and have no result yet; they may run together with it. Any thread may call."""
        return sum(other.submitted < ticket.submitted for other in list(self._tickets))

    @property
    def queued_seconds(self) -> float:
        """Seconds that the steps of all jobs in the engine will take, by what steps took so far. Any thread may call."""
        with self._changed:
            return self.cost.seconds_of(self._loads_left())

    def add_adapter(self, sha256: str, pipeline: RealCustomPipeline) -> None:
        """Serve a further adapter of the same base: a pipeline made by `with_adapter`. Running jobs go on."""
        self._pipelines = {**self._pipelines, sha256: pipeline}

    def remove_adapter(self, sha256: str) -> None:
        """Serve it no more; jobs that run with it end as they would have."""
        self._pipelines = {name: pipeline for name, pipeline in self._pipelines.items() if name != sha256}

    def pipeline_of(self, job: GenerationJob) -> RealCustomPipeline:
        """The pipeline that draws it. Raises UnknownModel."""
        found = self._pipelines.get(job.adapter)
        if found is None:
            raise UnknownModel(f"model: this server has no adapter {job.adapter}", "model")
        return found

    def forget_seconds(self) -> None:
        """Learn anew what steps and jobs take."""
        self.cost, self._seconds_per_job = StepCost(), 1.0

    def check(self, job: GenerationJob) -> None:
        """Refuse a job that would be refused when it runs. Raises RequestError; any thread may call."""
        self._check(job, self.pipeline_of(job))

    def submit(
        self,
        job: GenerationJob,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        deadline_seconds: float | None = None,
    ) -> Ticket:
        """Take `job`.

        Raises QueueFull with the seconds after which a place, or an end before the deadline, is likely; DeadlineExceeded where
        the job takes longer than its deadline even alone; Cancelled once closed.

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
            jobs = self.jobs
            if jobs > self.max_queue:
                wait = math.ceil(self._seconds_per_job * max(1.0, jobs / 2))
                raise QueueFull(f"{jobs} requests are being served already; try again later", max(1, wait))
            check_time(expected_load(self.pipeline_of(job), job), self._loads_left(), seconds, self.cost)
            self._waiting.append(ticket)
            self._tickets.add(ticket)
            ticket.future.add_done_callback(lambda _: self._end(ticket))
            self._observe_jobs()
            self._changed.notify_all()
        return ticket

    def _loads_left(self) -> list[Load]:
        """UNet calls that the jobs in the engine still need (the lock is held)."""
        left = [one.load_left() for one in self._running]
        return left + [expected_load(self.pipeline_of(other.job), other.job) for other in self._waiting]

    def close(self) -> None:
        """Stop the running jobs at their next step, and the waiting ones, all with EngineLost; end the threads."""
        with self._changed:
            self._closed = True
            for ticket in [*self._waiting, *(one.ticket for one in self._running)]:
                ticket.end(EngineLost(ENDS))
            self._drop_given_up()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _drop_given_up(self) -> None:
        """Free the places of jobs that were cancelled or are too late (the lock is held)."""
        for ticket in [ticket for ticket in self._waiting if _ended(ticket)]:
            self._waiting.remove(ticket)
        if self._step_began is None:  # else the stepping thread does so after its step
            self._running = [one for one in self._running if not _ended(one.ticket)]
        self._observe_jobs()

    def _observe_jobs(self) -> None:
        """Tell how many jobs take steps and how many have none yet (the lock is held)."""
        running = sum(one.started is not None for one in self._running)
        waiting = len(self._waiting) + self._preparing + len(self._running) - running
        self.measures.jobs(running, waiting)

    def _work(self, act: Callable[[], bool], threads: int) -> None:
        # Ray sets OMP_NUM_THREADS=1 in its workers. Set before each piece of work: the number is partly the process's, and
        # with more threads than cores in all pools OpenMP's barriers sleep, which takes half as long again
        allow_graphs()
        torch.set_num_threads(threads)
        while act():
            torch.set_num_threads(threads)

    def _wait_for(self, something: Callable[[], bool], more: Callable[[], bool]) -> bool:
        """Wait (the lock is held) until there is something to do; False = the engine is closed, and no more will come."""
        while not something():
            if self._closed and not more():
                return False
            self._changed.wait()
        return True

    def _prepare(self) -> bool:
        """Bring one waiting job to its first step."""
        with self._changed:
            if not self._wait_for(lambda: bool(self._waiting), more=lambda: False):
                return False
            ticket = self._waiting.popleft()
            self._preparing += 1
        running = self._attempt(ticket, lambda: self._prepared(ticket))
        with self._changed:
            self._preparing -= 1
            if running is not None:
                self._running.append(running)
                if self._closed:
                    running.ticket.end(EngineLost(ENDS))
            self._observe_jobs()
            self._changed.notify_all()
        return True

    def _prepared(self, ticket: Ticket) -> Running:
        ticket.check()
        job, pipeline = ticket.job, self.pipeline_of(ticket.job)
        try:
            hits = self._prompts.hits
            prepared = self._prompts.prepare(pipeline, job, copy.deepcopy(pipeline.scheduler))
        except UsageError as error:  # the pipeline's refusal of arguments that `check` does not test
            raise RequestError(str(error)) from error
        tokens = sum(one.held_bytes for one in self._pipelines.values())
        self.measures.caches(self._prompts.hits - hits, self._prompts.held_bytes, tokens)
        sampler = prepared.sampler
        return Running(ticket=ticket, sampler=sampler, forwards=sampler.forwards_left())

    def _step(self) -> bool:
        """One step of some of the running jobs."""
        with self._changed:
            if not self._wait_for(lambda: bool(self._running), more=lambda: bool(self._waiting or self._preparing)):
                return False
            self._drop_given_up()
            if not self._running:
                return True
            now = self._step_began = time.monotonic()
            chosen = self.order.choose(self._running, self.cost, now)
            self._step_expected = self.cost.seconds(chosen[0].size, 2, 2 * sum(one.rows for one in chosen))
            for one in chosen:
                if one.started is None:
                    one.started = now
                    self.measures.begun(one.ticket)
            self._observe_jobs()
        calls: list[int] = []
        forwards = [one.sampler.forwards_left() for one in chosen]
        sizes = self.batch_sizes.get(chosen[0].size, ())
        with contextlib.nullcontext() if self.may_compile else no_new_graphs():
            launches = [one.sampler.launches() for one in chosen]
            results = run_together(self.pipeline.base.unet, launches, rows=calls, sizes=sizes)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # else the clock would say when the work was handed over
        if calls:
            seconds = time.monotonic() - now
            computed = sum(padded_rows(rows, sizes) for rows in calls)
            self.cost.learn(chosen[0].size, len(calls), computed, seconds)
            self.measures.step(self.cost, chosen, forwards, calls, seconds)
        ended = [one for one, result in zip(chosen, results, strict=True) if not self._went_on(one, result)]
        with self._changed:
            self._step_began = None
            self._running = [one for one in self._running if one not in ended]
            self._done.extend(one for one in ended if not one.ticket.future.done())
            self._drop_given_up()
            self._changed.notify_all()
        return True

    def _went_on(self, one: Running, result: Step | Exception) -> bool:
        """What follows of a job's step: whether it has more of them."""

        def told() -> Step:
            if isinstance(result, UsageError):
                raise RequestError(str(result)) from result
            if isinstance(result, Exception):
                raise result
            sampler = one.sampler
            if one.ticket.job.sampling.return_masks and result.masks is not None:
                one.masks.append(result.masks)
            if result.index == 0:
                self.measures.first_step(one.ticket)
            if one.ticket.on_progress is not None:
                masks = None if result.masks is None else torch.cat(result.masks, 1)
                of = len(sampler.start.timesteps)
                one.ticket.on_progress(Progress(step=result.index + 1, of=of, latents=result.latents, masks=masks))
            one.ticket.check()
            if sampler.done:
                one.ticket.meet_deadline()
            return result

        return self._attempt(one.ticket, told) is not None and not one.sampler.done

    def _end(self, ticket: Ticket) -> None:
        """It has its result."""
        self._tickets.discard(ticket)
        if isinstance(ticket.future.exception(), Cancelled):
            self.measures.cancelled()

    def _finish(self) -> bool:
        """Decode one job's images."""
        with self._changed:
            if not self._wait_for(lambda: bool(self._done), more=lambda: self.jobs > 0):
                return False
            one = self._done.popleft()
        generation = self._attempt(one.ticket, lambda: self._generation(one))
        with self._changed:
            now = time.monotonic()
            since = now - max(self._last_end, one.ticket.submitted)
            self._seconds_per_job += 0.3 * (since - self._seconds_per_job)
            self._last_end = now
            self._changed.notify_all()
        if generation is not None:
            one.ticket.future.set_result(generation)
        return True

    def _generation(self, one: Running) -> Generation:
        one.ticket.check()
        images = to_images(self.pipeline.base, one.sampler.latents, "pil")
        assert isinstance(images, list)
        masks = None
        if one.masks:  # (steps, n, subjects, h, w)
            masks = torch.stack([torch.cat(step, 1) for step in one.masks]).float().cpu().numpy()
        assert one.started is not None  # all its steps are done
        usage = Usage(
            forwards=one.forwards,
            seconds=time.monotonic() - one.started,
            queue_seconds=one.started - one.ticket.submitted,
        )
        return Generation(images=images, seeds=one.ticket.job.seeds(), masks=masks, usage=usage)

    def _attempt(self, ticket: Ticket, act: Callable[[], Any]) -> Any:
        """What `act` returns; None if it failed, which is then the job's result."""
        try:
            return act()
        except RequestError as error:
            ticket.future.set_exception(error)
        except Exception as error:  # a bug fails this request, not the engine
            logger.exception("a job failed")
            ticket.future.set_exception(error)
        return None


def _ended(ticket: Ticket) -> bool:
    """Whether the job was cancelled or is too late; its future says so from now on."""
    try:
        ticket.check()
    except RequestError as error:
        ticket.future.set_exception(error)
        return True
    return False
