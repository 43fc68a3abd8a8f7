"""A tiny random base, image encoder and adapter, and the pipeline of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from realcustom.diffusion_pipeline import RealCustomPipeline
from tests.support.tiny import tiny_adapter, tiny_base, tiny_image_encoder


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Folders and files a pipeline is loaded from."""

    base: str
    image_encoder: str
    adapter: str


@pytest.fixture(scope="package")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder: Path = tmp_path_factory.mktemp("tiny")
    base = tiny_base(folder / "base")
    image_encoder = tiny_image_encoder(folder / "image_encoder")
    adapter = tiny_adapter(folder / "adapter.safetensors", base, image_encoder)
    return Sources(base=base, image_encoder=image_encoder, adapter=adapter)


@pytest.fixture(scope="package")
def tiny_pipeline(sources: Sources) -> RealCustomPipeline:
    return RealCustomPipeline.from_pretrained(
        sources.base, adapter=sources.adapter, image_encoder=sources.image_encoder, device="cpu"
    )
