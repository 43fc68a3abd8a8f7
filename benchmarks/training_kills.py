"""A training command that is killed -9 twenty times at random moments, against the undisturbed run.

python benchmarks/training_kills.py FOLDER KILLS STEPS    # prints one line of JSON

With other views, accumulation, and an average of the weights; features are computed from the pictures.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import record

sys.path.append(str(record.ROOT))  # the tests are not installed

from realcustom.base_loading import load_base
from realcustom.store import Store
from realcustom.training.metrics_file import read_rows
from tests.support.tiny import tiny_base, tiny_image_encoder
from tests.support.training_corpus import write_pictures
from tests.support.training_kills import VARIED, half_written_below, train_with_kills
from tests.support.training_runs import fit, write_settings

SEED = 20


def loss_difference(folder: Path, kills: int, steps: int) -> dict[str, float]:
    """The largest difference of a loss in metrics.jsonl, and whether the adapters have the same bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    base, encoder = str(folder / "base"), str(folder / "image_encoder")
    tiny_base(base)
    tiny_image_encoder(encoder)
    write_pictures(folder / "records", 23, side=load_base(base).resolution, views=True)
    config, records = folder / "settings.yaml", str(folder / "records")
    settings = replace(VARIED, steps=steps)
    write_settings(config, base, encoder, settings)
    arguments = ["--input", records, "--output", str(folder / "run"), "--config", str(config), "--local"]
    half_written = functools.partial(half_written_below, folder / "run")
    killed = train_with_kills(arguments, folder / "log", half_written, steps, kills, -(-kills // 4), seed=SEED)
    world = SimpleNamespace(base=base, image_encoder=encoder, caches=records)
    whole = fit(world, folder / "whole", settings)
    ours, theirs = _losses(read_rows(str(folder / "run"), Store())), _losses(list(whole.curve))
    assert ours.keys() == theirs.keys()
    same = (folder / "run" / "adapter.safetensors").read_bytes() == Path(whole.adapter).read_bytes()
    difference = max(abs(ours[key] - theirs[key]) for key in ours)
    return {"difference": difference, "kills": killed.all, "while_writing": killed.while_writing, "same_bytes": same}


def _losses(rows: list[dict[str, Any]]) -> dict[tuple[int, str], float]:
    return {
        (row["step"], name): row[name] for row in rows for name in ("loss", "val_loss") if row.get(name) is not None
    }


if __name__ == "__main__":
    place, kills, steps = sys.argv[1:]
    print(json.dumps(loss_difference(Path(place), int(kills), int(steps))))
