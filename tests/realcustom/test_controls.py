"""ControlNets and T2I-adapters guide a call, with subjects and, without, as in the stock pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    MultiAdapter,
    MultiControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor

from realcustom import RealCustomPipeline
from realcustom.config import override
from realcustom.errors import UsageError
from tests.support import tiny
from tests.support.stock_calls import PROMPT, PROMPTS, half, photo, quiet, seeded, stock, subject, tensor

Picture = Callable[[int], Image.Image]


def net_of(unet: UNet2DConditionModel, seed: int = 0, channels: tuple[int, ...] = (8, 16)) -> ControlNetModel:
    """A ControlNet for this UNet that acts, as a trained one does: the last layers of a new one are zeros."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels, load_weights_from_unet=False)
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return net.eval()


def adapter(seed: int = 0, channels: int = 3) -> T2IAdapter:
    torch.manual_seed(seed)
    return T2IAdapter(in_channels=channels, channels=[32, 64], num_res_blocks=1, downscale_factor=2).eval()


def rows_of(model: torch.nn.Module) -> list[int]:
    """The number of rows of each call of this model from now on."""
    calls: list[int] = []

    def note(_: Any, inputs: Any, named: Any) -> None:
        calls.append(len(inputs[0] if inputs else named["sample"]))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return calls


@pytest.fixture
def sd(pipeline: RealCustomPipeline) -> RealCustomPipeline:
    pipeline.vae = tiny.tiny_vae(kl=True)
    return pipeline


@pytest.fixture
def sdxl() -> RealCustomPipeline:
    pipe: RealCustomPipeline = quiet(RealCustomPipeline.from_pretrained(tiny.tiny_sdxl_pipeline()))
    return pipe


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"controlnet_conditioning_scale": 0.5},
        {"control_guidance_start": 0.25, "control_guidance_end": 0.8},
        {"guess_mode": True},
        {"guidance_scale": 1.0},
        {"guess_mode": True, "guidance_scale": 1.0},
    ],
)
def test_a_controlnet_is_that_of_the_stock_pipeline(sd: RealCustomPipeline, arguments: dict[str, Any]) -> None:
    sd.controlnet = net_of(sd.unet)
    expected = tensor(
        stock(StableDiffusionControlNetPipeline, sd, controlnet=sd.controlnet), PROMPT, photo(), **arguments
    )
    found = tensor(sd, PROMPT, control_image=photo(), **arguments)
    assert torch.equal(found, expected)
    assert (found - tensor(sd, PROMPT, height=32, width=40, **arguments)).abs().max() > 1e-2


def test_a_controlnet_that_counts_without_places(sd: RealCustomPipeline) -> None:
    """Its residuals are means; diffusers then guesses in any case."""
    sd.controlnet = net = net_of(sd.unet)
    net.register_to_config(global_pool_conditions=True)
    expected = stock(StableDiffusionControlNetPipeline, sd, controlnet=sd.controlnet)
    assert torch.equal(tensor(sd, PROMPT, control_image=photo()), tensor(expected, PROMPT, photo()))


def test_sdxl_controlnet_is_that_of_the_stock_pipeline(sdxl: RealCustomPipeline) -> None:
    sdxl.controlnet = net_of(sdxl.unet)
    expected = stock(StableDiffusionXLControlNetPipeline, sdxl, controlnet=sdxl.controlnet)
    for arguments in ({}, {"guess_mode": True}):
        found = tensor(sdxl, PROMPT, control_image=photo(), controlnet_conditioning_scale=0.7, **arguments)
        shown = tensor(expected, PROMPT, image=photo(), controlnet_conditioning_scale=0.7, **arguments)
        assert torch.equal(found, shown)


@pytest.mark.parametrize("wrap", [list, MultiControlNetModel])
def test_several_controlnets_and_prompts(sd: RealCustomPipeline, wrap: Callable[[Any], Any]) -> None:
    """Each with its picture, weight and part of the steps; then for each prompt a picture for each."""
    nets, pictures = [net_of(sd.unet, 0), net_of(sd.unet, 1)], [photo(seed=1), photo(seed=2)]
    sd.controlnet = wrap(nets)
    expected = stock(StableDiffusionControlNetPipeline, sd, controlnet=MultiControlNetModel(nets))
    calls = [rows_of(net) for net in nets]
    arguments: dict[str, Any] = {
        "controlnet_conditioning_scale": [0.5, 1.5],
        "control_guidance_start": [0.0, 0.5],
        "control_guidance_end": [0.5, 1.0],
    }
    found = tensor(sd, PROMPT, control_image=pictures, **arguments)
    assert calls == [[2, 2], [2, 2]]  # none where it does not act; diffusers multiplies by zero
    assert torch.equal(found, tensor(expected, PROMPT, pictures, **arguments))
    nested = [pictures, [photo(seed=3), photo(seed=4)]]
    found = tensor(sd, PROMPTS, control_image=nested)
    assert torch.equal(found, tensor(expected, PROMPTS, nested, controlnet_conditioning_scale=[1.0, 1.0]))


def test_several_images_of_several_prompts(sd: RealCustomPipeline) -> None:
    sd.controlnet, pictures = net_of(sd.unet), [photo(seed=1), photo(seed=2)]
    expected = stock(StableDiffusionControlNetPipeline, sd, controlnet=sd.controlnet)
    arguments: dict[str, Any] = {"num_images_per_prompt": 2}
    found = tensor(sd, PROMPTS, control_image=pictures, **arguments)
    assert torch.equal(found, tensor(expected, PROMPTS, pictures, **arguments))


@pytest.mark.parametrize("launches", ["batched", "separate"])
@pytest.mark.parametrize("guess", [False, True])
def test_a_subject_in_a_picture_that_a_controlnet_guides(
    sd: RealCustomPipeline, picture: Picture, launches: str, guess: bool
) -> None:
    """The ControlNet runs once for each text and step, whatever branches have it; a scope of 0 is the stock pipeline."""
    sd.settings = override(sd.settings, {"guidance": {"launches": launches}})
    sd.controlnet = net = net_of(sd.unet)
    arguments: dict[str, Any] = {"control_image": photo(), "guess_mode": guess, "num_inference_steps": 2}
    plain = tensor(sd, PROMPT, **arguments)
    controls, unet = rows_of(net), rows_of(sd.unet)
    with_it = tensor(sd, PROMPT, subject(picture), **arguments)
    assert controls == ([1, 1] if guess else [1, 1, 1, 1])
    assert unet == ([1, 1, 1] * 2 if launches == "separate" else [1, 2] * 2)
    assert (with_it - plain).abs().max() > 1e-3
    assert torch.allclose(tensor(sd, PROMPT, subject(picture, scope=0.0), **arguments), plain, atol=1e-4)
    unguided = tensor(sd, PROMPT, subject(picture), height=32, width=40, num_inference_steps=2)
    assert (with_it - unguided).abs().max() > 1e-2


def test_each_row_has_its_own_controls_and_subjects(sd: RealCustomPipeline, picture: Picture) -> None:
    sd.controlnet, sd.t2i_adapter = net_of(sd.unet), adapter()
    latents = torch.randn(2, 4, 16, 20, generator=seeded())
    pictures, subjects = [photo(seed=1), photo(seed=2)], [subject(picture), []]
    arguments: dict[str, Any] = {"num_inference_steps": 2}
    together = tensor(
        sd, PROMPTS, subjects, control_image=pictures, adapter_image=pictures, latents=latents, **arguments
    )
    for row, shown in enumerate(pictures):
        one = {"control_image": shown, "adapter_image": shown, "latents": latents[row : row + 1], **arguments}
        alone = tensor(sd, PROMPTS[row], subjects[row], **one)
        assert torch.allclose(together[row], alone[0], atol=1e-4)


def test_the_mask_is_of_the_guided_picture(sd: RealCustomPipeline, picture: Picture) -> None:
    """The maps are those of the branch that the ControlNet guides."""
    sd.controlnet = net_of(sd.unet)
    arguments: dict[str, Any] = {"num_inference_steps": 1, "return_masks": True, "height": 32, "width": 40}
    controlled: list[dict[str, Any]] = [{}, {"control_image": photo()}]
    found = [sd(PROMPT, subject(picture), generator=seeded(), **arguments, **guided).masks for guided in controlled]
    assert found[0] is not None and found[1] is not None
    assert not torch.equal(found[0][0][0], found[1][0][0])


def test_a_controlnet_guides_a_picture_that_is_redrawn(sd: RealCustomPipeline, picture: Picture) -> None:
    """With img2img and with inpainting, as in diffusers' pipelines for both."""
    sd.controlnet = net_of(sd.unet)
    shown = {"control_image": photo(seed=1), "image": photo(), "strength": 0.5, "controlnet_conditioning_scale": 0.8}
    for kind, arguments in (
        (StableDiffusionControlNetImg2ImgPipeline, shown),
        (StableDiffusionControlNetInpaintPipeline, {**shown, "mask_image": half(), "height": 32, "width": 40}),
    ):
        found = tensor(sd, PROMPT, **arguments)
        assert torch.equal(found, tensor(stock(kind, sd, controlnet=sd.controlnet), PROMPT, **arguments))
        assert (tensor(sd, PROMPT, subject(picture), **arguments) - found).abs().max() > 1e-3


@pytest.mark.parametrize("channels", [3, 1])
def test_a_t2i_adapter_is_that_of_the_stock_pipeline(sd: RealCustomPipeline, picture: Picture, channels: int) -> None:
    """It runs once a call; a scope of 0 is the stock pipeline, a subject is not."""
    sd.t2i_adapter = model = adapter(channels=channels)
    shown = photo() if channels == 3 else photo().convert("L")
    expected = stock(StableDiffusionAdapterPipeline, sd, adapter=model)
    plain = tensor(expected, PROMPT, shown, adapter_conditioning_scale=0.8)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    arguments: dict[str, Any] = {"adapter_image": shown, "adapter_conditioning_scale": 0.8}
    found = tensor(sd, PROMPT, **arguments)
    # a grey picture has another memory layout in diffusers, and with it other last bits
    assert (found - plain).abs().max() <= (0 if channels == 3 else 1e-4) and calls == [1]
    assert (tensor(sd, PROMPT, subject(picture), **arguments) - plain).abs().max() > 1e-3
    assert torch.allclose(tensor(sd, PROMPT, subject(picture, scope=0.0), **arguments), plain, atol=1e-4)
    assert (tensor(sd, PROMPT, height=32, width=40) - plain).abs().max() > 1e-2


def test_several_t2i_adapters(sd: RealCustomPipeline) -> None:
    adapters, pictures = [adapter(0), adapter(1)], [photo(seed=1), photo(seed=2)]
    expected = stock(StableDiffusionAdapterPipeline, sd, adapter=MultiAdapter(adapters))
    arguments: dict[str, Any] = {"adapter_conditioning_scale": [0.5, 1.5]}
    shown = tensor(expected, PROMPT, pictures, **arguments)
    for given in (adapters, MultiAdapter(adapters)):
        sd.t2i_adapter = given
        assert torch.equal(tensor(sd, PROMPT, adapter_image=pictures, **arguments), shown)


def test_sdxl_t2i_adapter_is_that_of_the_stock_pipeline(sdxl: RealCustomPipeline) -> None:
    torch.manual_seed(0)
    sdxl.t2i_adapter = T2IAdapter(
        channels=[32, 32, 64], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter_xl"
    ).eval()
    expected = stock(StableDiffusionXLAdapterPipeline, sdxl, adapter=sdxl.t2i_adapter)
    assert torch.equal(tensor(sdxl, PROMPT, adapter_image=photo()), tensor(expected, PROMPT, image=photo()))
    with pytest.raises(UsageError, match="multiples of 4 pixels, got 32 x 42"):
        tensor(sdxl, PROMPT, adapter_image=photo(), width=42)


def test_models_are_given_while_loading_and_follow_the_base(tiny_models: tiny.TinyModels, picture: Picture) -> None:
    net = net_of(tiny.tiny_unet())
    pipe = quiet(
        RealCustomPipeline.from_pretrained(
            tiny_models.base, tiny_models.adapter, tiny_models.image_encoder, controlnet=net, t2i_adapter=adapter()
        )
    )
    shown = {"control_image": photo(), "adapter_image": photo()}
    assert pipe.controlnet is net and torch.isfinite(tensor(pipe, PROMPT, **shown)).all()
    drawn = tensor(pipe.to(torch.bfloat16), PROMPT, subject(picture), **shown)
    assert drawn.dtype is torch.bfloat16 and torch.isfinite(drawn.float()).all() and net.dtype is torch.bfloat16
    pipe.controlnet = None
    with pytest.raises(UsageError, match="no ControlNetModel is loaded"):
        tensor(pipe, PROMPT, control_image=photo())


def test_models_stay_where_the_base_runs_with_offload(sd: RealCustomPipeline, picture: Picture) -> None:
    sd.controlnet, sd.t2i_adapter = net_of(sd.unet), adapter()
    shown: dict[str, Any] = {"control_image": photo(), "adapter_image": photo(), "image": photo()}
    before = tensor(sd, PROMPT, subject(picture), **shown)
    sd.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert torch.equal(tensor(sd, PROMPT, subject(picture), **shown), before)


def test_what_cannot_guide(sd: RealCustomPipeline) -> None:
    """One sentence each, before any forward of the UNet."""
    net, shown = net_of(sd.unet), photo()
    sd.unet.register_forward_pre_hook(lambda *_: pytest.fail("the UNet was called"))
    two: dict[str, Any] = {"control_image": [shown, shown]}
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (None, None, {"control_image": shown}, r"no ControlNetModel is loaded: pipe.controlnet = ControlNetModel"),
        ([], None, {"control_image": shown}, r"no ControlNetModel is loaded"),
        (None, None, {"adapter_image": shown}, r"no T2IAdapter is loaded: pipe.t2i_adapter = T2IAdapter"),
        (sd.vae, None, {"control_image": shown}, "a ControlNetModel or a list of them, got a AutoencoderKL"),
        (None, net, {"adapter_image": shown}, "a T2IAdapter or a list of them, got a ControlNetModel"),
        (net_of(tiny.tiny_sdxl_unet()), None, {"control_image": shown}, "for another base: its block_out_channels is"),
        (net_of(sd.unet, channels=(8, 8, 16)), None, {"control_image": shown}, "4 pixels of its picture per latent"),
        (None, T2IAdapter(channels=[32, 32]), {"adapter_image": shown}, r"another base: it has channels \(32, 32\)"),
        (net, None, two, "control_image has 2 pictures for 1 prompts"),
        ([net, net], None, {"control_image": shown}, "for 2 models is a list of 2 pictures, or such a list for each"),
        ([net, net], None, {"control_image": [[shown], [shown]]}, "for 2 models is a list of 2 pictures"),
        ([net, net], None, {**two, "controlnet_conditioning_scale": [1.0]}, "one for each of 2 models, got"),
        (net, None, {"control_image": shown, "controlnet_conditioning_scale": "1"}, "is a number, or a list"),
        (
            net,
            None,
            {"control_image": shown, "control_guidance_start": 0.5, "control_guidance_end": 0.5},
            "0.5 and 0.5",
        ),
        (net, None, {"control_image": shown, "control_guidance_end": 1.5}, "0 <= start < end <= 1, got 0.0 and 1.5"),
        (net, None, {"control_image": "edges.png"}, "is a picture .* got a str"),
    ]
    for controlnet, t2i_adapter, arguments, said in cases:
        sd.controlnet, sd.t2i_adapter = controlnet, t2i_adapter
        with pytest.raises(UsageError, match=said):
            sd(PROMPT, num_inference_steps=1, **arguments)


def test_a_t2i_adapter_acts_with_a_mask_of_the_step_before(sd: RealCustomPipeline, picture: Picture) -> None:
    """Every way of making masks has the controls in each of its UNet calls."""
    sd.controlnet, sd.t2i_adapter = net_of(sd.unet), adapter()
    sd.settings = override(sd.settings, {"mask": {"source": "previous"}})
    shown: dict[str, Any] = {"control_image": photo(), "adapter_image": photo()}
    plain = tensor(sd, PROMPT, **shown)
    calls = rows_of(sd.unet)
    found: Tensor = tensor(sd, PROMPT, subject(picture), **shown)
    assert calls == [1, 2, 3, 3, 3] and (found - plain).abs().max() > 1e-3
    assert torch.allclose(tensor(sd, PROMPT, subject(picture, scope=0.0), **shown), plain, atol=1e-4)
