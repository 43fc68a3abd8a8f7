"""Tiny folders and pipelines that the method's tests share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from realcustom import RealCustomPipeline
from tests.support import tiny


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of a tiny base model, image encoder and adapter."""
    root = tmp_path_factory.mktemp("tiny")
    base, encoder = tiny.tiny_base(root / "base"), tiny.tiny_image_encoder(root / "encoder")
    return {"base": base, "encoder": encoder, "adapter": tiny.tiny_adapter(root / "adapter.safetensors", base, encoder)}


@pytest.fixture
def pipeline(folders: dict[str, str]) -> RealCustomPipeline:
    return RealCustomPipeline.from_pretrained(folders["base"], folders["adapter"], folders["encoder"])


@pytest.fixture
def picture() -> Callable[[int], Image.Image]:
    """A picture of noise, by seed."""

    def make(seed: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8))

    return make
