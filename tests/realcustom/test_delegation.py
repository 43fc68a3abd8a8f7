"""Attributes of the stock pipelines: forwarded because they take effect, or refused with the way out."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from realcustom import RealCustomPipeline
from realcustom.delegation import FORWARDED, REFUSED, UNUSED, NotOffered
from realcustom.errors import UsageError
from tests.support import tiny


@pytest.mark.parametrize("make", [tiny.tiny_pipeline, tiny.tiny_sdxl_pipeline])
def test_every_name_of_the_stock_pipeline_is_honoured_or_refused(make: Any) -> None:
    """No name is taken over because it is there: what the list does not have says where the stock pipeline's own is."""
    stock = make()
    ours = RealCustomPipeline.from_pretrained(stock)
    for name in [name for name in dir(stock) if not name.startswith("__")]:
        if hasattr(type(ours), name) or name in vars(ours):
            continue
        if name in FORWARDED or name in UNUSED or name in stock.components:
            assert getattr(ours, name, None) == getattr(stock, name, None)
        else:
            with pytest.raises(NotOffered):
                getattr(ours, name)


def test_listed_names_are_of_diffusers() -> None:
    """A name that diffusers drops leaves the list."""
    known = set(dir(tiny.tiny_pipeline())) | set(dir(tiny.tiny_sdxl_pipeline()))
    assert (FORWARDED | set(REFUSED)) <= known and not FORWARDED & set(REFUSED)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("enable_attention_slicing", "VAE slicing and tiling, and offload, work"),
        ("enable_xformers_memory_efficient_attention", "xformers replaces the attention processors"),
        ("fuse_qkv_projections", "fused projections replace the attention processors"),
        ("load_ip_adapter", r"show the picture as subjects="),
        ("enable_group_offload", r"use enable_model_cpu_offload\(\)"),
        ("push_to_hub", r"save with pipe\.save_pretrained\(folder\) and upload"),
        ("prepare_latents", r"the stock pipeline's is pipe\.diffusers\.prepare_latents"),
        ("from_pipe", "is not read by a RealCustomPipeline"),
    ],
)
def test_what_would_do_nothing_is_refused(pipeline: RealCustomPipeline, name: str, said: str) -> None:
    assert not hasattr(pipeline, name)
    for kind in (UsageError, AttributeError):
        with pytest.raises(kind, match=said):
            getattr(pipeline, name)


def test_assignments_that_would_do_nothing_are_refused(pipeline: RealCustomPipeline) -> None:
    with pytest.raises(NotOffered, match=r"safety_checker is not used here: apply it to output.images"):
        pipeline.safety_checker = object()
    pipeline.safety_checker = None  # as it is
    pipeline.requires_safety_checker = False
    with pytest.raises(NotOffered, match="image_processor is not read"):
        pipeline.image_processor = object()
    with pytest.raises(AttributeError):
        pipeline.guidance_scale = 3.0  # type: ignore[misc]  # as in diffusers: an argument of the call
    pipeline.note = "my own"  # nobody else's name
    assert pipeline.note == "my own" and not hasattr(pipeline.diffusers, "note")


def test_parts_and_sizes_are_those_that_are_there(pipeline: RealCustomPipeline) -> None:
    assert pipeline.vae_scale_factor == 2
    pipeline.vae = tiny.tiny_vae(kl=True)
    assert pipeline.components["vae"] is pipeline.vae is pipeline.diffusers.vae
    assert pipeline.device == torch.device("cpu") and pipeline.dtype == torch.float32


def test_copies_and_pickles(pipeline: RealCustomPipeline) -> None:
    arguments: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    expected: Any = pipeline("a dog", generator=torch.Generator().manual_seed(3), **arguments).images
    for other in (copy.deepcopy(pipeline), pickle.loads(pickle.dumps(pipeline))):
        found: Any = other("a dog", generator=torch.Generator().manual_seed(3), **arguments).images
        assert torch.equal(found, expected)
