"""`realcustom train --dry-run`: what a run would take, from its records, from counted tensors and from measured steps."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from realcustom.compiling import compiled_nothing
from realcustom.machine import available_cores, torch_threads
from realcustom.settings import MethodSettings
from realcustom.training.activations import count_activations
from realcustom.training.batch import Batch
from realcustom.training.flops import FlopMeter
from realcustom.training.run import make_job
from realcustom.training.settings import TrainSettings
from realcustom.training.worker import Worker
from realcustom.training.world import World

MEASURED = 3  # steps, after one that is left out


def estimate(
    records: str,
    base: str,
    method: MethodSettings,
    settings: TrainSettings,
    *,
    initial_adapter: str | None = None,
    parent: str | None = None,
    hourly_price: float | None = None,
) -> Iterator[str]:
    """Try one worker's part of some steps in this process, and yield lines on the whole run. Nothing is written but, beside a
    large table, the index of the records.

    Args:
        hourly_price: of one worker.
    Raises UsageError as `train` does.
    """
    device = torch.device("cuda" if settings.use_gpu else "cpu")
    with (
        tempfile.TemporaryDirectory(prefix="realcustom-dry-run-") as output,
        torch_threads(settings.threads or available_cores()),
    ):
        encoder = method.image_encoder.model
        worker = Worker(
            make_job(records, output, base, encoder, method, settings, initial_adapter, parent), World(device=device)
        )
        done = worker.trainer.step_count  # by a parent
        yield from _data(worker)
        step = worker.order.step_of_largest()
        batch = worker.batches.training(worker.order.share(step, 0, settings.num_workers)).to(device)
        worker.find_micro_batch(batch)
        yield from _memory(worker, batch)
        yield from _time(worker, settings.steps - done, hourly_price)


def _data(worker: Worker) -> Iterator[str]:
    settings, order = worker.settings, worker.order
    trained = len(worker.features.index) - len(worker.held_out)
    epochs = settings.steps / order.steps_per_epoch
    yield f"records: {len(worker.features.index)} = {trained} trained on + {len(worker.held_out)} held out"
    yield (
        f"steps: {order.steps_per_epoch} an epoch of batches of {settings.batch_size}; train.steps={settings.steps} are "
        f"{epochs:.2f} epochs"
    )
    sizes = order.index.bucket_sizes
    buckets = [(sizes[bucket.bucket], bucket.records) for bucket in order.buckets if bucket.bucket is not None]
    if buckets:
        said = ", ".join(
            f"{width} x {height} {records} ({-(-records // settings.batch_size)})"
            for (width, height), records in buckets
        )
        yield f"buckets, the records of each (and its batches an epoch): {said}"


def memory_by_part(worker: Worker, batch: Batch) -> dict[str, float]:
    """Bytes of one worker's device in a step, by what they are for. Takes a step, in this process alone: of weights that are to be
    sharded over workers a part is counted.
    """
    trainer, settings = worker.trainer, worker.settings
    chunk, quantity = trainer.chunks(batch)[0], trainer.influence_quantities[-1]
    with compiled_nothing():
        held = count_activations(worker.model, lambda: trainer.errors(worker.model, chunk, quantity)).most
    trained = _bytes(trainer.parameters.values())
    trainer.step(batch)  # makes the moments
    average = _bytes(trainer.ema.values())
    workers = settings.num_workers if settings.shard else 1
    # in a step FSDP2 has all weights and all gradients, beside its part of them
    gathered = trained if workers > 1 else 0
    return {
        "frozen weights": _bytes(worker.model.parameters()) - trained,
        "trained weights": trained / workers + gathered,
        "gradients": trained / workers + gathered,
        "optimizer": (_bytes(trainer.state()[0].values()) - trained - average) / workers,
        "EMA": 0 if settings.ema_on_host else average / workers,
        "activations": held,
    }


def _memory(worker: Worker, batch: Batch) -> Iterator[str]:
    parts = memory_by_part(worker, batch)
    said = ", ".join(f"{name} {size / 2**30:.3f}" for name, size in parts.items())
    yield f"memory of a worker's device, GiB: {said}; together {sum(parts.values()) / 2**30:.3f}"
    checkpoint = _bytes(worker.trainer.state()[0].values())
    data = worker.settings.memory_gib
    yield f"host memory of a worker: memory_gib={data:g} for data; a checkpoint is {checkpoint / 2**30:.3f} GiB"
    if batch.latents.is_cuda:
        yield f"most memory that torch held on the GPU: {torch.cuda.max_memory_allocated() / 2**30:.3f} GiB"


def _time(worker: Worker, steps: int, hourly_price: float | None) -> Iterator[str]:
    workers, batches = worker.settings.num_workers, []
    start = time.monotonic()
    for step in range(1, MEASURED + 1):
        batches.append(worker.batches.training(worker.order.share(step, 0, workers)))
        worker.trainer.step(batches[-1].to(worker.world.device))
    seconds = (time.monotonic() - start) / MEASURED
    meter, images = FlopMeter(worker.trainer), sum(float(batch.weights.sum()) for batch in batches)
    for batch in batches:
        meter.add(replace(batch, total_weight=float(batch.weights.sum())))  # of this worker alone
    done = meter.read(MEASURED * seconds)
    used = f", MFU {done['mfu']:.3f} ({done['tflops']:.3f} TFLOP/s)" if done else ""
    yield f"speed: {images / MEASURED / seconds:.2f} images/s of a worker{used}"
    hours = seconds * steps / 3600
    cost = (
        f", {hours * workers * hourly_price:,.2f} at {hourly_price:g} an hour a worker"
        if hourly_price is not None
        else ""
    )
    yield (
        f"time: {seconds:.3f} s a step here, reading included; {steps} steps on {workers} such workers, without what "
        f"they tell each other and without validations and samples: {hours:,.2f} hours{cost}"
    )


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
