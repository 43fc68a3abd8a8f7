"""A sample sheet leaves nothing behind in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from realcustom.base_loading import load_base
from realcustom.training.encoders import FrozenEncoders
from realcustom.training.run import make_job
from realcustom.training.worker import Worker
from realcustom.training.world import World
from tests.support.training_corpus import fill_caches
from tests.support.training_runs import METHOD, SETTINGS


@pytest.mark.parametrize("cached", [True, False])
def test_full_caches_leave_no_encoder_loaded_after_a_sheet(
    world: SimpleNamespace, tmp_path: Path, cached: bool
) -> None:
    records = world.pictures
    if cached:
        encoders = FrozenEncoders(load_base(world.base), world.image_encoder, METHOD, torch.device("cpu"))
        fill_caches(Path(world.pictures), tmp_path / "records", encoders, keep_image=True)
        records = str(tmp_path / "records")
    settings = replace(SETTINGS, sample_records=1, sample_steps=1)
    output = str(tmp_path / "run")
    worker = Worker(make_job(records, output, world.base, world.image_encoder, METHOD, settings), World())
    pipeline = worker.encoders.base.pipeline
    assert worker.outputs.sample(worker.validation) and (tmp_path / "run" / "samples").exists()
    given_up = [pipeline.vae is None, pipeline.text_encoder is None, "image_encoder" not in vars(worker.encoders)]
    assert given_up == [cached] * 3
