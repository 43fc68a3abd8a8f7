"""A training job on a Ray cluster: data-parallel workers of Ray Train, replaced when they are lost.

Checkpoints go through `checkpoints.py`, not through Ray's own upload: the same files resume a run in-process, on
another number of workers, after the driver's death; and a file is complete once it has its name.
"""

from __future__ import annotations

from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.training.job import Job
from realcustom.training.loop import TrainingDiverged, World
from realcustom.training.metrics import say
from realcustom.training.threads import available_cores

ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (ValueError, FileNotFoundError, TrainingDiverged)
}


def run_distributed(job: Job) -> None:
    """Train `job` with `settings.num_workers` workers on the cluster that this process is connected to.

    Raises what a worker's checks raise (ValueError, FileNotFoundError, TrainingDiverged), or RuntimeError when workers
    failed more often than `settings.max_failures`.
    """
    settings = job.settings
    kind = "GPU" if settings.use_gpu else "CPU"
    there = ray.cluster_resources().get(kind, 0)
    if there < settings.num_workers:  # not an error: a cluster may grow
        say(f"waiting for {settings.num_workers} workers with a {kind} each; the cluster has {there:g} now")
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(num_workers=settings.num_workers, use_gpu=settings.use_gpu),
        run_config=RunConfig(
            storage_path=storage.join(job.output, "ray"),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result = trainer.fit()
    except SystemExit as error:  # what Ray Train makes of Ctrl-C
        raise KeyboardInterrupt from error
    except TrainingFailedError as error:
        raise RuntimeError(f"training failed more than max_failures={settings.max_failures} times: {error}") from error
    if result.return_value is not None:
        kind, message = result.return_value
        raise ERRORS[kind](message)


def _train_worker(config: dict[str, Any]) -> tuple[str, str] | None:
    """Runs in each worker. Returns the kind and message of an error that all workers meet alike; retries others."""
    from realcustom.training.worker import Worker  # here: Ray's controller imports this file, and needs no models

    context = ray.train.get_context()
    job: Job = config["job"]
    torch.set_num_threads(job.settings.threads or max(1, available_cores() // context.get_local_world_size()))
    world = World(rank=context.get_world_rank(), size=context.get_world_size(), device=get_device())
    worker: Worker | None = None
    error: Exception | None = None
    try:
        worker = Worker(job, world)
    except UsageError as caught:
        error = caught
    error = _agree(error, world)
    if worker is not None and error is None:
        try:
            worker.run()
        except TrainingDiverged as caught:
            error = caught
    if error is None:
        return None
    return next(name for name, kind in ERRORS.items() if isinstance(error, kind)), str(error)


def _agree(error: Exception | None, world: World) -> Exception | None:
    """The first worker's error, on every worker: none goes on while another has stopped."""
    errors: list[Exception | None] = [None] * world.size
    dist.all_gather_object(errors, error)
    return next((found for found in errors if found is not None), None)
