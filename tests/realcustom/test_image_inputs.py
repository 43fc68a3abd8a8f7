"""Calls that start from a picture: img2img and inpainting, with subjects and, without, equal to the stock pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image

from realcustom import RealCustomPipeline
from realcustom.base_loading import load_base
from realcustom.config import override
from realcustom.errors import UsageError
from realcustom.model import RealCustomModel
from realcustom.settings import VisualContext
from tests.support import tiny
from tests.support.stock_calls import PROMPT, PROMPTS, STEPS, half, photo, quiet, seeded, stock, subject, tensor

Picture = Callable[[int], Image.Image]


@pytest.fixture
def sd(pipeline: RealCustomPipeline) -> RealCustomPipeline:
    """With a VAE that draws from its posterior, as Stable Diffusion's."""
    pipeline.vae = tiny.tiny_vae(kl=True)
    return pipeline


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8, 1.0])
def test_img2img_is_that_of_the_stock_pipeline(sd: RealCustomPipeline, strength: float) -> None:
    ours = tensor(sd, PROMPT, image=photo(), strength=strength)
    assert torch.equal(
        ours, tensor(stock(StableDiffusionImg2ImgPipeline, sd), PROMPT, image=photo(), strength=strength)
    )
    assert ours.shape == (1, 4, 16, 20)


def test_sdxl_img2img_is_that_of_the_stock_pipeline(sdxl: RealCustomPipeline) -> None:
    expected = stock(StableDiffusionXLImg2ImgPipeline, sdxl)
    for strength in (0.5, 1.0):
        ours = tensor(sdxl, PROMPT, image=photo(), strength=strength)
        assert torch.equal(ours, tensor(expected, PROMPT, image=photo(), strength=strength))


@pytest.mark.parametrize(
    "name",
    ["EulerAncestralDiscreteScheduler", "PNDMScheduler", "HeunDiscreteScheduler", "DPMSolverSinglestepScheduler"],
)
def test_schedulers_start_in_the_middle_as_in_the_stock_pipeline(sd: RealCustomPipeline, name: str) -> None:
    """Those that draw, and those with more evaluations than steps; the next plain call has its whole schedule again."""
    sd.scheduler = getattr(diffusers, name).from_config(
        {**sd.diffusers.scheduler.config, "clip_sample": False, "skip_prk_steps": True}
    )
    before = tensor(sd, PROMPT)
    seen: list[int] = []

    def watch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(pipe.num_timesteps)
        return {}

    for arguments in ({"image": photo(), "strength": 0.6}, {"image": photo(), "mask_image": half(), "strength": 0.6}):
        kind = StableDiffusionInpaintPipeline if "mask_image" in arguments else StableDiffusionImg2ImgPipeline
        size = {"height": 32, "width": 40} if "mask_image" in arguments else {}
        ours = tensor(sd, PROMPT, **arguments, **size, callback_on_step_end=watch)
        assert seen == [len(seen)] * len(seen)
        assert torch.equal(ours, tensor(stock(kind, sd), PROMPT, **arguments, **size))
        seen.clear()
    assert torch.equal(tensor(sd, PROMPT), before)


def test_several_prompts_and_pictures(sd: RealCustomPipeline) -> None:
    """One picture for each prompt, several images of each; diffusers mixes up the rows of the latter."""
    pictures = [photo(seed=1), photo(seed=2)]
    expected = stock(StableDiffusionImg2ImgPipeline, sd)
    ours = tensor(sd, PROMPTS, image=pictures, strength=0.5)
    assert torch.equal(ours, tensor(expected, PROMPTS, image=pictures, strength=0.5))
    generators = [seeded(seed) for seed in range(4)]
    together = tensor(sd, PROMPTS, image=pictures, strength=0.5, num_images_per_prompt=2, generator=generators)
    for row in range(4):
        one = {"image": pictures[row // 2], "strength": 0.5, "generator": seeded(row)}
        alone = tensor(expected, PROMPTS[row // 2], **one)
        assert torch.allclose(together[row], alone[0], atol=1e-4)


def test_kinds_of_pictures(sd: RealCustomPipeline) -> None:
    """PIL of any mode, arrays and tensors; a picture is as large as it is, or as height and width say."""
    image = photo()
    array = np.asarray(image)
    expected = tensor(sd, PROMPT, image=image)
    floats = array.astype(np.float32) / 255
    for same in (array, [array], array[None], floats, torch.from_numpy(floats).permute(2, 0, 1), [image]):
        assert torch.allclose(tensor(sd, PROMPT, image=same), expected, atol=1e-5)
    transparent = image.copy()
    transparent.putalpha(128)
    assert torch.equal(tensor(sd, PROMPT, image=transparent), expected)  # diffusers takes 4 channels for latents
    assert tensor(sd, PROMPT, image=photo(43, 33)).shape == (1, 4, 16, 21)
    assert tensor(sd, PROMPT, image=photo(43, 33), height=20, width=24).shape == (1, 4, 10, 12)


def test_a_picture_is_turned_upright(sd: RealCustomPipeline, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo().rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert torch.equal(tensor(sd, PROMPT, image=turned), tensor(sd, PROMPT, image=photo()))


def test_a_subject_acts_in_the_redrawn_picture(sd: RealCustomPipeline, picture: Picture) -> None:
    """Its masks are those of the steps that are run; under a mask of zeros the picture is the one without it."""
    arguments: dict[str, Any] = {"image": photo(), "strength": 0.5}
    calls: list[int] = []
    sd.unet.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    plain = tensor(sd, PROMPT, **arguments)
    assert calls == [2, 2]
    calls.clear()
    with_it = tensor(sd, PROMPT, subject(picture), **arguments)
    assert calls == [1, 2, 1, 2] and (with_it - plain).abs().max() > 1e-3
    output = sd(PROMPT, subject(picture), **{**STEPS, **arguments}, generator=seeded(), return_masks=True)
    assert output.masks is not None and len(output.masks) == 2
    assert torch.allclose(tensor(sd, PROMPT, subject(picture, scope=0.0), **arguments), plain, atol=1e-4)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_is_that_of_the_stock_pipeline(sd: RealCustomPipeline, strength: float) -> None:
    arguments: dict[str, Any] = {
        "image": photo(),
        "mask_image": half(),
        "strength": strength,
        "height": 32,
        "width": 40,
    }
    ours = tensor(sd, PROMPT, **arguments)
    assert torch.equal(ours, tensor(stock(StableDiffusionInpaintPipeline, sd), PROMPT, **arguments))
    other = tensor(sd, PROMPTS[1], **arguments)  # outside the mask there is the picture, whatever the prompt
    assert torch.equal(ours[..., 10:], other[..., 10:]) and not torch.equal(ours[..., :10], other[..., :10])


def test_sdxl_inpainting_is_that_of_the_stock_pipeline(sdxl: RealCustomPipeline) -> None:
    expected = stock(StableDiffusionXLInpaintPipeline, sdxl)
    for strength in ({"strength": 0.5}, {}):
        arguments = {"image": photo(), "mask_image": half(), "height": 32, "width": 40, **strength}
        assert torch.equal(tensor(sdxl, PROMPT, **arguments), tensor(expected, PROMPT, **arguments))


def test_defaults_are_those_of_the_stock_pipelines(sd: RealCustomPipeline, sdxl: RealCustomPipeline) -> None:
    """Strength and size."""
    steps = {"num_inference_steps": 10}
    mask = {"mask_image": half()}
    for pipe, kind, arguments in (
        (sd, StableDiffusionImg2ImgPipeline, {}),
        (sd, StableDiffusionInpaintPipeline, mask),
        (sdxl, StableDiffusionXLImg2ImgPipeline, {}),
        (sdxl, StableDiffusionXLInpaintPipeline, mask),
    ):
        ours = tensor(pipe, PROMPT, image=photo(), **steps, **arguments)
        assert torch.equal(ours, tensor(stock(kind, pipe), PROMPT, image=photo(), **steps, **arguments))


def test_a_subject_acts_in_the_mask_alone(sd: RealCustomPipeline, picture: Picture) -> None:
    arguments: dict[str, Any] = {"image": photo(), "mask_image": half(), "height": 32, "width": 40}
    plain, with_it = tensor(sd, PROMPT, **arguments), tensor(sd, PROMPT, subject(picture), **arguments)
    assert torch.equal(with_it[..., 10:], plain[..., 10:])
    assert (with_it[..., :10] - plain[..., :10]).abs().max() > 1e-3
    assert torch.allclose(tensor(sd, PROMPT, subject(picture, scope=0.0), **arguments), plain, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(sd: RealCustomPipeline, picture: Picture, dtype: torch.dtype) -> None:
    """As the stock pipelines in it, to the bit, and with a subject."""
    sd.vae.register_to_config(force_upcast=False)  # which diffusers does not read in SD 1.x
    sd.to(dtype)
    for part in (sd.unet, sd.vae, sd.text_encoder):  # torch has other float16 kernels for weights that train
        part.requires_grad_(False)
    redrawn: dict[str, Any] = {"image": photo(), "strength": 0.5}
    painted: dict[str, Any] = {**redrawn, "mask_image": half(), "height": 32, "width": 40}
    for kind, arguments in ((StableDiffusionImg2ImgPipeline, redrawn), (StableDiffusionInpaintPipeline, painted)):
        ours = tensor(sd, PROMPT, **arguments)
        assert ours.dtype is dtype and torch.equal(ours, tensor(stock(kind, sd), PROMPT, **arguments))
        with_it = tensor(sd, PROMPT, subject(picture), **arguments)
        assert torch.isfinite(with_it.float()).all() and not torch.equal(with_it, ours)


def inpainting_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    config = {**tiny.tiny_unet().config, "in_channels": 9}
    return UNet2DConditionModel.from_config(config).eval()


@pytest.fixture(scope="module")
def inpainting_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As an inpainting model is saved: its index names diffusers' inpainting pipeline."""
    folder = tmp_path_factory.mktemp("inpainting") / "base"
    parts = {**tiny.tiny_pipeline(kl=True).components, "unet": inpainting_unet()}
    StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_an_inpainting_model_reads_the_mask(inpainting_folder: str, strength: float) -> None:
    ours = quiet(RealCustomPipeline.from_pretrained(inpainting_folder))
    expected = quiet(StableDiffusionInpaintPipeline.from_pretrained(inpainting_folder, safety_checker=None))
    arguments: dict[str, Any] = {"image": [photo(seed=1), photo(seed=2)], "mask_image": half(), "strength": strength}
    found = tensor(ours, PROMPTS, **arguments)
    assert torch.equal(found, tensor(expected, PROMPTS, **arguments))
    assert not torch.equal(found, tensor(ours, PROMPTS, **{**arguments, "mask_image": half().rotate(180)}))


@pytest.mark.parametrize("context", list(VisualContext))
def test_an_adapter_on_an_inpainting_model(
    inpainting_folder: str, tiny_models: tiny.TinyModels, picture: Picture, context: VisualContext
) -> None:
    """Its subjects act, whichever of the UNet's inputs the scores are made of."""
    pipe = quiet(RealCustomPipeline.from_pretrained(tiny_models.base, tiny_models.adapter, tiny_models.image_encoder))
    base = load_base(inpainting_folder, inpainting=True)
    settings = override(pipe.settings, {"tokens": {"visual_context": context.value}})
    generator = torch.Generator().manual_seed(1)
    model = RealCustomModel(base.unet, settings, pipe.image_encoder.embed_dim, generator)
    ours = quiet(RealCustomPipeline(base, settings, model, pipe.image_encoder))
    arguments: dict[str, Any] = {"image": photo(), "mask_image": half()}
    plain = tensor(ours, PROMPT, **arguments)
    assert (tensor(ours, PROMPT, subject(picture), **arguments) - plain).abs().max() > 1e-3
    assert torch.allclose(tensor(ours, PROMPT, subject(picture, scope=0.0), **arguments), plain, atol=1e-4)


def test_training_and_preprocessing_take_no_inpainting_model(inpainting_folder: str) -> None:
    with pytest.raises(UsageError, match="the UNet takes 9 channels, the VAE has 4"):
        load_base(inpainting_folder)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"strength": 0.5}, "strength says how image is redrawn: give image"),
        ({"mask_image": half()}, "mask_image says how image is redrawn: give image"),
        ({"image": photo(), "strength": 1.5}, "strength is the part of the steps that are run, 0 to 1, got 1.5"),
        ({"image": photo(), "strength": "much"}, "strength is the part of the steps that are run, 0 to 1, got 'much'"),
        (
            {"image": photo(), "strength": 0.0},
            r"strength 0.0 of 4 steps runs none: give more steps, or .* at least 0.25",
        ),
        ({"image": [photo()] * 3}, "image has 3 pictures for 1 prompts; give one, or one for each"),
        ({"image": photo(), "mask_image": [half()] * 2}, "mask_image has 2 pictures for 1 prompts"),
        ({"image": "photo.png"}, "image is a picture .* got a str"),
        ({"image": np.zeros((32, 32, 4, 1, 1))}, "image has shape"),
        ({"image": np.full((32, 32, 3), 7.0)}, "image has type float64 and values from 7 to 7: floats are 0 to 1"),
        (
            {"image": torch.randn(1, 4, 16, 20, generator=seeded())},
            "image has type float32 .* floats are 0 to 1",
        ),  # latents
        ({"image": []}, "image has no picture"),
        ({"image": photo(1, 1)}, "height must be a positive multiple of 2 pixels, got 0"),
        ({"image": photo(), "height": 33}, "height must be a positive multiple of 2 pixels, got 33"),
        ({"image": photo(), "latents": torch.zeros(1, 4, 16, 16)}, r"latents must have shape \(1, 4, 16, 20\)"),
    ],
)
def test_pictures_that_cannot_be_used(sd: RealCustomPipeline, arguments: dict[str, Any], said: str) -> None:
    """One sentence each, before any forward."""
    sd.unet.register_forward_pre_hook(lambda *_: pytest.fail("the UNet was called"))
    with pytest.raises(UsageError, match=said):
        sd(PROMPT, num_inference_steps=4, **arguments)


def test_an_inpainting_model_needs_a_picture_and_a_mask(inpainting_folder: str) -> None:
    ours = quiet(RealCustomPipeline.from_pretrained(inpainting_folder))
    for arguments in ({}, {"image": photo()}):
        with pytest.raises(UsageError, match="is an inpainting model: give image and mask_image"):
            ours(PROMPT, **arguments)


def test_given_latents_are_the_noise(sd: RealCustomPipeline) -> None:
    noise = torch.randn(1, 4, 16, 20, generator=seeded(5))
    one = tensor(sd, PROMPT, image=photo(), latents=noise)
    assert not torch.equal(one, tensor(sd, PROMPT, image=photo(), latents=-noise))
    assert isinstance(sd.diffusers, StableDiffusionPipeline)


def test_a_mask_of_zeros_and_ones(sd: RealCustomPipeline) -> None:
    """As a segmenter gives it: its ones are white, also where their type has 8 bits."""
    marked = np.array(half()) // 255
    expected = tensor(sd, PROMPT, image=photo(), mask_image=half())
    for given in (marked, marked.astype(np.int64), torch.from_numpy(marked)[None], Image.fromarray(marked)):
        assert torch.equal(tensor(sd, PROMPT, image=photo(), mask_image=given), expected)
