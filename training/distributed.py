"""A training job on a Ray cluster: data-parallel workers of Ray Train, replaced when they are lost.

Checkpoints go through `checkpoints.py`, not through Ray's own upload: the same files resume a run in-process, on
another number of workers, after the driver's death; and a file that has its final name is complete.

Ray Train has one kind of failure and replaces the workers. We distinguish two kinds. A worker that is lost, or that
failed because of the machine or the network, is replaced. A UsageError or a bug would occur again: it is kept in a
small actor, workers that Ray starts afterwards end at once, and the driver raises it.
"""

from __future__ import annotations

import logging
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device

from realcustom import log, storage
from realcustom.machine import available_cores
from realcustom.training.failures import Failure, Failures
from realcustom.training.job import TrainingJob
from realcustom.training.loop import TrainingDiverged, World

logger = logging.getLogger(__name__)


def run_distributed(job: TrainingJob) -> None:
    """Train `job` with `settings.num_workers` workers on the cluster that this process is connected to.

    Raises the UsageError that a worker ended with; WorkerFailed with a worker's trace for a bug, or for a failure of
    the machine more often than `settings.max_failures`; RuntimeError where workers were lost more often than that.
    """
    settings = job.settings
    kind = "GPU" if settings.use_gpu else "CPU"
    there = ray.cluster_resources().get(kind, 0)
    if there < settings.num_workers:  # not an error: a cluster may grow
        wanted = f"{settings.num_workers} workers with a {kind} each"
        logger.warning("waiting for %s; the cluster has %g now", wanted, there)
    failures = ray.remote(num_cpus=0)(Failures).remote()
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "log_level": log.level(), "failures": failures},
        scaling_config=ScalingConfig(num_workers=settings.num_workers, use_gpu=settings.use_gpu),
        run_config=RunConfig(
            storage_path=storage.join(job.output, "ray"),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            logging_config=LoggingConfig(log_level="CRITICAL"),  # below it: traces of errors that we report ourselves
        ),
    )
    lost: TrainingFailedError | None = None
    try:
        trainer.fit()
    except SystemExit as error:  # Ray Train's error for Ctrl-C
        raise KeyboardInterrupt from error
    except TrainingFailedError as error:
        lost = error
    failure: Failure | None = ray.get(failures.kept.remote())
    if failure is not None and (failure.final or lost is not None):
        raise failure.to_error() from lost
    if lost is not None:
        raise RuntimeError(f"workers were lost more than max_failures={settings.max_failures} times: {lost}") from lost


def _train_worker(config: dict[str, Any]) -> None:
    """Runs in each worker."""
    log.configure(config["log_level"])
    failures = config["failures"]
    kept = ray.get(failures.kept.remote())
    if kept is not None and kept.final:
        return  # it ended the previous workers
    try:
        failure = _train(config["job"])
    except Exception as error:
        found = Failure.of(error)
        ray.get(failures.report.remote(found))
        if not found.final:
            logger.warning("a worker failed; new ones go on from the last checkpoint", exc_info=True)
        raise  # the others wait for this worker: Ray ends them
    if failure is not None:
        ray.get(failures.report.remote(failure))


def _train(job: TrainingJob) -> Failure | None:
    """A worker's whole work. Returns a failure that all workers have, so that all of them return."""
    from realcustom.training.worker import Worker  # here: Ray's controller imports this file, and needs no models

    context = ray.train.get_context()
    torch.set_num_threads(job.settings.threads or max(1, available_cores() // context.get_local_world_size()))
    world = World(rank=context.get_world_rank(), size=context.get_world_size(), device=get_device())
    worker: Worker | None = None
    failure: Failure | None = None
    try:
        worker = Worker(job, world)
    except Exception as error:
        failure = Failure.of(error)
        if not failure.final:
            raise
    failure = _agree(failure, world)
    if worker is None or failure is not None:
        return failure
    try:
        worker.run()
    except TrainingDiverged as error:
        return Failure.of(error)
    return None


def _agree(failure: Failure | None, world: World) -> Failure | None:
    """The first worker's failure, on every worker: no worker continues if another has stopped."""
    failures: list[Failure | None] = [None] * world.size
    dist.all_gather_object(failures, failure)
    return next((found for found in failures if found is not None), None)
