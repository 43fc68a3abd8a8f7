"""Patches of the UNet that people bring along: they work beside a subject, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tomesd
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import PyramidAttentionBroadcastConfig
from diffusers.hooks import apply_layerwise_casting, apply_pyramid_attention_broadcast
from PIL import Image

from realcustom import RealCustomPipeline, Subject
from realcustom.errors import UsageError

Picture = Callable[[int], Image.Image]


def draw(pipeline: RealCustomPipeline, picture: Picture) -> Any:
    arguments: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "height": 32, "width": 32}
    dog = [Subject(image=picture(0), word="dog")]
    return pipeline("a dog on grass", dog, generator=torch.Generator().manual_seed(3), **arguments).images


@pytest.mark.parametrize("options", [{}, {"merge_mlp": True}])
def test_tomesd_merges_tokens_of_the_self_attention(
    pipeline: RealCustomPipeline, picture: Picture, options: dict[str, bool]
) -> None:
    before = draw(pipeline, picture)
    tomesd.apply_patch(pipeline.diffusers, ratio=0.5, **options)
    merged = draw(pipeline, picture)
    assert torch.isfinite(merged).all() and not torch.allclose(merged, before, atol=1e-3)
    tomesd.remove_patch(pipeline.diffusers)
    assert torch.equal(draw(pipeline, picture), before)


def test_merging_before_the_cross_attention_is_refused(pipeline: RealCustomPipeline, picture: Picture) -> None:
    tomesd.apply_patch(pipeline.diffusers, ratio=0.5, merge_crossattn=True)
    with pytest.raises(UsageError, match=r"128 queries.*\[64, 256\].*tomesd does with merge_crossattn=True"):
        draw(pipeline, picture)


def test_deepcache_is_refused(pipeline: RealCustomPipeline, picture: Picture) -> None:
    before = draw(pipeline, picture)
    helper = DeepCacheSDHelper(pipe=pipeline.diffusers)
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()
    with pytest.raises(UsageError, match=r"DeepCache\.\S+ replaced the forward of the UNet's down_blocks.0"):
        draw(pipeline, picture)
    helper.disable()
    without = RealCustomPipeline.from_pretrained(pipeline.diffusers)
    plain = DeepCacheSDHelper(pipe=without.diffusers)
    plain.enable()
    with pytest.raises(UsageError, match="replaced the forward"):
        without("a dog on grass", num_inference_steps=1)
    plain.disable()
    assert torch.equal(draw(pipeline, picture), before)


def test_hooks_that_reuse_features_are_refused_and_casts_are_not(
    pipeline: RealCustomPipeline, picture: Picture
) -> None:
    apply_layerwise_casting(pipeline.unet, storage_dtype=torch.float32, compute_dtype=torch.float32)
    draw(pipeline, picture)
    config = PyramidAttentionBroadcastConfig(
        cross_attention_block_skip_range=2,
        cross_attention_timestep_skip_range=(1, 999),
        cross_attention_block_identifiers=("attentions",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(pipeline.unet, config)
    with pytest.raises(UsageError, match="diffusers' hook pyramid_attention_broadcast replaced the forward"):
        draw(pipeline, picture)
