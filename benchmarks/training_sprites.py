"""Records for the shipped models of sprites, with and without caches, and a run that does nothing but train on them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import record
import torch

sys.path.append(str(record.ROOT))  # the tests are not installed

from realcustom.base_loading import load_base
from realcustom.pipeline.recipes import RunSettings, sprites
from realcustom.training.encoders import FrozenEncoders
from tests.support.training_corpus import fill_caches, write_pictures

RECORDS = 64


def prepare(folder: Path, **settings: Any) -> RunSettings:
    """Make `pictures` and `caches`, the same records, in a new folder; the recipe's settings with others for training.

    One thread a worker; no sheets, no checkpoint but the last, no validation but the first and the last.
    """
    shutil.rmtree(folder, ignore_errors=True)
    run = sprites()
    base = load_base(run.base)
    encoders = FrozenEncoders(base, run.method.image_encoder.model, run.method, torch.device("cpu"))
    write_pictures(folder / "pictures", RECORDS, side=base.resolution)
    fill_caches(folder / "pictures", folder / "caches", encoders, keep_image=False)
    bare: dict[str, Any] = {"threads": 1, "sample_records": 0, "val_every": 0, "checkpoint_every": 0}
    return replace(run, train=replace(run.train, **bare, **settings))


def paired(pairs: int, sides: tuple[Callable[[int], float], Callable[[int], float]]) -> list[float]:
    """The first side's speed over the second's, of each pair; the two alternate, in both orders."""
    ratios = []
    for number in range(pairs):
        order = sides[::-1] if number % 2 else sides
        speeds = {side: side(number) for side in order}
        ratios.append(speeds[sides[0]] / speeds[sides[1]])
        shown = ", ".join(f"{side.__name__} {speed:.1f}" for side, speed in speeds.items())
        print(f"pair {number}: images/s {shown}", file=sys.stderr)
    return ratios
