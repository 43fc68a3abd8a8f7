"""`realcustom train --dry-run`: what a run would take, from its records, from counted tensors and from measured steps."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator

import torch

from realcustom.compiling import compiled_nothing
from realcustom.machine import available_cores, torch_threads
from realcustom.settings import MethodSettings
from realcustom.training.batch import Batch
from realcustom.training.loop import World
from realcustom.training.run import make_job
from realcustom.training.settings import TrainSettings
from realcustom.training.worker import Worker

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
    """Try one worker's part of some steps in this process, and yield lines on the whole run. Nothing is written.

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


def _memory(worker: Worker, batch: Batch) -> Iterator[str]:
    """Of one worker's device, by what it is for; the row of one forward is kept until its backward."""
    trainer, settings = worker.trainer, worker.settings
    held = _held_by_a_forward(worker, worker.trainer.chunks(batch)[0])
    trained = _bytes(trainer.parameters.values())
    trainer.step(batch)  # makes the moments
    optimizer = _bytes(trainer.state()[0].values()) - trained - _bytes(trainer.ema.values())
    on_device = 0 if settings.ema_on_host else _bytes(trainer.ema.values())
    frozen = _bytes(worker.model.parameters()) - trained
    parts = {
        "frozen weights": frozen,
        "trained weights": trained,
        "gradients": trained,
        "optimizer": optimizer,
        "EMA": on_device,
        "activations": held,
    }
    said = ", ".join(f"{name} {size / 2**30:.3f}" for name, size in parts.items())
    yield f"memory of a worker's device, GiB: {said}; together {sum(parts.values()) / 2**30:.3f}"
    checkpoint = _bytes(trainer.state()[0].values())
    yield f"host memory of a worker: memory_gib={settings.memory_gib:g} for data; a checkpoint is {checkpoint / 2**30:.3f} GiB"
    if batch.latents.is_cuda:
        yield f"most memory that torch held on the GPU: {torch.cuda.max_memory_allocated() / 2**30:.3f} GiB"


def _held_by_a_forward(worker: Worker, batch: Batch) -> int:
    """Bytes of the distinct tensors that a forward keeps for its backward, weights left out."""
    weights = {value.untyped_storage().data_ptr() for value in [*worker.model.parameters(), *worker.model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with compiled_nothing(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        errors = worker.trainer.errors(worker.model, batch, worker.trainer.influence_quantities[-1])
    del errors
    return sum(kept.values())


def _time(worker: Worker, steps: int, hourly_price: float | None) -> Iterator[str]:
    workers = worker.settings.num_workers
    start = time.monotonic()
    for step in range(1, MEASURED + 1):
        batch = worker.batches.training(worker.order.share(step, 0, workers))
        worker.trainer.step(batch.to(worker.world.device))
    seconds = (time.monotonic() - start) / MEASURED
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
