"""Validations and sheets beside a training on Ray: the driver starts a task for each checkpoint that waits for one.

Ray Train's own asynchronous validation goes with `ray.train.report`, a barrier of all workers around a checkpoint that Ray
stores. Ours are written in the background, and outlive the driver; what is left to do follows from the files of the run.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from realcustom import log, storage
from realcustom.store import Store
from realcustom.training.checkpoints import step_of
from realcustom.training.failures import Failure, TrainingDiverged
from realcustom.training.job import TrainingJob
from realcustom.training.metrics_file import read_rows, validation_losses
from realcustom.training.page import write_page
from realcustom.training.sinks import make_sinks
from realcustom.training.validations import prune_all, read_results, waiting, write_result
from realcustom.training.world import World

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0  # between looks for new checkpoints


class Validations:
    """The tasks of one training, one at a time, in a thread of the driver."""

    def __init__(self, job: TrainingJob, options: dict[str, Any], diverged: Callable[[Failure], None]) -> None:
        """Prepare.

        Args:
            options: of Ray, for a task: what it takes and where it runs.
            diverged: is told of a loss that is not finite.
        """
        self._job, self._diverged = job, diverged
        # max_calls: its process ends with it and frees a GPU's memory
        self._task = ray.remote(max_calls=1)(_validate).options(**options)
        self._store = Store(job.settings.retries)
        self._ended, self._given_up = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """A context of the training. At its end the rest is validated, unless `give_up` was called or there is an error."""
        thread = threading.Thread(target=self._run, name="validations", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self.give_up()
            raise
        finally:
            self._ended.set()
            thread.join()

    def give_up(self) -> None:
        """End the task that is under way; the same command makes up for it."""
        self._given_up.set()

    def _run(self) -> None:
        try:
            self._validate_all()
        except Exception as error:  # a storage that is away for longer than its retries
            logger.warning("checkpoints are no longer validated, training goes on: %s", error)

    def _validate_all(self) -> None:
        job = self._job
        rows = read_rows(job.output, self._store)
        done = {row["step"] for row in rows if "val_loss" in row}  # by the workers of a start before, or a task
        while not self._given_up.is_set():
            ended = self._ended.is_set()  # before looking: what was written before the end is seen
            uris = waiting(job, self._store, done)
            if uris:
                self._validate_one(uris[0])
                done.add(step_of(uris[0]))
            elif ended:
                break
            else:
                self._ended.wait(POLL_SECONDS)
        if self._store.exists(storage.join(job.output, "result.json")):
            self._finish()

    def _validate_one(self, checkpoint: str) -> None:
        step = step_of(checkpoint)
        task = self._task.remote(self._job, checkpoint, log.level())
        while not ray.wait([task], timeout=POLL_SECONDS)[0]:
            if self._given_up.is_set():
                ray.cancel(task, force=True)
                return
        failure: Failure | None
        try:
            failure = ray.get(task)
        except RayError as error:  # its process or node was lost, more often than Ray tries again
            failure = Failure(mistake=None, trace=str(error), final=False)
        if failure is None:
            return
        if isinstance(failure.mistake, TrainingDiverged):  # not kept: the same command says it again
            self._diverged(failure)
            return
        reason = str(failure.mistake) if failure.mistake is not None else failure.trace.strip().splitlines()[-1]
        logger.warning("the validation of the checkpoint of step %d failed, training goes on: %s", step, reason)
        logger.debug("%s", failure.trace)
        write_result(self._job.output, {"step": step, "error": reason}, self._store)

    def _finish(self) -> None:
        """What the first worker would have done with results that came after it had looked for the last time."""
        job, store = self._job, self._store
        told = {row["step"] for row in read_rows(job.output, store) if "val_loss" in row}
        rows = [row for row in read_results(job.output, store, told) if "val_loss" in row]
        if not rows:
            return
        for sink in make_sinks(job, store, job.settings.steps):
            for row in rows:
                sink.add(row)
            if (slow := sink.flush()) is not None:
                slow()
            sink.close()
        losses = validation_losses(read_rows(job.output, store))
        prune_all(job, losses, {*map(int, losses)}, store)
        write_page(job.output, job.identity, store)


def _validate(job: TrainingJob, checkpoint: str, log_level: str) -> Failure | None:
    """Runs in a task."""
    from realcustom.training.worker import Worker  # here: the driver needs no models

    log.configure(log_level)
    torch.set_num_threads(job.settings.threads or 1)
    device = torch.device("cuda" if job.settings.use_gpu else "cpu")
    try:
        Worker(job, World(device=device), checkpoint=checkpoint).validate_apart()
    except Exception as error:
        return Failure.of(error)
    return None
