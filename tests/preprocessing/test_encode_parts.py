"""`encode` reads the weights of the base's models that it runs, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from realcustom.base import encode_pixels, encode_prompts
from realcustom.base_loading import load_base
from realcustom.errors import UsageError
from tests.support.tiny import tiny_base, tiny_sdxl_base


@pytest.fixture(scope="module", params=[tiny_base, tiny_sdxl_base], ids=["sd15", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    made: str = request.param(tmp_path_factory.mktemp("base"))
    return made


def test_a_part_without_weights_has_its_shape_and_the_others_compute_the_same(folder: str) -> None:
    whole, parts = load_base(folder), load_base(folder, "cpu", only=("vae", "text_encoder", "text_encoder_2"))
    assert all(parameter.is_meta for parameter in parts.unet.parameters())
    shapes = [{**base.unet.config, "_name_or_path": ""} for base in (whole, parts)]
    assert shapes[0] == shapes[1] and parts.identity == whole.identity
    texts = [encode_prompts(base, ["a cat", "a dog"]).hidden for base in (whole, parts)]
    pixels = torch.rand(1, 3, 32, 32)
    latents = [encode_pixels(base, pixels) for base in (whole, parts)]
    assert torch.equal(*texts) and torch.equal(*latents)
    texts_alone, vae_alone = (
        load_base(folder, only=("text_encoder", "text_encoder_2")),
        load_base(folder, only=("vae",)),
    )
    assert torch.equal(encode_prompts(texts_alone, ["a cat", "a dog"]).hidden, texts[0])
    assert torch.equal(encode_pixels(vae_alone, pixels), latents[0])


def test_a_unet_whose_weights_are_not_there_is_no_matter_where_it_does_not_run(folder: str) -> None:
    for file in (Path(folder) / "unet").glob("*.safetensors"):
        file.unlink()
    assert load_base(folder, only=("vae",)).vae.dtype is torch.float32
    with pytest.raises(UsageError, match="base model"):
        load_base(folder)
