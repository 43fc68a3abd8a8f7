"""Tiny models, one corpus as pictures and as caches, and one finished run for all tests of this folder."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from realcustom.base_loading import load_base
from realcustom.training.encoders import FrozenEncoders
from realcustom.training.run import TrainResult
from tests.support.tiny import tiny_base, tiny_image_encoder
from tests.support.training_corpus import fill_caches, write_pictures
from tests.support.training_runs import METHOD, fit


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Tiny models, and one corpus as pictures and as caches."""
    root = tmp_path_factory.mktemp("training")
    base, image_encoder = str(root / "base"), str(root / "image_encoder")
    tiny_base(base)
    tiny_image_encoder(image_encoder)
    loaded = load_base(base)
    encoders = FrozenEncoders(loaded, image_encoder, METHOD, torch.device("cpu"))
    write_pictures(root / "pictures", 23, side=loaded.resolution, views=True)
    fill_caches(root / "pictures", root / "caches", encoders, keep_image=False)
    return SimpleNamespace(
        base=base, image_encoder=image_encoder, pictures=str(root / "pictures"), caches=str(root / "caches")
    )


@pytest.fixture(scope="session")
def undisturbed(world: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return fit(world, tmp_path_factory.mktemp("undisturbed") / "run")
