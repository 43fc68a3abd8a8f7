"""Training with cached features against training that computes them at each use, with the shipped models of sprites.

python benchmarks/training_speed.py FOLDER STEPS PAIRS    # prints one line of JSON
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import record
import torch

sys.path.append(str(record.ROOT))  # the tests are not installed

from realcustom.base_loading import load_base
from realcustom.pipeline.recipes import sprites
from realcustom.training.encoders import FrozenEncoders
from realcustom.training.run import TrainResult, train
from tests.support.training_corpus import fill_caches, write_pictures

RECORDS, BATCH = 64, 8


def cached_vs_online(folder: Path, steps: int, pairs: int) -> dict[str, float]:
    """Images a second with caches over those without, interleaved: the median of the pairs, and the extremes.

    Raises AssertionError where the two do not have the same losses (1e-3).
    """
    shutil.rmtree(folder, ignore_errors=True)
    run = sprites()
    base = load_base(run.base)
    encoders = FrozenEncoders(base, run.method.image_encoder.model, run.method, torch.device("cpu"))
    write_pictures(folder / "pictures", RECORDS, side=base.resolution)
    fill_caches(folder / "pictures", folder / "caches", encoders, keep_image=False)
    settings = replace(
        run.train, steps=steps, batch_size=BATCH, num_workers=1, threads=1, sample_records=0, log_every=0, val_every=0
    )
    settings = replace(settings, checkpoint_every=0, memory_gib=0.0)  # what is computed is not kept

    def trained(records: str, number: int) -> TrainResult:
        output = str(folder / f"{records}-{number}")
        return train(str(folder / records), output, run.base, None, run.method, settings, local=True)

    ratios = []
    for number in range(pairs):
        cached, online = (trained(records, number) for records in ("caches", "pictures"))
        assert abs(cached.curve[-2]["loss"] - online.curve[-2]["loss"]) < 1e-3
        assert abs(cached.loss_after - online.loss_after) < 1e-3
        ratios.append(cached.curve[-2]["images_per_second"] / online.curve[-2]["images_per_second"])
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


if __name__ == "__main__":
    place, steps, pairs = sys.argv[1:]
    print(json.dumps(cached_vs_online(Path(place), int(steps), int(pairs))))
