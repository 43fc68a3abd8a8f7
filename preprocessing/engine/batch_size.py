"""`batch_size: auto`: one worker finds the largest batch that fits before the first unit; the whole job uses it.

The number is part of the fingerprint, like one that the user gave, so the stage has no directory before it is known. It
is written to `<root>/probes/STAGE@FINGERPRINT.json`, where FINGERPRINT is that of the settings with `auto`. The same
command, run again, reads the number there and so uses the same directory, also on another device.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
from collections.abc import Callable

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.machine import is_out_of_memory
from realcustom.preprocessing.engine.directory import to_json_bytes
from realcustom.preprocessing.engine.worker import ModelStage, StageJob, TableWork, load_work
from realcustom.preprocessing.settings import BatchSize, Device, PreprocessSettings


def is_auto(job: StageJob) -> bool:
    """Whether the job's batch size still has to be found."""
    return bool(job.models) and job.section.batch_size is BatchSize.AUTO


def fix_batch_size(job: StageJob, output: str, probe: Callable[[StageJob], int]) -> PreprocessSettings:
    """The settings with a number instead of `auto`: the stored one below `output`, else the result of `probe`."""
    store = job.store
    uri = storage.join(output, "probes", f"{posixpath.basename(job.directory)}.json")
    if store.exists(uri):
        size = int(json.loads(store.read(uri))["batch_size"])
    else:
        size = probe(job)
        store.write(uri, to_json_bytes({"batch_size": size}))
    section = dataclasses.replace(job.section, batch_size=size)
    return dataclasses.replace(job.settings, **{job.name: section})


def probe(job: StageJob) -> int:
    """Load the models in this process and find the batch size. Raises UsageError where not even one picture fits."""
    import torch  # where models run

    work = load_work(job)
    assert isinstance(work, TableWork) and isinstance(work.stage, ModelStage), job.name
    size = job.settings.compute.largest_batch
    while size >= 1:
        try:
            work.stage.try_batch(size)
            return size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        size //= 2
        torch.cuda.empty_cache()  # after the except clause, whose error keeps the failed batch in memory
    raise UsageError(
        f"{job.name}.batch_size=auto: the memory of compute.device={job.settings.compute.device.value} holds the "
        f"models and not even one picture; take smaller models or a larger device"
    )


def probe_on_worker(job: StageJob) -> int:
    """`probe` on a worker of the connected Ray cluster, with the same resources as the workers that run the units."""
    import ray

    compute = job.settings.compute
    gpus = 1 if compute.device is Device.CUDA else 0
    # max_calls: its process ends with it and frees the device's memory for the workers
    task = ray.remote(num_cpus=compute.threads, num_gpus=gpus, max_calls=1, max_retries=0)(probe)
    try:
        return int(ray.get(task.remote(job)))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UsageError):
            raise UsageError(str(error.cause)) from error
        raise
    except (ray.exceptions.OutOfMemoryError, ray.exceptions.WorkerCrashedError) as error:
        raise UsageError(
            f"{job.name}.batch_size=auto: the worker that probed was ended, most likely because the node's own "
            f"memory ran out: lower compute.largest_batch={compute.largest_batch}, or give a number"
        ) from error
