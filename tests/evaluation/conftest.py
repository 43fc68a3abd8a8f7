"""A pipeline of tiny random models."""

from __future__ import annotations

import pytest

from realcustom.diffusion_pipeline import RealCustomPipeline
from tests.support.tiny import tiny_adapter, tiny_base, tiny_image_encoder


@pytest.fixture(scope="package")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> RealCustomPipeline:
    folder = tmp_path_factory.mktemp("tiny")
    base, image_encoder = tiny_base(folder / "base"), tiny_image_encoder(folder / "image_encoder")
    adapter = tiny_adapter(folder / "adapter.safetensors", base, image_encoder)
    return RealCustomPipeline.from_pretrained(base, adapter=adapter, image_encoder=image_encoder, device="cpu")
