"""What a callback may read, change and stop, and the progress bar: as in diffusers' loops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import HeunDiscreteScheduler, StableDiffusionXLPipeline
from diffusers.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    PipelineCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
)
from PIL import Image
from torch import Tensor

from realcustom import RealCustomPipeline, Subject
from realcustom.config import override
from realcustom.errors import UsageError
from tests.support import tiny

Picture = Callable[[int], Image.Image]
PROMPT = "a dog on grass"


def draw(pipe: Any, subjects: Any = None, **arguments: Any) -> Tensor:
    """Latents of either pipeline."""
    arguments = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "latent", **arguments}
    positional = (PROMPT,) if subjects is None else (PROMPT, subjects)
    images: Tensor = pipe(*positional, generator=torch.Generator().manual_seed(3), **arguments).images
    return images


@pytest.fixture
def stock(pipeline: RealCustomPipeline) -> Any:
    """The stock pipeline with the sampler of ours."""
    pipeline.diffusers.scheduler = pipeline.scheduler
    return pipeline.diffusers


@pytest.fixture
def dog(picture: Picture) -> list[Subject]:
    return [Subject(image=picture(0), word="dog")]


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_an_interrupted_call_ends_as_in_the_stock_pipeline(pipeline: RealCustomPipeline, stock: Any, stop: int) -> None:
    seen: list[int] = []

    def interrupt(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        assert not pipe.interrupt
        pipe._interrupt = step == stop
        return tensors

    ours = draw(pipeline, callback_on_step_end=interrupt)
    assert seen == list(range(stop + 1))
    assert torch.equal(ours, draw(stock, callback_on_step_end=interrupt))
    whole = draw(pipeline)
    assert not pipeline.interrupt and torch.equal(whole, draw(stock)) and torch.equal(whole, ours) == (stop == 3)


def test_an_interrupted_call_with_a_subject(pipeline: RealCustomPipeline, dog: list[Subject]) -> None:
    def interrupt(pipe: RealCustomPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return {}

    found = pipeline(PROMPT, dog, num_inference_steps=4, return_masks=True, callback_on_step_end=interrupt)
    assert len(found.images) == 1 and found.masks is not None and len(found.masks) == 2


def test_what_a_callback_reads_of_the_call(pipeline: RealCustomPipeline, stock: Any) -> None:
    names = ["guidance_scale", "_guidance_scale", "do_classifier_free_guidance", "num_timesteps", "guidance_rescale"]
    names += ["cross_attention_kwargs", "interrupt", "_interrupt"]
    seen: list[dict[str, Any]] = []

    def read(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append({name: getattr(pipe, name) for name in names})
        return tensors

    for scale in (5.0, 0.5):
        for pipe in (pipeline, stock):
            draw(pipe, guidance_scale=scale, num_inference_steps=2, callback_on_step_end=read)
        assert seen[-1] == seen[-2] == seen[-3] == seen[-4] and seen[-1]["guidance_scale"] == scale


@pytest.mark.parametrize("cutoff", [{"cutoff_step_index": 1}, {"cutoff_step_ratio": 0.5, "cutoff_step_index": None}])
def test_a_cutoff_callback_ends_guidance_as_in_the_stock_pipeline(
    pipeline: RealCustomPipeline, stock: Any, cutoff: dict[str, Any]
) -> None:
    callback = SDCFGCutoffCallback(**{"cutoff_step_ratio": None, **cutoff})
    ours = draw(pipeline, callback_on_step_end=callback)
    assert not pipeline.do_classifier_free_guidance and pipeline.guidance_scale == 0
    assert torch.equal(ours, draw(stock, callback_on_step_end=callback)) and not torch.equal(ours, draw(pipeline))
    assert torch.equal(draw(pipeline), draw(stock))  # the next call has guidance again


def test_the_cutoff_callback_of_sdxl(tmp_path: Path) -> None:
    folder = tiny.tiny_sdxl_base(tmp_path / "sdxl")
    ours = RealCustomPipeline.from_pretrained(folder)
    stock = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    for pipe in (ours, stock):
        pipe.set_progress_bar_config(disable=True)
    callback = SDXLCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    found = draw(ours, callback_on_step_end=callback)
    assert torch.equal(found, draw(stock, callback_on_step_end=callback)) and not torch.equal(found, draw(ours))


@pytest.mark.parametrize("rescale", [{}, {"guidance_rescale": 0.5, "rescale_by_mask": True}])
@pytest.mark.parametrize("mode", ["cascade", "direct"])
def test_a_cutoff_with_a_subject_leaves_prompt_and_subject(
    pipeline: RealCustomPipeline, dog: list[Subject], mode: str, rescale: dict[str, Any]
) -> None:
    """Section 7: with both weights 1 the prediction is that of the generation branch; it is the only one that runs."""
    guidance = {"mode": mode, **rescale}
    pipeline.settings = override(pipeline.settings, {"guidance": guidance, "mask": {"mask_reuse_after": 1}})
    calls: list[int] = []
    pipeline.unet.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    weights: list[tuple[float, float]] = []

    def off(pipe: RealCustomPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        weights.append((pipe.guidance_scale, pipe.subject_guidance_scale))
        pipe._guidance_scale = 0.0
        assert not pipe.do_classifier_free_guidance
        return {}

    arguments: dict[str, Any] = {} if mode == "direct" else {"guidance_scale": 5.0}
    found = pipeline(PROMPT, dog, num_inference_steps=3, output_type="latent", callback_on_step_end=off, **arguments)
    assert torch.isfinite(found.images).all() and calls[-2:] == [1, 1]  # type: ignore[arg-type]
    assert weights[0][0] == arguments.get("guidance_scale", pipeline.settings.guidance.guidance_scale)


def test_a_callback_changes_the_weights(pipeline: RealCustomPipeline, stock: Any, dog: list[Subject]) -> None:
    def stronger(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 5.0 + step
        return tensors

    def without(pipe: RealCustomPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._subject_guidance_scale = 0.0
        return {}

    assert torch.equal(draw(pipeline, callback_on_step_end=stronger), draw(stock, callback_on_step_end=stronger))
    before = draw(pipeline, dog)
    assert not torch.equal(draw(pipeline, dog, callback_on_step_end=stronger), before)
    late = draw(pipeline, dog, callback_on_step_end=without)
    assert not torch.equal(late, before) and not torch.equal(late, draw(pipeline))
    assert torch.equal(draw(pipeline, dog), before)


def test_a_subject_that_begins_late_has_its_mask(pipeline: RealCustomPipeline, dog: list[Subject]) -> None:
    """A mask is made in the first step that needs one, also after the steps that would have made it."""
    masks: list[Any] = []

    def begin(pipe: RealCustomPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        masks.append(tensors["masks"])
        pipe._subject_guidance_scale = 7.0
        return {}

    draw(pipeline, dog, subject_guidance_scale=0.0, mask_reuse_after=1, callback_on_step_end=begin)
    assert masks[0] is None and masks[1][0].max() == 1 and masks[2] is masks[1]


def test_prompt_embeds_that_a_callback_changes(pipeline: RealCustomPipeline, stock: Any) -> None:
    """Both halves, as a new tensor or in place, as in the stock pipeline."""

    def new(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert set(tensors) == {"latents", "prompt_embeds", "negative_prompt_embeds"}
        assert tensors["prompt_embeds"].shape == (2, 77, 24)
        assert torch.equal(tensors["prompt_embeds"][:1], tensors["negative_prompt_embeds"]) or step
        return {**tensors, "prompt_embeds": tensors["prompt_embeds"] * 1.5} if step == 1 else tensors

    def in_place(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["prompt_embeds"].mul_(1.5 if step == 1 else 1.0)
        return tensors

    before = draw(pipeline)
    for callback in (new, in_place):
        inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]
        arguments = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": inputs}
        ours = draw(pipeline, **arguments)
        assert torch.equal(ours, draw(stock, **arguments)) and not torch.equal(ours, before)


def test_masks_follow_a_text_that_a_callback_changes(pipeline: RealCustomPipeline, dog: list[Subject]) -> None:
    """The word's keys, kept from step to step, are the new text's: the second mask is that of a call that began with it."""

    def turned(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": tensors["prompt_embeds"].flip(2), "latents": torch.ones_like(tensors["latents"])}

    def same(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.ones_like(tensors["latents"])}

    def masks(callback: Any, **text: Any) -> Any:
        inputs = ["latents", "prompt_embeds"]
        steps = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": inputs}
        arguments: dict[str, Any] = {"num_inference_steps": 2, "return_masks": True, **steps, **text}
        return pipeline(PROMPT, dog, **arguments).masks

    found = masks(turned)
    text, negative = pipeline.encode_prompt(PROMPT, "cpu", 1, True)
    expected = masks(same, prompt_embeds=text.flip(2), negative_prompt_embeds=negative.flip(2))
    assert (found[1][0] - expected[1][0]).abs().max() <= 1e-5
    assert (found[0][0] - expected[0][0]).abs().max() > 1e-3


def test_latents_that_a_callback_changes(pipeline: RealCustomPipeline, stock: Any) -> None:
    def new(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * 0.9}

    assert torch.equal(draw(pipeline, callback_on_step_end=new), draw(stock, callback_on_step_end=new))


class _Warmer(PipelineCallback):  # type: ignore[misc]
    tensor_inputs: ClassVar = ["latents"]

    def callback_fn(self, pipeline: Any, step_index: int, timesteps: Any, callback_kwargs: Any) -> dict[str, Any]:
        assert "masks" not in callback_kwargs  # it gets what it asks for
        return {**callback_kwargs, "latents": callback_kwargs["latents"] * 0.95}


def test_several_callbacks(pipeline: RealCustomPipeline, stock: Any) -> None:
    both = MultiPipelineCallbacks([_Warmer(), SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2)])
    assert torch.equal(draw(pipeline, callback_on_step_end=both), draw(stock, callback_on_step_end=both))


def test_what_a_callback_cannot_do_is_said(pipeline: RealCustomPipeline) -> None:
    def returns(**values: Any) -> dict[str, Any]:
        return {"callback_on_step_end": lambda *_: values}

    with pytest.raises(UsageError, match=r"may ask for latents, masks, prompt_embeds.* not for noise_pred"):
        draw(pipeline, callback_on_step_end_tensor_inputs=["latents", "noise_pred"], **returns())
    with pytest.raises(UsageError, match="may return new latents, not prompt_embeds: ask for what it changes"):
        draw(pipeline, **returns(prompt_embeds=torch.zeros(1, 77, 24)))
    with pytest.raises(UsageError, match=r"returned latents \(2, 4, 16, 16\); they are a tensor \(1, 4, 16, 16\)"):
        draw(pipeline, **returns(latents=torch.zeros(2, 4, 16, 16)))
    with pytest.raises(UsageError, match=r"returned prompt_embeds \(3, 77, 24\); .* \(1, 77, 24\) or \(2, 77, 24\)"):
        inputs = ["prompt_embeds"]
        changed = returns(prompt_embeds=torch.zeros(3, 77, 24))
        draw(pipeline, callback_on_step_end_tensor_inputs=inputs, **changed)
    with pytest.raises(UsageError, match="an IP-Adapter replaces the attention processors"):
        draw(pipeline, callback_on_step_end=IPAdapterScaleCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0))


def test_the_progress_bar_is_diffusers(pipeline: RealCustomPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, one count a step, also of a scheduler with two evaluations in one; off as it is in diffusers."""
    draw(pipeline)
    assert capsys.readouterr() == ("", "")
    pipeline.set_progress_bar_config(desc="drawing", ascii=True)
    draw(pipeline)
    captured = capsys.readouterr()
    assert captured.out == "" and "drawing: 100%" in captured.err and "4/4" in captured.err
    pipeline.scheduler = HeunDiscreteScheduler.from_config(pipeline.base.scheduler.config)
    draw(pipeline)
    assert "4/4" in capsys.readouterr().err and pipeline.num_timesteps == 7
    pipeline.set_progress_bar_config(disable=True)
    draw(pipeline)
    assert capsys.readouterr().err == ""
