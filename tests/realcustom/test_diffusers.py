"""What diffusers can do to its own pipelines works here too: schedulers, LoRA, VAEs, text encoders, offload, slicing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor

from realcustom import RealCustomPipeline, Subject
from tests.support import tiny

Picture = Callable[[int], Image.Image]
PROMPT = "a dog on grass"


def draw(pipeline: RealCustomPipeline, picture: Picture, **arguments: Any) -> Any:
    arguments = {"num_inference_steps": 2, "output_type": "pt", "height": 32, "width": 40, **arguments}
    generator = torch.Generator().manual_seed(3)
    return pipeline(PROMPT, [Subject(image=picture(0), word="dog")], generator=generator, **arguments).images


def test_weights_of_other_precisions(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """float64, and 8 bits that are cast while a layer runs; a subject acts in both."""
    latents = torch.randn(1, 4, 16, 20, generator=torch.Generator().manual_seed(3))  # a dtype draws its own numbers
    expected = draw(pipeline, picture, latents=latents)
    pipeline.to(torch.float64)
    assert (draw(pipeline, picture, latents=latents) - expected).abs().max() < 1e-3
    pipeline.to(torch.float32)
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    drawn = draw(pipeline, picture)
    assert torch.isfinite(drawn).all() and not torch.equal(drawn, draw(pipeline, picture, subject_guidance_scale=0.0))


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDPMScheduler",
        "PNDMScheduler",
        "LMSDiscreteScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
    ],
)
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # diffusers' own, in DEIS and KDPM2
def test_every_diffusion_scheduler_draws(pipeline: RealCustomPipeline, picture: Picture, name: str) -> None:
    """Also those with more evaluations than steps: maps are made at each, and a plain call equals the stock pipeline."""
    if name == "LMSDiscreteScheduler":
        pytest.importorskip("scipy", reason="this scheduler needs scipy, which the project does not install")
    config = {**pipeline.diffusers.scheduler.config, "clip_sample": False}
    pipeline.scheduler = getattr(diffusers, name).from_config(config)
    seen: list[int] = []

    def watch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(len(tensors["masks"]))
        return {}

    images = draw(pipeline, picture, num_inference_steps=4, callback_on_step_end=watch)
    assert torch.isfinite(images).all() and seen == [1] * len(pipeline.scheduler.timesteps)
    stock = pipeline.diffusers
    stock.scheduler = getattr(diffusers, name).from_config(config)
    expected = stock(
        PROMPT,
        num_inference_steps=4,
        guidance_scale=5.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(1),
    ).images
    ours = pipeline(
        PROMPT,
        num_inference_steps=4,
        guidance_scale=5.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(1),
    ).images
    assert isinstance(ours, Tensor) and (ours - expected).abs().max() <= 1e-4


def test_lora_acts_and_leaves(pipeline: RealCustomPipeline, picture: Picture, tmp_path: Path) -> None:
    stock = tiny.tiny_pipeline()
    torch.manual_seed(0)
    stock.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(stock.unet))
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    without = draw(pipeline, picture)
    pipeline.load_lora_weights(tmp_path)
    with_it = draw(pipeline, picture)
    assert not torch.allclose(with_it, without, atol=1e-3)
    pipeline.unload_lora_weights()
    assert torch.equal(draw(pipeline, picture), without)


def test_another_vae(pipeline: RealCustomPipeline, picture: Picture) -> None:
    before = draw(pipeline, picture)
    latents = draw(pipeline, picture, output_type="latent")
    pipeline.vae = tiny.tiny_vae(kl=True, seed=5)
    assert torch.equal(draw(pipeline, picture, output_type="latent"), latents)
    assert not torch.equal(draw(pipeline, picture), before)


def test_another_text_encoder(pipeline: RealCustomPipeline, picture: Picture) -> None:
    before = draw(pipeline, picture)
    pipeline.text_encoder = tiny.tiny_text_encoder(pipeline.tokenizer, seed=5)
    assert not torch.allclose(draw(pipeline, picture), before, atol=1e-3)


@pytest.mark.parametrize("what", ["slicing", "tiling"])
def test_vae_slicing_and_tiling(pipeline: RealCustomPipeline, picture: Picture, what: str) -> None:
    pipeline.vae = tiny.tiny_vae(kl=True)
    before = draw(pipeline, picture, num_images_per_prompt=2, height=64, width=64)
    getattr(pipeline.vae, f"enable_{what}")()
    after = draw(pipeline, picture, num_images_per_prompt=2, height=64, width=64)
    assert after.shape == before.shape
    if what == "slicing":
        assert torch.allclose(after, before, atol=1e-5)
    else:  # tiles are blended: another picture at the seams, of the same kind
        assert not torch.equal(after, before) and torch.isfinite(after).all()


def test_offload(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """On the CPU the device that runs is the one that keeps: the hooks and the moves are those of an accelerator."""
    before = draw(pipeline, picture)
    pipeline.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert torch.equal(draw(pipeline, picture), before)


def test_the_device_is_the_one_that_diffusers_runs_on(pipeline: RealCustomPipeline) -> None:
    """Read without a walk through diffusers' hooks where there are none, and from them where there are."""
    base, kept, runs = pipeline.base, torch.device("cpu"), torch.device("meta")
    assert base.device == kept == base.pipeline._execution_device
    base.unet.mid_block._hf_hook = SimpleNamespace(execution_device=runs)
    assert base.device == kept == base.pipeline._execution_device  # the models themselves are not offloaded
    base.pipeline.text_encoder._hf_hook = base.vae._hf_hook = base.unet._hf_hook = SimpleNamespace(
        execution_device=runs
    )
    assert base.device == runs == base.pipeline._execution_device


def test_the_device_of_group_offload(pipeline: RealCustomPipeline) -> None:
    runs = torch.device("meta")
    hook = SimpleNamespace(config=SimpleNamespace(onload_device=runs))
    pipeline.unet.mid_block._diffusers_hook = SimpleNamespace(get_hook=lambda name: hook)
    assert pipeline.base.device == runs == pipeline.base.pipeline._execution_device


def test_the_device_where_parts_are_apart(pipeline: RealCustomPipeline) -> None:
    """Then diffusers says which counts."""
    pipeline.base.unet.to("meta")
    assert pipeline.base.device == pipeline.base.pipeline._execution_device


@pytest.mark.gpu
def test_sequential_offload(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """Layer by layer; accelerate does this on an accelerator alone (the stock pipeline fails on the CPU too)."""
    before = draw(pipeline.to("cuda"), picture)
    pipeline.enable_sequential_cpu_offload()
    assert next(pipeline.unet.parameters()).device.type == "meta"  # between calls the layers hold nothing
    assert torch.allclose(draw(pipeline, picture), before, atol=1e-4)


def test_attention_slicing_is_refused(pipeline: RealCustomPipeline, picture: Picture) -> None:
    with pytest.raises(ValueError, match="attention slicing replaces"):
        pipeline.enable_attention_slicing()
    pipeline.diffusers.enable_attention_slicing("max")  # past our own method
    with pytest.raises(ValueError, match="SlicedAttnProcessor"):
        draw(pipeline, picture)


def test_freeu_acts_and_leaves(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """On the skip connections, beside a subject too; a plain call is the stock pipeline's with it, to the bit."""
    arguments: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent"}
    before = draw(pipeline, picture)
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    assert not torch.allclose(draw(pipeline, picture), before, atol=1e-3)
    ours: Any = pipeline(PROMPT, generator=torch.Generator().manual_seed(1), **arguments).images
    stock = pipeline.diffusers
    assert torch.equal(ours, stock(PROMPT, generator=torch.Generator().manual_seed(1), **arguments).images)
    pipeline.disable_freeu()
    assert torch.equal(draw(pipeline, picture), before)


def test_compiled_regions(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """Each is one graph; with another picture, with maps or without, no further graph is made."""
    before = draw(pipeline, picture)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    pipeline.compile(backend="eager")
    assert torch.allclose(draw(pipeline, picture), before, atol=1e-5)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0 and not counters["graph_break"]
    draw(pipeline, picture, mask_reuse_after=1)
    pipeline(PROMPT, [], num_inference_steps=2, height=32, width=40, output_type="latent")
    assert counters["stats"]["unique_graphs"] == graphs and not counters["graph_break"]


@pytest.mark.slow
def test_a_unet_compiled_as_a_whole(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """torch.compile leaves graph breaks where maps are collected, not another result."""
    before = draw(pipeline, picture)
    torch._dynamo.reset()
    pipeline.unet.forward = torch.compile(pipeline.unet.forward, backend="eager")
    assert torch.allclose(draw(pipeline, picture), before, atol=1e-5)
