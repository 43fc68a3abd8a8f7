"""SDXL-shaped bases: the same laws against the stock SDXL pipeline of the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel

from realcustom import RealCustomPipeline, Subject
from realcustom.base import encode_prompts
from realcustom.base_loading import load_base
from realcustom.config import override
from realcustom.settings import MethodSettings, PooledText
from tests.support import tiny

PROMPT = "a dog on grass"
Picture = Callable[[int], Image.Image]


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of a tiny SDXL base, an image encoder, and the paper's adapter for them."""
    root = tmp_path_factory.mktemp("sdxl")
    base, encoder = tiny.tiny_sdxl_base(root / "base"), tiny.tiny_image_encoder(root / "encoder")
    settings = override(tiny.tiny_settings(), {"guidance": {"launches": "separate"}})
    adapter = tiny.tiny_adapter(root / "adapter.safetensors", base, encoder, settings)
    return {"base": base, "encoder": encoder, "adapter": adapter}


@pytest.fixture
def pipeline(sdxl: dict[str, str]) -> RealCustomPipeline:
    return RealCustomPipeline.from_pretrained(sdxl["base"], sdxl["adapter"], sdxl["encoder"])


def draw(pipeline: RealCustomPipeline, subjects: Any = (), **arguments: Any) -> Any:
    arguments = {"num_inference_steps": 3, "output_type": "latent", "return_masks": True, **arguments}
    return pipeline(PROMPT, subjects, generator=torch.Generator().manual_seed(3), **arguments)


def stock_trajectory(folder: str, scale: float, height: int, width: int, negative: str | None = None) -> Tensor:
    """The stock pipeline's latents with each branch run alone, and its own call beside it, equal but for kernels."""
    stock = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    stock.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, height // 2, width // 2, generator=torch.Generator().manual_seed(3))
    arguments: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": scale, "negative_prompt": negative}
    whole = stock(PROMPT, latents=noise.clone(), height=height, width=width, output_type="latent", **arguments).images
    with torch.no_grad():
        text, null, pooled, null_pooled = stock.encode_prompt(PROMPT, device="cpu", negative_prompt=negative)
        ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=text.dtype)
        stock.scheduler.set_timesteps(3)
        latents = noise
        for timestep in stock.scheduler.timesteps:
            predictions = [
                stock.unet(latents, timestep, hidden, added_cond_kwargs={"text_embeds": added, "time_ids": ids}).sample
                for hidden, added in ((null, null_pooled), (text, pooled))
            ]
            combined = predictions[0] + scale * (predictions[1] - predictions[0])
            latents = stock.scheduler.step(combined, timestep, latents).prev_sample
    assert (latents - whole).abs().max() <= 1e-4
    return latents


@pytest.mark.parametrize(("height", "width", "negative"), [(32, 32, None), (40, 24, "a cat")])
def test_without_a_subject_it_is_the_stock_pipeline(
    pipeline: RealCustomPipeline, sdxl: dict[str, str], picture: Picture, height: int, width: int, negative: str | None
) -> None:
    """inv. 24 on SDXL: to the bit, with no subject, with w_i = 0 and with a zero mask."""
    arguments: dict[str, Any] = {"height": height, "width": width, "negative_prompt": negative, "guidance_scale": 5.0}
    expected = stock_trajectory(sdxl["base"], 5.0, height, width, negative)
    assert torch.equal(draw(pipeline, **arguments).images, expected)
    subject = Subject(image=picture(0), word="dog")
    assert torch.equal(draw(pipeline, [subject], subject_guidance_scale=0.0, **arguments).images, expected)
    nowhere = Subject(image=picture(0), word="dog", scope=0.0)
    assert torch.equal(draw(pipeline, [nowhere], subject_guidance_scale=9.0, **arguments).images, expected)


def test_the_mask_lies_on_the_largest_grid_with_cross_attention(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """A 17 x 13 latent has no attention at its own size: the mask's grid is the ceiling of its half, 9 x 7."""
    out = draw(pipeline, [Subject(image=picture(0), word="dog")], height=34, width=26)
    assert len(out.masks) == 3 and all(mask.shape == (1, 1, 9, 7) for (mask,) in out.masks)
    assert all(mask.max() == 1 and mask.count_nonzero() == 63 // 4 for (mask,) in out.masks)
    assert not torch.allclose(out.images, draw(pipeline, height=34, width=26).images, atol=1e-3)


def test_pooled_text_and_picture_sizes_as_the_settings_say(pipeline: RealCustomPipeline, sdxl: dict[str, str]) -> None:
    base = load_base(sdxl["base"])
    encoder = base.pipeline.text_encoder_2
    assert not isinstance(encoder, CLIPTextModel)
    projected, raw = (encode_prompts(base, [PROMPT], pooled).pooled for pooled in PooledText)
    assert projected is not None and raw is not None
    torch.testing.assert_close(encoder.text_projection(raw), projected)
    plain = draw(pipeline, height=40, width=26).images
    for change in ({"sdxl_pooled": "unprojected_compat"}, {"time_ids_order": "wh_compat"}):
        pipeline.settings = override(MethodSettings(), {"base": change, "guidance": {"launches": "separate"}})
        assert not torch.equal(draw(pipeline, height=40, width=26).images, plain), change


def test_a_second_encoder_without_projection_is_named(sdxl: dict[str, str], tmp_path: Path) -> None:
    pipeline = tiny.tiny_sdxl_pipeline()
    pipeline.text_encoder_2 = tiny.tiny_text_encoder(pipeline.tokenizer)
    pipeline.save_pretrained(tmp_path / "base")
    base = load_base(str(tmp_path / "base"))
    with pytest.raises(ValueError, match="sdxl_pooled to unprojected_compat"):
        encode_prompts(base, [PROMPT])
    assert encode_prompts(base, [PROMPT], PooledText.UNPROJECTED_COMPAT).pooled is not None


def test_tokenizers_that_disagree_are_refused(pipeline: RealCustomPipeline, picture: Picture) -> None:
    pipeline.base.pipeline.tokenizer_2 = tiny.tiny_tokenizer(("dog", "grass"))
    with pytest.raises(ValueError, match="tokenizers"):
        draw(pipeline, [Subject(image=picture(0), word="dog")])
