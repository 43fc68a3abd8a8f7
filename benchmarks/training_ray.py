"""Images a second of two Ray Train workers over those of two bare processes that take the same steps.

python benchmarks/training_ray.py FOLDER STEPS PAIRS    # prints one line of JSON

A bare process has its batches in memory before it begins: it reads nothing, logs nothing and keeps nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from training_sprites import paired, prepare

from realcustom.pipeline.cluster import start_local
from realcustom.training.job import TrainingJob
from realcustom.training.run import make_job, train
from realcustom.training.worker import Worker
from realcustom.training.world import World

WORKERS = 2
RENDEZVOUS = "tcp://127.0.0.1:29517"


def ray_vs_bare(folder: Path, steps: int, pairs: int) -> dict[str, list[float]]:
    """The ratios of the pairs. The second half of a run's steps counts."""
    run = prepare(folder, steps=steps, num_workers=WORKERS, log_every=steps // 2)
    encoder, records = run.method.image_encoder.model, str(folder / "caches")
    os.environ["RAY_ADDRESS"] = start_local(num_cpus=WORKERS + 1)

    def on_ray(number: int) -> float:
        output = str(folder / f"ray-{number}")
        rows = train(records, output, run.base, None, run.method, run.train).curve
        return float([row for row in rows if "loss" in row][-1]["images_per_second"])

    def bare(number: int) -> float:
        job = make_job(records, str(folder / "bare"), run.base, encoder, run.method, run.train)
        result = folder / f"bare-{number}.json"
        spawn(_bare, (job, str(result)), nprocs=WORKERS)
        return float(json.loads(result.read_text()))

    return {"ratios": paired(pairs, (on_ray, bare))}


def _bare(rank: int, job: TrainingJob, result: str) -> None:
    """One of the bare processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=RENDEZVOUS, rank=rank, world_size=WORKERS)
    worker = Worker(job, World(rank=rank, size=WORKERS))
    steps = job.settings.steps
    batches = [worker.batches.training(worker.order.share(step, rank, WORKERS)) for step in range(steps)]
    for batch in batches[: steps // 2]:
        worker.trainer.step(batch.to(worker.world.device))
    start = time.monotonic()
    for batch in batches[steps // 2 :]:
        worker.trainer.step(batch.to(worker.world.device))
    seconds = time.monotonic() - start
    if rank == 0:
        images = sum(batch.total_weight for batch in batches[steps // 2 :])
        Path(result).write_text(json.dumps(images / seconds))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    place, count, repeats = sys.argv[1:]
    print(json.dumps(ray_vs_bare(Path(place), int(count), int(repeats))))
