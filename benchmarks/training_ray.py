"""Images a second of two Ray Train workers over those of two bare processes that take the same steps.

python benchmarks/training_ray.py FOLDER STEPS PAIRS    # prints one line of JSON

A bare process has its batches in memory before it begins: it reads nothing, logs nothing and keeps nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import record
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

sys.path.append(str(record.ROOT))  # the tests are not installed

from realcustom.base_loading import load_base
from realcustom.pipeline.cluster import start_local
from realcustom.pipeline.recipes import sprites
from realcustom.training.encoders import FrozenEncoders
from realcustom.training.job import TrainingJob
from realcustom.training.loop import World
from realcustom.training.run import make_job, train
from realcustom.training.worker import Worker
from tests.support.training_corpus import fill_caches, write_pictures

RECORDS, BATCH, WORKERS = 64, 16, 2
RENDEZVOUS = "tcp://127.0.0.1:29517"


def ray_vs_bare(folder: Path, steps: int, pairs: int) -> dict[str, float]:
    """The two alternate, in both orders; the second half of a run's steps counts. The median of the pairs, the extremes."""
    shutil.rmtree(folder, ignore_errors=True)
    settings = sprites()
    base = load_base(settings.base)
    encoders = FrozenEncoders(base, settings.method.image_encoder.model, settings.method, torch.device("cpu"))
    write_pictures(folder / "pictures", RECORDS, side=base.resolution)
    fill_caches(folder / "pictures", folder / "caches", encoders, keep_image=False)
    train_settings = replace(
        settings.train,
        steps=steps,
        batch_size=BATCH,
        num_workers=WORKERS,
        threads=1,
        sample_records=0,
        val_every=0,
        log_every=steps // 2,
        checkpoint_every=0,
    )
    encoder, records = settings.method.image_encoder.model, str(folder / "caches")
    os.environ["RAY_ADDRESS"] = start_local(num_cpus=WORKERS + 1)

    def on_ray(number: int) -> float:
        output = str(folder / f"ray-{number}")
        rows = train(records, output, settings.base, None, settings.method, train_settings).curve
        return float([row for row in rows if "loss" in row][-1]["images_per_second"])

    def bare(number: int) -> float:
        job = make_job(records, str(folder / "bare"), settings.base, encoder, settings.method, train_settings)
        spawn(_bare, (job, str(folder / f"bare-{number}.json")), nprocs=WORKERS)
        return float(json.loads((folder / f"bare-{number}.json").read_text()))

    ratios = []
    for number in range(pairs):
        order = (on_ray, bare) if number % 2 else (bare, on_ray)
        speeds = {side.__name__: side(number) for side in order}
        ratios.append(speeds["on_ray"] / speeds["bare"])
        print(f"pair {number}: {speeds}", file=sys.stderr)
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "n": pairs}


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
