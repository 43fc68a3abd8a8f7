"""Training with cached features against training that computes them at each use, with the shipped models of sprites.

python benchmarks/training_speed.py FOLDER STEPS PAIRS    # prints one line of JSON
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from training_sprites import paired, prepare

from realcustom.training.ahead import ReadAhead
from realcustom.training.batch import Batch
from realcustom.training.run import make_job
from realcustom.training.worker import Worker
from realcustom.training.world import World


def cached_vs_online(folder: Path, steps: int, pairs: int) -> dict[str, list[float]]:
    """Images a second of CPU with caches over those without, of each pair; and with caches, the share of waiting for data.

    The second half of a run's steps counts. Processor time of all threads, since features that are computed on the fly are
    computed beside the step: on an idle machine a second core would hide them. With caches, row groups are held as by default;
    without, no computed feature is kept, as where there are more of them than fit.
    Raises AssertionError where the two do not have the same losses (1e-3).
    """
    run = prepare(folder, steps=steps, num_workers=1)
    encoder, half = run.method.image_encoder.model, steps // 2
    losses: dict[str, list[float]] = {}
    waits = []

    def trained(records: str, memory_gib: float) -> tuple[float, float]:
        settings = replace(run.train, memory_gib=memory_gib)
        worker = Worker(
            make_job(str(folder / records), str(folder / "run"), run.base, encoder, run.method, settings), World()
        )
        losses[records], waited, begun = [], 0.0, (0.0, 0.0)

        def make(step: int) -> Batch:
            return worker.batches.training(worker.order.share(step, 0, 1))

        with ReadAhead(make, range(steps), limit=0) as batches:  # one ahead: the work of the second half is done in it
            for step in range(steps):
                if step == half:
                    waited, begun = 0.0, (time.process_time(), time.monotonic())
                asked = time.monotonic()
                batch = batches.take()
                waited += time.monotonic() - asked
                losses[records].append(worker.trainer.step(batch).loss)
        images = half * settings.batch_size
        return images / (time.process_time() - begun[0]), waited / (time.monotonic() - begun[1])

    def cached(_: int) -> float:
        speed, wait = trained("caches", run.train.memory_gib)
        waits.append(wait)
        return speed

    def online(_: int) -> float:
        return trained("pictures", 0.0)[0]

    ratios = paired(pairs, (cached, online))
    assert max(abs(one - other) for one, other in zip(losses["caches"], losses["pictures"], strict=True)) < 1e-3
    return {"ratios": ratios, "waits": waits}


if __name__ == "__main__":
    place, steps, pairs = sys.argv[1:]
    print(json.dumps(cached_vs_online(Path(place), int(steps), int(pairs))))
