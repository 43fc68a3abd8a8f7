"""A pipeline and pictures that the method's tests share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from realcustom import RealCustomPipeline
from tests.support import tiny
from tests.support.stock_calls import quiet


@pytest.fixture
def pipeline(tiny_models: tiny.TinyModels) -> RealCustomPipeline:
    pipe = RealCustomPipeline.from_pretrained(tiny_models.base, tiny_models.adapter, tiny_models.image_encoder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def picture() -> Callable[[int], Image.Image]:
    """A picture of noise, by seed."""

    def make(seed: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8))

    return make


@pytest.fixture(scope="module")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny SDXL base."""
    return tiny.tiny_sdxl_base(tmp_path_factory.mktemp("sdxl") / "base")


@pytest.fixture
def sdxl(sdxl_folder: str) -> RealCustomPipeline:
    """It without an adapter."""
    pipe: RealCustomPipeline = quiet(RealCustomPipeline.from_pretrained(sdxl_folder))
    return pipe
