"""Whole calls against the stock Stable Diffusion pipeline of the same weights, counted and compared to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from PIL import Image
from torch import Tensor

from realcustom import RealCustomPipeline, Subject
from realcustom.maps import text_cross_attentions
from realcustom.settings import GuidanceMode, Launches
from realcustom.words import TargetWordNotFound
from tests.support.tiny import TinyModels

PROMPT = "a dog on grass"
STEPS = 4
Picture = Callable[[int], Image.Image]


@pytest.fixture
def stock(tiny_models: TinyModels) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny_models.base, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def separate(pipeline: RealCustomPipeline) -> RealCustomPipeline:
    """Each branch launched alone: the mode in which statements to the bit hold."""
    guidance = dataclasses.replace(pipeline.settings.guidance, launches=Launches.SEPARATE)
    pipeline.settings = dataclasses.replace(pipeline.settings, guidance=guidance)
    return pipeline


def call(
    pipeline: RealCustomPipeline, subjects: Any = (), prompt: Any = PROMPT, seed: int = 3, **arguments: Any
) -> Any:
    arguments = {"num_inference_steps": STEPS, "output_type": "latent", "return_masks": True, **arguments}
    count = 1 if isinstance(prompt, str) else len(prompt)
    generators = [torch.Generator().manual_seed(seed + row) for row in range(count)]
    return pipeline(prompt, subjects, generator=generators, **arguments)


@contextmanager
def counted(pipeline: RealCustomPipeline) -> Iterator[dict[str, int]]:
    """Launches of the UNet and forwards (rows) in them, and launches that record maps."""
    counts = {"launches": 0, "forwards": 0, "recorded": 0}

    def count(module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        counts["launches"] += 1
        counts["forwards"] += len(positional[0])
        counts["recorded"] += named["cross_attention_kwargs"]["conditioning"].recorders != []

    handle = pipeline.base.unet.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


def test_plain_text_to_image_is_the_stock_pipeline(separate: RealCustomPipeline, stock: Any, picture: Picture) -> None:
    """inv. 24: no subject, or w_i = 0, is the stock trajectory; bitwise at the stock's batch shapes."""
    plain = call(separate, guidance_scale=5.0).images
    expected, latents = _stock_trajectory(stock, 5.0)
    assert torch.equal(plain, latents)
    without = call(separate, [Subject(image=picture(0), word="dog")], guidance_scale=5.0, subject_guidance_scale=0.0)
    assert torch.equal(without.images, plain) and without.masks is not None
    nowhere = [Subject(image=picture(0), word="dog", scope=0.0)]  # M = 0 with any w_i
    assert torch.equal(call(separate, nowhere, guidance_scale=5.0, subject_guidance_scale=9.0).images, plain)
    # the stock pipeline itself runs its two branches as one batch: other kernels, the last bits differ
    assert (plain - expected).abs().max() <= 1e-4


def _stock_trajectory(stock: Any, scale: float) -> tuple[Tensor, Tensor]:
    """The stock pipeline's latents, and those of its untouched UNet with each branch run alone."""
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = stock(
            PROMPT, latents=noise.clone(), guidance_scale=scale, num_inference_steps=STEPS, output_type="latent"
        ).images
        positive, negative = stock.encode_prompt(PROMPT, "cpu", 1, True)
        stock.scheduler.set_timesteps(STEPS)
        latents = noise
        for timestep in stock.scheduler.timesteps:
            null = stock.unet(latents, timestep, negative).sample
            text = stock.unet(latents, timestep, positive).sample
            latents = stock.scheduler.step(null + scale * (text - null), timestep, latents).prev_sample
    return whole, latents


def test_the_guidance_branch_is_the_stock_model_at_every_step(
    separate: RealCustomPipeline, stock: Any, picture: Picture
) -> None:
    """inv. 25: at any step the guidance branch is the stock model's conditional output, bitwise; the images differ."""
    seen: list[tuple[Tensor, Any, Tensor]] = []

    def keep(module: Any, positional: Any, named: dict[str, Any], output: Any) -> None:
        conditioning = named["cross_attention_kwargs"]["conditioning"]
        if conditioning.recorders:
            seen.append((positional[0].clone(), positional[1], output[0].clone()))

    handle = separate.base.unet.register_forward_hook(keep, with_kwargs=True)
    customised = call(separate, [Subject(image=picture(0), word="dog")]).images
    handle.remove()
    with torch.no_grad():
        positive, _ = stock.encode_prompt(PROMPT, "cpu", 1, False)
        for latents, timestep, output in seen:
            assert torch.equal(stock.unet(latents, timestep, positive).sample, output)
    assert len(seen) == STEPS
    assert not torch.allclose(customised, call(separate).images, atol=1e-3)


def test_the_first_mask_knows_nothing_of_the_subject(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """inv. 26: independent of reference, w_i, gamma_num and adapter weights; later masks are not."""
    base = call(pipeline, [Subject(image=picture(0), word="dog")]).masks
    others = [
        call(pipeline, [Subject(image=picture(1), word="dog")]).masks,
        call(pipeline, [Subject(image=picture(0), word="dog")], subject_guidance_scale=2.0).masks,
        call(pipeline, [Subject(image=picture(0), word="dog")], influence_quantity=0.3).masks,
    ]
    assert pipeline.model is not None
    for value in pipeline.model.trained_parameters().values():
        with torch.no_grad():
            value.mul_(1.5)
    others.append(call(pipeline, [Subject(image=picture(0), word="dog")]).masks)
    for masks in others:
        assert torch.equal(masks[0][0], base[0][0])
        assert any(not torch.equal(mine[0], theirs[0]) for mine, theirs in zip(masks[1:], base[1:], strict=True))
    assert len(base) == STEPS and base[0][0].shape == (1, 1, 16, 16)
    assert all(mask.max() == 1 and mask.count_nonzero() == 64 for (mask,) in base)


def test_no_state_stays_behind(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """inv. 36: the same call twice, and plain text-to-image after a customised one, are the same to the bit."""
    plain = call(pipeline).images
    first = call(pipeline, [Subject(image=picture(0), word="dog")])
    second = call(pipeline, [Subject(image=picture(0), word="dog")])
    assert torch.equal(first.images, second.images)
    assert all(torch.equal(*pair) for pair in zip(first.masks[-1], second.masks[-1], strict=True))
    assert torch.equal(call(pipeline).images, plain)


def test_a_batch_is_its_rows(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """inv. 7: different words, numbers of subjects and tokens in a row; on replayed masks' terms, few steps."""
    prompts = ["a dog on grass", "a cat in the snow", "a toy with a hat"]
    subjects = [
        [Subject(image=picture(0), word="dog")],
        [Subject(image=picture(1), word="cat"), Subject(image=picture(2), word="snow")],
        [],
    ]
    # two steps: a row's last bits depend on the batch's kernels, and each step multiplies them by the weights
    arguments: dict[str, Any] = {"guidance_scale": 2.0, "subject_guidance_scale": 3.0, "num_inference_steps": 2}
    together = call(pipeline, subjects, prompts, **arguments)
    for row, (prompt, own) in enumerate(zip(prompts, subjects, strict=True)):
        alone = call(pipeline, own, prompt, seed=3 + row, **arguments)
        assert (together.images[row] - alone.images[0]).abs().max() <= 1e-5, prompt
        for step, mine in enumerate(together.masks):
            for number, of_subject in enumerate(mine):
                if number < len(own):
                    assert torch.allclose(of_subject[row], alone.masks[step][number][0], atol=1e-5)
                else:
                    assert (of_subject[row] == 0).all()


@pytest.mark.filterwarnings("ignore:.*ignores the prompt")  # weights of 0 are counted too
@pytest.mark.parametrize(
    ("mode", "scales", "reuse", "forwards", "recorded"),
    [
        (GuidanceMode.CASCADE, (7.5, 12.5), None, 3 * STEPS, STEPS),
        (GuidanceMode.CASCADE, (7.5, 12.5), 2, 3 * STEPS, 2),
        (GuidanceMode.DIRECT, (7.5, 3.5), None, 3 * STEPS, STEPS),
        (GuidanceMode.DIRECT, (7.5, 3.5), 2, 3 * 2 + 2 * (STEPS - 2), 2),
        (GuidanceMode.DIRECT, (7.5, 3.5), 0, 3 + 2 * (STEPS - 1), 1),  # 0 means the first step only
        (GuidanceMode.CASCADE, (5.0, 5.0), 1, 3 + 2 * (STEPS - 1), 1),
        (GuidanceMode.CASCADE, (1.0, 5.0), None, 2 * STEPS, STEPS),
        (GuidanceMode.CASCADE, (7.5, 0.0), None, 2 * STEPS, 0),
        (GuidanceMode.CASCADE, (1.0, 1.0), 1, 1 + STEPS, 1),  # the subject's branch alone, and its maps
        (GuidanceMode.CASCADE, (1.0, 0.0), None, STEPS, 0),
        (GuidanceMode.CASCADE, (0.0, 0.0), None, STEPS, 0),
        (GuidanceMode.DIRECT, (7.5, 1.0), 1, 1 + STEPS, 1),
        (GuidanceMode.DIRECT, (7.5, 0.0), None, STEPS, 0),
    ],
)
def test_forwards_are_counted(
    pipeline: RealCustomPipeline,
    picture: Picture,
    mode: GuidanceMode,
    scales: tuple[float, float],
    reuse: int | None,
    forwards: int,
    recorded: int,
) -> None:
    """inv. 29, inv. 37: exactly the forwards and launches of the method's section 7."""
    text, subject = scales
    guidance = dataclasses.replace(
        pipeline.settings.guidance, mode=mode, guidance_scale=text, subject_guidance_scale=subject
    )
    pipeline.settings = dataclasses.replace(pipeline.settings, guidance=guidance)
    with counted(pipeline) as counts:
        out = call(pipeline, [Subject(image=picture(0), word="dog")], mask_reuse_after=reuse, return_masks=False)
    assert out.masks is None
    live = recorded
    assert (counts["forwards"], counts["recorded"]) == (forwards, recorded)
    assert counts["launches"] == STEPS + live  # two while the mask is live, one after
    if reuse is not None:
        masks = call(pipeline, [Subject(image=picture(0), word="dog")], mask_reuse_after=reuse).masks
        assert all(mask is masks[max(1, reuse) - 1] for mask in masks[max(1, reuse) :])


def test_schedulers_of_diffusers_keep_working(pipeline: RealCustomPipeline, picture: Picture) -> None:
    subject = [Subject(image=picture(0), word="dog")]
    ddim = call(pipeline, subject).images
    for kind in (DPMSolverMultistepScheduler, EulerDiscreteScheduler):
        pipeline.scheduler = kind.from_config(pipeline.base.scheduler.config, clip_sample=False)
        latents = call(pipeline, subject).images
        assert torch.isfinite(latents).all() and not torch.equal(latents, ddim)
    with pytest.raises(ValueError, match="flow-matching"):
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler()


def test_outputs_and_callback(pipeline: RealCustomPipeline, picture: Picture) -> None:
    seen = []

    def watch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, tensors["latents"].shape, tensors["masks"][0].shape))
        return {}

    arguments: dict[str, Any] = {"num_images_per_prompt": 2, "num_inference_steps": 2, "callback_on_step_end": watch}
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    out = pipeline(PROMPT, [Subject(image=picture(0), word="dog")], generator=generators, **arguments)
    assert seen == [(0, (2, 4, 16, 16), (2, 1, 16, 16)), (1, (2, 4, 16, 16), (2, 1, 16, 16))]
    assert [image.size for image in out.images] == [(32, 32)] * 2 and out.words == [["dog"]] * 2
    array = pipeline(PROMPT, output_type="np", num_inference_steps=1).images
    assert isinstance(array, np.ndarray) and array.shape == (1, 32, 32, 3)
    wide = pipeline(PROMPT, output_type="pt", num_inference_steps=1, height=34, width=26).images
    assert isinstance(wide, Tensor) and wide.shape == (1, 3, 34, 26)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 33}, "multiple of 2 pixels, got 33"),
        ({"num_inference_steps": 0}, "at least 1, got 0"),
        ({"output_type": "jpeg"}, "'jpeg'"),
        ({"influence_scope": 1.5}, "0 to 1, got 1.5"),
        ({"influence_quantity": -0.1}, "0 to 1, got -0.1"),
        ({"mask_reuse_after": -1}, "mask_reuse_after must be at least 0, got -1"),
        ({"num_images_per_prompt": 0}, "at least 1, got 0"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, r"shape \(1, 4, 16, 16\)"),
        ({"generator": [torch.Generator(), torch.Generator()]}, "2 generators for 1 images"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
    ],
)
def test_arguments_that_cannot_be_used(pipeline: RealCustomPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(PROMPT, **{"num_inference_steps": 1, **arguments})


def test_a_word_that_is_not_there_costs_no_forward(pipeline: RealCustomPipeline, picture: Picture) -> None:
    with counted(pipeline) as counts, pytest.raises(TargetWordNotFound, match="a, dog, on, grass"):
        call(pipeline, [Subject(image=picture(0), word="horse")])
    assert counts["launches"] == 0


def test_subjects_need_an_adapter(tiny_models: TinyModels, picture: Picture) -> None:
    plain = RealCustomPipeline.from_pretrained(tiny_models.base)
    assert torch.isfinite(call(plain).images).all()
    with pytest.raises(ValueError, match="adapter"):
        call(plain, [Subject(image=picture(0), word="dog")])


@pytest.mark.parametrize("scoring", [True, False])
def test_keys_and_values_are_made_once(pipeline: RealCustomPipeline, picture: Picture, scoring: bool) -> None:
    """A subject's: once a call, for all launches and however many steps select from them.

    The text's, of all branches, in each launch as in stock diffusers: kept they would cost memory for little time.
    """
    tokens = dataclasses.replace(pipeline.settings.tokens, scoring=scoring)
    pipeline.settings = dataclasses.replace(pipeline.settings, tokens=tokens)
    assert pipeline.model is not None
    if not scoring:
        pipeline.model.adaptive_scoring = None
    calls: dict[str, int] = {}

    def count(name: str) -> Any:
        return lambda *_: calls.update({name: calls.get(name, 0) + 1})

    layers = text_cross_attentions(pipeline.base.unet)
    for attn in layers.values():
        for name in ("to_k", "to_v", "to_k_vision", "to_v_vision"):
            getattr(attn, name).register_forward_hook(count(name))
    encode, encoded = pipeline.image_encoder.encode, []  # type: ignore[union-attr]
    pipeline.image_encoder.encode = lambda pixels: (encoded.append(len(pixels)), encode(pixels))[1]  # type: ignore
    for _ in range(2):
        calls.clear()
        call(pipeline, [Subject(image=picture(0), word="dog")])
        text, visual = 2 * STEPS * len(layers), len(layers)  # two launches a step
        assert calls == {"to_k": text, "to_v": text, "to_k_vision": visual, "to_v_vision": visual}
    assert encoded == [1]  # also over calls
