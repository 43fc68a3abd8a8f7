"""A job's workers on a cluster: how many run, how they share its limits, and whether a node has room for one."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence

import ray

from realcustom.machine import available_cores
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.engine.worker import StageJob
from realcustom.preprocessing.settings import Device

logger = logging.getLogger(__name__)

_LARGEST_BUNDLE = 16  # units
_BUNDLES_PER_PLACE = 8  # at least


def fit_to_cluster(job: StageJob, units: Sequence[Unit]) -> tuple[StageJob, list[str]]:
    """The job with its shared limits divided among its workers; and warnings for the user."""
    if job.share is None or not units:
        return job, []
    return job.share(job, units, task_workers(job, units))


def task_limit(job: StageJob) -> int | None:
    """Tasks at a time of a stage without models, each of one CPU; None: as many as the cluster's CPUs allow.

    `execution.workers`; else, where Ray runs on this machine alone, its cores. An embedded Ray declares more CPUs than
    there are cores, because actor pools wait for each other. Tasks beyond the cores would only start more workers, each
    a second or two of CPU, and compete for the caches.
    """
    if job.settings.execution.workers is not None:
        return job.settings.execution.workers
    nodes = [node for node in ray.nodes() if node["Alive"]]
    alone = len(nodes) == 1 and nodes[0]["NodeManagerHostname"] == socket.gethostname()
    return available_cores() if alone else None


def task_workers(job: StageJob, units: Sequence[Unit]) -> int:
    """The number of workers for the tasks of a stage without models, on the cluster as it is now."""
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    return min(task_limit(job) or cpus, cpus, len(units))


def model_workers(job: StageJob, units: int, gpus: int, cpus: int) -> int:
    """The number of actors that hold a stage's models: `execution.workers`; else one on the CPU, or one for each GPU of the
    cluster as it is now, as far as there are units for them and CPUs for their threads."""
    if job.settings.execution.workers is not None:
        return job.settings.execution.workers
    if job.settings.compute.device is not Device.CUDA:
        return 1
    wanted, threads = max(1, min(gpus, units)), job.settings.compute.threads
    possible = max(1, (cpus - 1) // threads)  # reading and writing take three quarters of a CPU
    if possible < wanted:
        logger.warning(
            "%s: of %d GPUs %d are used: each worker has %d CPUs (compute.threads), reading and writing one, and the cluster "
            "has %d",
            job.name,
            gpus,
            possible,
            threads,
            cpus,
        )
    return min(wanted, possible)


def bundle_size(units: int, places: int) -> int:
    """The number of units that are handed out at once, where so many bundles are worked on at a time.

    A bundle costs the driver some milliseconds; at the end places wait for the last one.
    """
    return max(1, min(_LARGEST_BUNDLE, units // (places * _BUNDLES_PER_PLACE)))


def lacking(job: StageJob) -> str | None:
    """A warning if no node has the resources of a worker with models: Ray waits for one silently, as an autoscaler may add it."""
    if not job.models:
        return None
    compute = job.settings.compute
    needed = {"CPU": compute.threads, "GPU": 1 if compute.device is Device.CUDA else 0}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0) >= number for name, number in needed.items()) for node in nodes):
        return None
    words = " and ".join(f"{number} {name}" for name, number in needed.items() if number)
    return (
        f"{job.name}: no node of the cluster has {words}, as compute.device={compute.device.value} and "
        f"compute.threads={compute.threads} ask for; waiting for one"
    )
