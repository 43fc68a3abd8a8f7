"""A call's arguments mean what they mean in diffusers: compared with the stock pipeline of the same tiny model."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from realcustom import RealCustomPipeline, Subject
from realcustom.base import encode_pixels
from realcustom.config import override
from realcustom.encoders import ClipEncoder
from realcustom.errors import UsageError
from tests.support import tiny
from tests.support.stock_calls import quiet, seeded

Picture = Callable[[int], Image.Image]
PROMPT = "a dog on grass"
SIZE: dict[str, Any] = {"height": 32, "width": 40}


def tensor(pipe: RealCustomPipeline, *call: Any, **arguments: Any) -> Tensor:
    images = pipe(*call, **arguments).images
    assert isinstance(images, Tensor)
    return images


@pytest.fixture
def stock_sdxl(sdxl_folder: str) -> Any:
    return quiet(StableDiffusionXLPipeline.from_pretrained(sdxl_folder, add_watermarker=False))


def large_vae(seed: int = 0) -> Any:
    """A VAE whose configuration says that it overflows in float16, as SDXL's, and which does."""
    vae = tiny.tiny_vae(kl=True, seed=seed)
    with torch.no_grad():  # the last norm brings the activations back
        vae.decoder.conv_in.weight.mul_(3e5)
    return vae


def pixels(image: Tensor) -> Tensor:
    assert torch.isfinite(image).all() and image.float().std() > 0.01, "a black image"
    return image.float()


def cast(pipe: RealCustomPipeline) -> None:
    pipe.vae = large_vae()
    pipe.to(torch.float16)


def cast_by_keyword(pipe: RealCustomPipeline) -> None:
    pipe.vae = large_vae()
    assert pipe.to("cpu", dtype=torch.float16) is pipe


def replaced(pipe: RealCustomPipeline) -> None:
    pipe.to(dtype=torch.float16)
    pipe.vae = large_vae().to(torch.float16)


def cast_alone(pipe: RealCustomPipeline) -> None:
    pipe.to(device="cpu", dtype=torch.float16)
    pipe.vae = large_vae()
    pipe.vae.to(torch.float16)


def in_the_stock_pipeline(pipe: RealCustomPipeline) -> None:
    pipe.to(torch.float16)
    pipe.diffusers.vae = large_vae().half()


def offloaded(pipe: RealCustomPipeline) -> None:
    replaced(pipe)
    pipe.enable_model_cpu_offload(device="cpu")


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated")  # the stock pipeline's own call of it
@pytest.mark.parametrize("path", [cast, cast_by_keyword, replaced, cast_alone, in_the_stock_pipeline, offloaded])
def test_a_float16_vae_that_overflows_is_float32_in_the_call(
    sdxl: RealCustomPipeline, stock_sdxl: Any, path: Callable[[RealCustomPipeline], None]
) -> None:
    """On every path to float16, to the bit of the stock pipeline; then it has its dtype back."""
    path(sdxl)
    latents = torch.randn(1, 4, 16, 20, generator=seeded())
    ours = tensor(sdxl, PROMPT, **SIZE, num_inference_steps=2, guidance_scale=5.0, latents=latents, output_type="pt")
    assert sdxl.vae.dtype is torch.float16 and sdxl.unet.dtype is torch.float16
    stock_sdxl.vae = large_vae()
    stock_sdxl.to(torch.float16)
    for part in (
        "unet",
        "vae",
        "text_encoder",
        "text_encoder_2",
    ):  # torch has other float16 kernels for weights that train
        getattr(stock_sdxl, part).requires_grad_(False)
    expected = stock_sdxl(
        PROMPT, **SIZE, num_inference_steps=2, guidance_scale=5.0, latents=latents.half(), output_type="pt"
    ).images
    assert torch.equal(pixels(ours), pixels(expected))
    sdxl.vae.register_to_config(force_upcast=False)
    with torch.no_grad():
        assert not torch.isfinite(sdxl.vae.decode(latents.half()).sample).all()  # in float16 it does overflow


def test_a_float16_vae_that_overflows_is_float32_while_it_encodes(sdxl: RealCustomPipeline) -> None:
    vae = tiny.tiny_vae(kl=True)
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(3e5)
    sdxl.vae = vae.half()
    latents = encode_pixels(sdxl.base, torch.rand(1, 3, 32, 32, generator=seeded()))
    assert torch.isfinite(latents).all() and latents.std() > 0 and sdxl.vae.dtype is torch.float16
    sdxl.vae.register_to_config(force_upcast=False)
    assert not torch.isfinite(encode_pixels(sdxl.base, torch.rand(1, 3, 32, 32))).all()


def test_a_failure_while_decoding_leaves_the_vae_as_it_was(sdxl: RealCustomPipeline) -> None:
    sdxl.vae = large_vae().half()
    sdxl.vae.decoder.conv_in.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("planted")))
    with pytest.raises(RuntimeError, match="planted"):
        sdxl(PROMPT, num_inference_steps=1)
    assert sdxl.vae.dtype is torch.float16


def test_latent_statistics_are_those_of_the_stock_pipeline(sdxl: RealCustomPipeline, stock_sdxl: Any) -> None:
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [1.1, 0.9, 1.3, 0.7]}
    arguments: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "np"}
    without = sdxl(PROMPT, generator=seeded(), **arguments).images
    for pipe in (sdxl, stock_sdxl):
        pipe.vae.register_to_config(**statistics)
    ours: Any = sdxl(PROMPT, generator=seeded(), **arguments).images
    assert (ours == stock_sdxl(PROMPT, generator=seeded(), **arguments).images).all() and (ours != without).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_the_stock_pipeline(tiny_models: tiny.TinyModels, dtype: torch.dtype) -> None:
    """Loaded so, and cast afterwards, to the same latents."""
    stock = quiet(StableDiffusionPipeline.from_pretrained(tiny_models.base, dtype=dtype, safety_checker=None))
    latents = torch.randn(1, 4, 16, 16, generator=seeded()).to(dtype)
    arguments: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent"}
    expected = stock(PROMPT, latents=latents, **arguments).images
    loaded = RealCustomPipeline.from_pretrained(tiny_models.base, torch_dtype=dtype)
    for pipe in (loaded, RealCustomPipeline.from_pretrained(tiny_models.base).to(dtype)):
        assert torch.equal(tensor(quiet(pipe), PROMPT, latents=latents, **arguments), expected)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5, 7.5])
@pytest.mark.parametrize("mode", ["cascade", "direct"])
def test_guidance_scale_of_a_plain_call_is_diffusers(pipeline: RealCustomPipeline, mode: str, scale: float) -> None:
    """Up to 1 there is no guidance: the prompt alone, and not the unconditional branch. To the bit, two prompts in a batch."""
    pipeline.settings = override(pipeline.settings, {"guidance": {"mode": mode}})
    prompts = [PROMPT, "a cat in the snow"]
    arguments: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": scale, "output_type": "latent"}
    ours = tensor(pipeline, prompts, generator=seeded(), **arguments)
    stock = quiet(pipeline.diffusers)
    assert torch.equal(ours, stock(prompts, generator=seeded(), **arguments).images)
    one, other = (tensor(pipeline, prompt, generator=seeded(), **arguments) for prompt in prompts)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("guidance", "said"),
    [
        ({"mode": "cascade", "guidance_scale": 0.0}, "guidance_scale 0 ignores the prompt"),
        ({"mode": "cascade", "guidance_scale": 0.5}, None),
        ({"mode": "direct", "guidance_scale": 0.0}, None),  # the mode does not use it
        ({"mode": "direct", "subject_guidance_scale": 0.0}, "subject_guidance_scale 0 ignores the prompt and the subj"),
    ],
)
def test_a_weight_that_ignores_the_prompt_warns(
    pipeline: RealCustomPipeline, picture: Picture, guidance: dict[str, Any], said: str | None
) -> None:
    """With subjects, at the caller's own line; a call without subjects ignores nothing."""
    pipeline.settings = override(pipeline.settings, {"guidance": guidance})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipeline(PROMPT, [Subject(image=picture(0), word="dog")], num_inference_steps=1)
    assert [(Path(one.filename).name, str(one.message)[: len(said or "")]) for one in caught] == (
        [("test_stock_call.py", said)] if said else []
    )
    pipeline(PROMPT, num_inference_steps=1)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_guidance_rescale_of_a_plain_call_is_diffusers(pipeline: RealCustomPipeline, scale: float) -> None:
    arguments: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": scale, "output_type": "latent"}
    call = arguments | {"guidance_rescale": 0.7}
    stock = quiet(tiny.tiny_pipeline())
    rescaled = tensor(pipeline, PROMPT, generator=seeded(), **call)
    assert pipeline.guidance_rescale == 0.7
    assert torch.equal(rescaled, stock(PROMPT, generator=seeded(), **call).images)
    assert torch.equal(rescaled, tensor(pipeline, PROMPT, generator=seeded(), **arguments)) == (scale == 1)


def test_guidance_rescale_of_a_call_with_subjects_is_the_setting(
    pipeline: RealCustomPipeline, picture: Picture
) -> None:
    dog = [Subject(image=picture(0), word="dog")]
    arguments: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    asked = tensor(pipeline, PROMPT, dog, generator=seeded(), guidance_rescale=0.7, **arguments)
    unscaled = tensor(pipeline, PROMPT, dog, generator=seeded(), **arguments)
    pipeline.settings = override(pipeline.settings, {"guidance": {"guidance_rescale": 0.7}})
    assert torch.equal(asked, tensor(pipeline, PROMPT, dog, generator=seeded(), **arguments))
    assert not torch.equal(asked, unscaled)
    plain = tensor(pipeline, PROMPT, generator=seeded(), **arguments)  # an adapter's own does not act without subjects
    assert torch.equal(
        plain, quiet(tiny.tiny_pipeline())(PROMPT, generator=seeded(), guidance_scale=7.5, **arguments).images
    )


def test_the_default_guidance_without_an_adapter_is_diffusers(sdxl_folder: str, stock_sdxl: Any) -> None:
    arguments: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    ours = quiet(RealCustomPipeline.from_pretrained(sdxl_folder))
    assert torch.equal(
        tensor(ours, PROMPT, generator=seeded(), **arguments),
        stock_sdxl(PROMPT, generator=seeded(), **arguments).images,
    )


def test_return_dict(pipeline: RealCustomPipeline, sdxl: RealCustomPipeline, stock_sdxl: Any) -> None:
    for ours, stock in ((pipeline, quiet(tiny.tiny_pipeline())), (sdxl, stock_sdxl)):
        arguments: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent", "return_dict": False}
        found: Any = ours(PROMPT, generator=seeded(), **arguments)
        expected = stock(PROMPT, generator=seeded(), **arguments)
        assert type(found) is tuple and len(found) == len(expected) and found[1:] == expected[1:]
        assert (found[0] - expected[0]).abs().max() <= 1e-4


def test_values_of_an_output_by_name_and_number(pipeline: RealCustomPipeline) -> None:
    """As of diffusers' outputs: its values that are not None, the images first."""
    output: Any = pipeline(PROMPT, num_inference_steps=1, output_type="latent")
    assert output[0] is output["images"] is output.images and list(output) == ["images", "words"]
    again: Any = pickle.loads(pickle.dumps(output))
    assert torch.equal(again.images, output.images) and (again.masks, again.words) == (None, [[]])


@pytest.mark.parametrize(
    "sizes",
    [
        {"original_size": (np.int64(20), np.int64(24))},
        {"target_size": (64, 48), "crops_coords_top_left": (3, 5)},
        {"negative_original_size": (8, 10), "negative_target_size": (12, 14)},
        {
            "original_size": (20, 24),
            "negative_original_size": (8, 10),
            "negative_crops_coords_top_left": (1, 2),
            "negative_target_size": (12, 14),
        },
    ],
)
def test_sdxl_sizes_and_crops(sdxl: RealCustomPipeline, stock_sdxl: Any, sizes: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {**SIZE, "num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent"}
    ours = tensor(sdxl, PROMPT, generator=seeded(), **arguments, **sizes)
    assert torch.equal(ours, stock_sdxl(PROMPT, generator=seeded(), **arguments, **sizes).images)
    assert not torch.equal(ours, tensor(sdxl, PROMPT, generator=seeded(), **arguments))


def test_each_row_of_a_batch_has_its_sizes(sdxl: RealCustomPipeline) -> None:
    """diffusers repeats the pair of branches, and not each branch: its rows are mixed up for several prompts."""
    sizes: dict[str, Any] = {"negative_original_size": (8, 10), "negative_target_size": (12, 14)}
    latents = torch.randn(2, 4, 16, 20, generator=seeded())
    arguments: dict[str, Any] = {**SIZE, **sizes, "num_inference_steps": 2, "output_type": "latent"}
    prompts = [PROMPT, "a cat in the snow"]
    together = tensor(sdxl, prompts, latents=latents, **arguments)
    for row, prompt in enumerate(prompts):
        alone = tensor(sdxl, prompt, latents=latents[row : row + 1], **arguments)
        assert torch.allclose(together[row], alone[0], atol=1e-4)


def test_parts_that_are_not_there(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """Left out to save memory, as with diffusers' pipelines: embeddings take the place of the text's parts."""
    own, negative = pipeline.encode_prompt(PROMPT, "cpu", 1, True)
    embeds: dict[str, Any] = {"prompt_embeds": own, "negative_prompt_embeds": negative}
    subjects = [Subject(image=picture(0), word="dog")]
    arguments: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    expected = tensor(pipeline, PROMPT, subjects, generator=seeded(), **arguments)
    pipeline.text_encoder = None
    given: Any
    for prompt, given in ((PROMPT, {}), (None, {"prompt_embeds": own})):  # the second one's negative text is empty
        with pytest.raises(UsageError, match="no text_encoder, and a text is to be read: give prompt_embeds and neg"):
            pipeline(prompt, **given, **arguments)
    pipeline.tokenizer = None
    with pytest.raises(UsageError, match="no tokenizer to read texts"):
        pipeline(PROMPT, subjects, **embeds, **arguments)
    found = tensor(pipeline, None, subjects, **embeds, token_words=[[2]], generator=seeded(), **arguments)
    assert torch.equal(found, expected)
    pipeline.vae = None
    with pytest.raises(UsageError, match=r"no VAE, which says what shape latents have: assign pipe\.vae"):
        pipeline(None, **embeds, **arguments)


def test_one_side_alone(pipeline: RealCustomPipeline) -> None:
    assert tensor(pipeline, PROMPT, height=24, num_inference_steps=1, output_type="latent").shape == (1, 4, 12, 16)


def test_sizes_that_cannot_be_used(pipeline: RealCustomPipeline, sdxl: RealCustomPipeline) -> None:
    with pytest.raises(UsageError, match="target_size is a condition of SDXL"):
        pipeline(PROMPT, target_size=(32, 32))
    with pytest.raises(UsageError, match=r"original_size is a pair of whole numbers of pixels, got \(32\.0, 32\)"):
        sdxl(PROMPT, original_size=(32.0, 32))  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="negative_target_size: does nothing without both"):
        sdxl(PROMPT, negative_target_size=(32, 32), num_inference_steps=1)


@pytest.mark.parametrize(
    "argument",
    [
        *(
            "ip_adapter_image",
            "ip_adapter_image_embeds",
            "callback",
            "callback_steps",
            "pag_scale",
            "padding_mask_crop",
        ),
        *("denoising_start", "denoising_end"),
    ],
)
def test_arguments_that_are_not_taken(pipeline: RealCustomPipeline, argument: str) -> None:
    with pytest.raises(TypeError, match=argument):
        pipeline(PROMPT, **{argument: 1})  # type: ignore[arg-type]


def test_to_refuses_what_diffusers_refuses(pipeline: RealCustomPipeline) -> None:
    with pytest.raises(ValueError, match="dtype"):
        pipeline.to(torch.float32, dtype=torch.float32)
    with pytest.raises(ValueError, match="device"):
        pipeline.to("cpu", device="cpu")


def test_a_subject_encoded_once(pipeline: RealCustomPipeline, picture: Picture, tiny_models: tiny.TinyModels) -> None:
    """The same bits as with the picture, after `to` and in another pipeline too."""
    arguments: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    expected = tensor(pipeline, PROMPT, [Subject(image=picture(0), word="dog")], generator=seeded(), **arguments)
    encoded = pipeline.encode_subject(picture(0))
    calls: list[int] = []
    assert isinstance(pipeline.image_encoder, ClipEncoder)
    pipeline.image_encoder.model.register_forward_hook(lambda *_: calls.append(1))
    pipeline.to(torch.bfloat16).to(torch.float32)
    again = RealCustomPipeline.from_pretrained(tiny_models.base, tiny_models.adapter, tiny_models.image_encoder)
    other = tensor(quiet(again), PROMPT, [Subject(image=encoded, word="dog")], generator=seeded(), **arguments)
    assert torch.equal(other, expected)
    ours = tensor(pipeline, PROMPT, [Subject(image=encoded, word="dog")], generator=seeded(), **arguments)
    assert torch.isfinite(ours).all() and not calls
    with pytest.raises(UsageError, match=r"give its mask to pipe.encode_subject"):
        Subject(image=encoded, word="dog", mask=Image.new("L", (32, 32), 255))
    with pytest.raises(UsageError, match="encoded already"):
        pipeline.encode_subject(encoded)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="subjects need an adapter"):
        RealCustomPipeline(pipeline.base, pipeline.settings).encode_subject(picture(0))
    pipeline.settings = override(pipeline.settings, {"image_encoder": {"fit": "crop"}})
    with pytest.raises(UsageError, match="other image_encoder settings"):
        pipeline(PROMPT, [Subject(image=encoded, word="dog")], **arguments)


def test_a_mask_is_encoded_with_its_picture(pipeline: RealCustomPipeline, picture: Picture) -> None:
    pipeline.settings = override(pipeline.settings, {"image_encoder": {"reference": "crop"}})
    mask = Image.new("L", (32, 32))
    mask.paste(255, (4, 4, 20, 28))
    arguments: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    given = Subject(image=picture(0), word="dog", mask=mask)
    expected = tensor(pipeline, PROMPT, [given], generator=seeded(), **arguments)
    encoded = Subject(image=pipeline.encode_subject(picture(0), mask), word="dog")
    pipeline.to("cpu")  # the cache is empty now
    assert torch.equal(tensor(pipeline, PROMPT, [encoded], generator=seeded(), **arguments), expected)
