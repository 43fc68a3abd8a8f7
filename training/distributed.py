"""A training job on a Ray cluster: data-parallel workers of Ray Train, replaced when they are lost.

Checkpoints go through `checkpoints.py`, not through Ray's own upload: the same files resume a run in-process, on
another number of workers, after the driver's death; and a file that has its final name is complete.

Ray Train has one kind of failure and replaces the workers. We distinguish two kinds. A worker that is lost, or that
failed because of the machine or the network, is replaced. A UsageError or a bug would occur again: it is kept in a
small actor, workers that Ray starts afterwards end at once, and the driver raises it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from realcustom import log, storage
from realcustom.errors import UsageError
from realcustom.machine import available_cores
from realcustom.store import Store
from realcustom.training.async_validation import Validations
from realcustom.training.checkpoints import latest_checkpoint, step_of
from realcustom.training.failures import Failure, Failures, TrainingDiverged
from realcustom.training.job import TrainingJob
from realcustom.training.settings import TrainSettings
from realcustom.training.stopping import Stopped, stop_at_signals
from realcustom.training.world import World

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # between questions of a worker, and of the driver, whether the run is asked to end


def run_distributed(job: TrainingJob) -> None:
    """Train `job` on the cluster that this process is connected to, with `settings.num_workers` workers, or from
    `settings.min_workers` on with as many as there is room for.

    Raises the UsageError that a worker ended with; WorkerFailed with a worker's trace for a bug, or where workers were lost
    more than `settings.max_failures` times without a new checkpoint; Stopped where this process was asked to end.
    """
    stop = threading.Event()
    with stop_at_signals(stop):
        _run(job, stop)


def _run(job: TrainingJob, stop: threading.Event) -> None:
    settings = job.settings
    # on the driver's node, as Ray Train's own controller: else the loss of a node in the run could take it along
    with_driver = NodeAffinitySchedulingStrategy(_node_id(), soft=False)
    failures = ray.remote(num_cpus=0)(Failures).options(scheduling_strategy=with_driver).remote()
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "log_level": log.level(), "failures": failures, "driver": _node_id()},
        scaling_config=scaling(settings),
        run_config=RunConfig(
            storage_path=storage.join(job.output, "ray"),
            failure_config=FailureConfig(max_failures=-1),  # `Failures.begin` counts them
            logging_config=LoggingConfig(log_level="CRITICAL"),  # below it: traces of errors that we report ourselves
        ),
    )
    lost: TrainingFailedError | None = None

    def diverged(failure: Failure) -> None:
        ray.get([failures.report.remote(failure), failures.ask_to_stop.remote()])

    validations = Validations(job, _task_options(settings), diverged)
    beside = validations.beside() if settings.async_validation else contextlib.nullcontext()
    try:
        with beside, log.each_minute(logger, lambda: _lacking(settings)):
            _fit(trainer, job, failures, stop)
            kept, stopped = ray.get([failures.kept.remote(), failures.stopped.remote()])
            if stopped is not None or (kept is not None and kept.final):
                validations.give_up()
    except TrainingFailedError as error:
        lost = error
    failure: Failure | None = ray.get(failures.kept.remote())
    if failure is not None and (failure.final or lost is not None):
        raise failure.to_error() from lost
    stopped = ray.get(failures.stopped.remote())
    if stopped is not None:
        raise Stopped(stopped)
    if lost is not None:
        raise lost


def _fit(trainer: TorchTrainer, job: TrainingJob, failures: Any, stop: threading.Event) -> None:
    """Train, and pass on to the workers that the run is asked to end. Where there are none yet, or none any more, it ends."""

    def fit() -> None:
        if job.settings.use_gpu:
            _check_cuda()
        trainer.fit()

    done, asked = _in_a_thread(fit), False
    while not wait([done], POLL_SECONDS).done:
        if stop.is_set() and not asked:
            asked, begun = True, ray.get(failures.ask_to_stop.remote())
            if not begun or _lacking(job.settings) is not None:
                raise Stopped(_latest(job)[1])
    done.result()


def _in_a_thread(act: Callable[[], None]) -> Future[None]:
    """What `act` comes to. In the main thread Ray Train replaces the handler of SIGINT, ends the workers in the middle of
    their step, and leaves its handler behind.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            act()
        except BaseException as error:  # the main thread raises it
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name="fit", daemon=True).start()
    return done


def scaling(settings: TrainSettings) -> ScalingConfig:
    """How many workers there are, and where.

    Between a least and a most number Ray Train looks once a minute how many there is room for, and replaces all workers by as
    many: they go on from the last checkpoint.
    """
    resources = {name: float(amount) for name, amount in map(_pair, settings.worker_resources)}
    return ScalingConfig(
        num_workers=(settings.min_workers, settings.num_workers) if settings.min_workers else settings.num_workers,
        use_gpu=settings.use_gpu,
        resources_per_worker={"GPU" if settings.use_gpu else "CPU": 1, **resources},
        label_selector=_labels(settings),
    )


def _task_options(settings: TrainSettings) -> dict[str, Any]:
    """What a validation beside the training takes, and where it runs."""
    return {
        "num_cpus": 0 if settings.use_gpu else 1,
        "num_gpus": 1 if settings.use_gpu else 0,
        "label_selector": _labels(settings),
    }


def _labels(settings: TrainSettings) -> dict[str, str] | None:
    return dict(map(_pair, settings.worker_labels)) or None


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _lacking(settings: TrainSettings) -> str | None:
    """What the cluster lacks for all workers; not an error, as a cluster may grow."""
    kind = "GPU" if settings.use_gpu else "CPU"
    there = ray.cluster_resources().get(kind, 0)
    needed = settings.min_workers or settings.num_workers
    if there >= needed:
        return None
    return f"waiting for {needed} workers with a {kind} each; the cluster has {there:g} now"


def _check_cuda() -> None:
    """Raise UsageError if torch cannot use the GPU of a node that has one; waits until there is one.

    Ray Train would only say that a process group cannot be made.
    """
    # max_calls: its process ends with it and frees the GPU's memory for the workers
    problem = ray.get(ray.remote(num_cpus=0, num_gpus=1, max_calls=1)(_cuda_problem).remote())
    if problem is not None:
        raise UsageError(f"train.use_gpu=true: {problem}; install a torch for CUDA there, or set train.use_gpu=false")


def _cuda_problem() -> str | None:
    if torch.cuda.is_available():
        return None
    return f"torch {torch.__version__} on the node {socket.gethostname()} cannot use the GPU that Ray has there"


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _train_worker(config: dict[str, Any]) -> None:
    """Runs in each worker."""
    log.configure(config["log_level"])
    failures = config["failures"]
    kept = ray.get(failures.kept.remote())
    if kept is not None and kept.final:
        return  # it ended the previous workers
    node = "" if _node_id() == config["driver"] else socket.gethostname()
    try:
        failure = _train(config["job"], node, failures)
    except Exception as error:
        found = Failure.of(error, node)
        ray.get(failures.report.remote(found))
        if not found.final:
            logger.warning("a worker failed; new ones go on from the last checkpoint", exc_info=True)
        raise  # the others wait for this worker: Ray ends them
    if failure is not None:
        ray.get(failures.report.remote(failure))


def _train(job: TrainingJob, node: str, failures: Any) -> Failure | None:
    """A worker's whole work. Returns a failure that all workers have, so that all of them return."""
    # here: Ray's controller imports this file, and needs no models
    from realcustom.training.ray_metrics import RayMetrics
    from realcustom.training.worker import Worker

    context = ray.train.get_context()
    torch.set_num_threads(job.settings.threads or max(1, available_cores() // context.get_local_world_size()))
    world = World(rank=context.get_world_rank(), size=context.get_world_size(), device=get_device())
    begin = [_begin(job, failures, world) if world.rank == 0 else None]
    dist.broadcast_object_list(begin)
    if begin[0] is None:
        return None  # what is kept says why
    seconds, checkpoint = begin[0]
    time.sleep(seconds)
    worker: Worker | None = None
    failure: Failure | None = None
    try:
        sinks = [RayMetrics(job.identity)] if world.rank == 0 else []
        worker = Worker(job, world, _asked_to_stop(failures), _is_taken_away, sinks, checkpoint)
    except Exception as error:
        failure = Failure.of(error, node)
        if not failure.final:
            raise
    failure = _agree(failure, world)
    if worker is None or failure is not None:
        return failure
    try:
        worker.run()
    except TrainingDiverged as error:
        return Failure.of(error, node)
    except Stopped as stopped:
        ray.get(failures.report_stop.remote(stopped.step))
    return None


def _is_taken_away() -> bool:
    """Whether a node of a worker is about to be taken away, as spot machines are; asked of all workers alike."""
    return ray.train.get_preemption_info() is not None


def _begin(job: TrainingJob, failures: Any, world: World) -> tuple[float, str] | None:
    """Seconds until a start, and the checkpoint that all workers continue from: one of them looks for it, as what a storage
    lists may differ between machines. None: workers were lost too often, or the run is asked to end.
    """
    checkpoint, step = _latest(job)
    seconds: float | None = ray.get(failures.begin.remote(step, job.settings.max_failures, world.size))
    return None if seconds is None else (seconds, checkpoint)


def _latest(job: TrainingJob) -> tuple[str, int]:
    """The uri of the latest checkpoint and its step; empty and 0 where there is none."""
    checkpoint = latest_checkpoint(job.output, Store(job.settings.retries))
    return checkpoint, step_of(checkpoint) if checkpoint else 0


def _asked_to_stop(failures: Any) -> threading.Event:
    """An event that is set once the driver asks to end."""
    stop = threading.Event()

    def poll() -> None:
        while not ray.get(failures.is_asked_to_stop.remote()):
            time.sleep(POLL_SECONDS)
        stop.set()

    threading.Thread(target=poll, name="stop", daemon=True).start()
    return stop


def _agree(failure: Failure | None, world: World) -> Failure | None:
    """The first worker's failure, on every worker: no worker continues if another has stopped."""
    failures: list[Failure | None] = [None] * world.size
    dist.all_gather_object(failures, failure)
    return next((found for found in failures if found is not None), None)
