"""Where units run: in this process, or on Ray. `run_stage` takes one of the two."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

from realcustom import log
from realcustom.errors import UsageError
from realcustom.preprocessing.engine.batch_size import probe, probe_on_worker
from realcustom.preprocessing.engine.model_check import check_loading
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.engine.worker import Outcome, Processor, StageJob, UnitDone, UnitTaken, do_unit

logger = logging.getLogger(__name__)


class Executor(Protocol):
    """Runs the units of a job."""

    def check(self, job: StageJob) -> None:
        """Raise UsageError, naming them, if the job's models cannot be loaded."""
        ...

    def probe(self, job: StageJob) -> int:
        """The largest batch that fits where units are to run."""
        ...

    def run(self, job: StageJob, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Process and commit units; yields each when it is done. What another client has is left out."""
        ...

    def tell_left(self, job: StageJob, units: int) -> None:
        """Publish how many units have not ended after a run: those that other clients have."""
        ...


class InProcess:
    """Units in this process, one after the other: for a few pictures, tests, previews and notebooks.

    Those that wait for a network are done some at a time, in threads.
    """

    def __init__(self) -> None:
        self._loaded: tuple[StageJob, Processor] | None = None  # loaded by `check`: models are loaded once

    def check(self, job: StageJob) -> None:
        """Load the models; they stay loaded."""
        if job.models:
            processor = Processor(job)
            processor.load()
            self._loaded = (job, processor)

    def probe(self, job: StageJob) -> int:
        """The largest batch that fits this process's device."""
        return probe(job)

    def run(self, job: StageJob, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Process and commit units in this process."""
        loaded, self._loaded = self._loaded, None
        processor = loaded[1] if loaded is not None and loaded[0] == replace(job, claims=None) else Processor(job)
        job, _ = job.share(job, units, 1) if job.share is not None else (job, [])

        def work(unit: Unit) -> Outcome | None:
            try:
                return Outcome(unit=unit.name, counts=do_unit(processor, job, unit))
            except UnitDone as done:
                return Outcome(unit=unit.name, counts=done.counts, here=False)
            except UnitTaken:
                return None

        if job.units_at_once == 1:
            yield from (outcome for unit in units if (outcome := work(unit)) is not None)
            return
        with ThreadPoolExecutor(job.units_at_once) as threads:
            yield from (outcome for outcome in threads.map(work, units) if outcome is not None)

    def tell_left(self, job: StageJob, units: int) -> None:
        """Nothing: a process without Ray publishes no metrics."""


class OnRay:
    """Units on the Ray cluster that this process is connected to.

    Args:
        start: connects to Ray; called just before work is distributed; not called if there is no work. None: it is
            connected already.
    """

    def __init__(self, start: Callable[[], object] | None = None):
        self._start = start
        self._ready = False

    def check(self, job: StageJob) -> None:
        """Build the models without their weights: shows in seconds whether a worker could load them."""
        if job.models and job.loads_without_weights:
            check_loading(job)

    def probe(self, job: StageJob) -> int:
        """The largest batch that fits a worker."""
        self.check(job)
        self._connect()
        from realcustom.preprocessing.engine.cluster import lacking  # Ray only where work is distributed

        with log.each_minute(logger, lambda: lacking(job)):
            return probe_on_worker(job)

    def run(self, job: StageJob, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Process and commit units on workers."""
        if not units:
            return
        self._connect()
        from realcustom.preprocessing.engine.cluster import (  # Ray only where work is distributed
            fit_to_cluster,
            lacking,
        )
        from realcustom.preprocessing.engine.ray_data import run_units

        job, notes = fit_to_cluster(job, units)
        for note in notes:
            logger.warning("%s: %s", job.name, note)
        with log.each_minute(logger, lambda: lacking(job)):
            yield from run_units(job, tuple(units))

    def tell_left(self, job: StageJob, units: int) -> None:
        """Set the gauge of the units that are left, once there is a Ray to export it."""
        if not self._ready:
            return
        from realcustom.preprocessing.engine.ray_metrics import tell_left  # Ray only where work is distributed

        tell_left(job.name, job.directory.rpartition("/")[2], units)

    def _connect(self) -> None:
        if self._ready:
            return
        if self._start is not None:
            self._start()
        import ray  # after the environment variables that it reads have been set

        if not ray.is_initialized():
            raise UsageError("no Ray is initialised: call ray.init() first, or run in this process (--local)")
        self._ready = True
