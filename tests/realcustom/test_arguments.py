"""A mistake in a call's arguments is one sentence that names the value and the way out."""

from __future__ import annotations

import contextlib
import inspect
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, EulerDiscreteScheduler
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from realcustom import RealCustomPipeline, SamplingParams, Subject
from realcustom.checkpoint import load_adapter, read_header
from realcustom.errors import UsageError
from realcustom.settings import Never
from tests.support import tiny

Picture = Callable[[int], Image.Image]
PROMPT = "a dog on grass"


@pytest.fixture(scope="module")
def pipe(tiny_models: tiny.TinyModels) -> RealCustomPipeline:
    return RealCustomPipeline.from_pretrained(tiny_models.base, tiny_models.adapter, tiny_models.image_encoder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator": 5}, r"generator is a torch.Generator, or a list .*, got 5: torch.Generator\(\).manual_seed"),
        ({"generator": [1]}, r"generator is a torch.Generator, or a list .*, got \[1\]"),
        ({"prompt": None}, "give prompt or prompt_embeds; both are None"),
        ({"prompt": 5}, "prompt is a text or a list of texts, got 5"),
        ({"prompt": ["a dog", None]}, "prompt is a text or a list of texts, got None"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"negative_prompt": 5}, "negative prompts are texts, one or one for each prompt, got 5"),
        ({"negative_prompt": [None]}, r"negative prompts are texts, .*got \[None\]"),
        ({"num_inference_steps": 3.0}, r"num_inference_steps is a whole number, got 3\.0"),
        ({"num_inference_steps": "3"}, "num_inference_steps is a whole number, got '3'"),
        ({"num_inference_steps": True}, "num_inference_steps is a whole number, got True"),
        ({"num_images_per_prompt": 2.0}, r"num_images_per_prompt is a whole number, at least 1, got 2\.0"),
        ({"width": "32"}, "width is a whole number, got '32'"),
        ({"guidance_scale": float("nan")}, "guidance_scale must lie in 0 to 1000, got nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale must lie in 0 to 1000, got inf"),
        ({"guidance_scale": "7.5"}, r"guidance_scale is a number, got '7\.5'"),
        ({"guidance_scale": [7.5]}, r"guidance_scale is a number, got \[7\.5\]"),
        ({"subject_guidance_scale": -float("inf")}, "subject_guidance_scale must lie in 0 to 1000, got -inf"),
        ({"influence_scope": float("nan")}, "influence_scope must lie in 0 to 1, got nan"),
        ({"influence_quantity": float("inf")}, "influence_quantity must lie in 0 to 1, got inf"),
        ({"mask_reuse_after": 2.5}, r"mask_reuse_after is 'never' or a whole number, got 2\.5"),
        ({"mask_reuse_after": "newer"}, "mask_reuse_after is 'never' or a whole number, got 'newer'"),
        ({"use_mask": 1}, "use_mask is true or false, got 1"),
        ({"subjects": None}, r"subjects is a list: subjects=\[Subject\(...\)\]; got a NoneType"),
        ({"subjects": [("dog.png", "dog")]}, "a subject is a Subject.*, got a str in a tuple"),
        ({"subjects": ["dog"]}, "a subject is a Subject.*, got a str"),
        ({"subjects": [{"word": "dog"}]}, "a subject is a Subject.*, got a dict"),
        ({"subjects": "dog"}, "a subject is a Subject.*, got a str"),
        ({"callback_on_step_end": 5}, "callback_on_step_end is a function .*, got a int"),
        ({"callback_on_step_end": lambda *_: 5}, "a callback returns a dict of the tensors that it changes, got a int"),
        ({"callback_on_step_end": lambda *_: []}, "a callback returns a dict .*, got a list"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, r"is a list of names, \['latents'\], got 'latents'"),
        ({"callback_on_step_end_tensor_inputs": [5]}, r"is a list of names, \['latents'\], got \[5\]"),
        (
            {"prompt": None, "prompt_embeds": [[0.5]]},
            "prompt_embeds is a tensor with a row for each prompt, got a list",
        ),
        ({"prompt": None, "prompt_embeds": torch.zeros(())}, "prompt_embeds is a tensor with a row for each prompt"),
        ({"negative_prompt_embeds": 5}, "negative_prompt_embeds is a tensor with a row for each prompt, got a int"),
        ({"pooled_prompt_embeds": np.zeros((1, 4))}, "pooled_prompt_embeds is a tensor .*, got a ndarray"),
        ({"token_words": 5}, "token_words is a list of positions for each subject, got a int"),
        ({"latents": np.zeros((1, 4, 16, 16))}, r"latents are a tensor of shape \(1, 4, 16, 16\), got a ndarray"),
        ({"cross_attention_kwargs": ["scale"]}, r"cross_attention_kwargs is a dict, \{'scale': 0\.5\}, got a list"),
        ({"cross_attention_kwargs": {"scale": "0.5"}}, r"the scale in cross_attention_kwargs is a number, got '0\.5'"),
        ({"cross_attention_kwargs": {1: 2}}, "cross_attention_kwargs takes scale, the weight of a LoRA, got 1"),
        ({"timesteps": torch.tensor(5)}, "timesteps is a list of numbers, got 5"),
        ({"sigmas": ["5"]}, r"sigmas is a list of numbers, got \['5'\]"),
        ({"guess_mode": 1}, "guess_mode is true or false, got 1"),
        ({"return_dict": None}, "return_dict is true or false, got None"),
        ({"output_type": ["pil"]}, r"output_type is 'pil', 'np', 'pt' or 'latent', got \['pil'\]"),
    ],
)
def test_mistakes_in_a_call(pipe: RealCustomPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipe(**{"prompt": PROMPT, "num_inference_steps": 1, **arguments})


KINDS: tuple[Any, ...] = (5, -1, 2.5, "scale", "", [], ["scale"], [5], [[]], {}, {"scale": "x"}, {1: 2}, True, None)
KINDS += (object(), torch.zeros(1), torch.zeros(()), torch.zeros(1, 77, 24), np.zeros(3), np.array("x"), (1, 2))
# what an argument needs beside it to be read
WITH_IMAGE = {"strength", "mask_image"}
WITH_CONTROLS = {"controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end", "guess_mode"}


@pytest.mark.parametrize("name", [*inspect.signature(RealCustomPipeline.__call__).parameters][1:])
def test_an_argument_of_any_kind_is_taken_or_refused(
    pipe: RealCustomPipeline, sdxl: RealCustomPipeline, picture: Picture, name: str
) -> None:
    """With a sentence: no other error comes out of a call."""
    sizes = {"conditioning_embedding_out_channels": (8, 16), "load_weights_from_unet": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each, subjects in ((pipe, [Subject(image=picture(0), word="dog")]), (sdxl, [])):
            given = {"prompt": PROMPT, "subjects": subjects, "num_inference_steps": 1, "height": 16, "width": 16}
            given |= {"image": picture(1)} if name in WITH_IMAGE else {}
            if name in WITH_CONTROLS:
                each.controlnet = ControlNetModel.from_unet(each.unet, **sizes)
                given |= {"control_image": picture(1)}
            for value in KINDS:
                with contextlib.suppress(UsageError):
                    each(**{"output_type": "latent", **given, name: value})


@pytest.mark.parametrize("scope", [float("nan"), "0.2", True])
def test_a_subjects_scope(scope: Any) -> None:
    with pytest.raises(UsageError, match="a subject's scope is a ratio from 0 to 1, got"):
        Subject(image=Image.new("RGB", (8, 8)), word="dog", scope=scope)


def test_numbers_of_numpy_are_numbers(pipe: RealCustomPipeline) -> None:
    plain = pipe(PROMPT, num_inference_steps=1, guidance_scale=5.0, output_type="pt", generator=seeded()).images
    same = pipe(
        PROMPT,
        num_inference_steps=np.int64(1),  # type: ignore[arg-type]
        guidance_scale=np.float32(5),  # type: ignore[arg-type]
        output_type="pt",
        generator=seeded(),
    ).images
    assert isinstance(plain, torch.Tensor) and isinstance(same, torch.Tensor) and torch.equal(plain, same)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_never_is_a_word_or_the_enum(pipe: RealCustomPipeline, picture: Picture) -> None:
    assert SamplingParams(mask_reuse_after="never") == SamplingParams(mask_reuse_after=Never.NEVER)
    dog = [Subject(image=picture(0), word="dog")]
    for value in ("never", Never.NEVER):
        out = pipe(PROMPT, dog, mask_reuse_after=value, num_inference_steps=2, return_masks=True, output_type="latent")
        assert out.masks is not None and out.masks[0][0] is not out.masks[1][0]
    reused = pipe(PROMPT, dog, mask_reuse_after=1, num_inference_steps=2, return_masks=True, output_type="latent").masks
    assert reused is not None and reused[0][0] is reused[1][0]


def test_a_picture_of_any_kind_draws_the_same(pipe: RealCustomPipeline, picture: Picture) -> None:
    array = np.asarray(picture(0))
    images = [
        pipe(
            PROMPT, [Subject(image=kind, word="dog")], num_inference_steps=1, output_type="pt", generator=seeded()
        ).images
        for kind in (picture(0), array, torch.from_numpy(array / np.float32(255)).permute(2, 0, 1))
    ]
    assert all(torch.equal(torch.as_tensor(image), torch.as_tensor(images[0])) for image in images)


def test_a_folder_is_no_adapter(tiny_models: tiny.TinyModels, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a folder, an adapter is one file, such as adapter\.safetensors"):
        load_adapter(tmp_path)
    shutil.copy(tiny_models.adapter, tmp_path / "mine.safetensors")
    for read in (load_adapter, read_header):
        with pytest.raises(UsageError, match=f"an adapter is one file: give {tmp_path}/mine.safetensors"):
            read(f"{tmp_path}/")
    with pytest.raises(UsageError, match="is a folder"):
        RealCustomPipeline.from_pretrained(tiny_models.base, tmp_path, tiny_models.image_encoder)


def test_a_text_encoder_of_another_width(pipeline: RealCustomPipeline) -> None:
    tokenizer = pipeline.tokenizer
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    pipeline.text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **sizes)).eval()
    with pytest.raises(UsageError, match="the text encoder's features are 32 wide, the UNet takes 24"):
        pipeline(PROMPT, num_inference_steps=1)


def test_numbers_of_numpy_and_torch(pipeline: RealCustomPipeline) -> None:
    """A side, a schedule and positions as arrays have them."""
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.base.scheduler.config)
    arguments: dict[str, Any] = {"output_type": "latent", "height": 32, "width": 32}
    expected: Any = pipeline("a dog", generator=torch.Generator().manual_seed(0), sigmas=[9.0, 1.0], **arguments).images
    given: list[Any] = [np.array([9.0, 1.0]), torch.tensor([9.0, 1.0])]
    for sigmas in given:
        arguments |= {"height": np.int64(32), "generator": torch.Generator().manual_seed(0)}
        found: Any = pipeline("a dog", sigmas=sigmas, **arguments).images
        assert torch.equal(found, expected)
    with pytest.raises(UsageError, match="timesteps is a list of numbers, got 5"):
        pipeline("a dog", timesteps=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("token_words", [[2], [[np.int64(2)], 3], ["dog"]])
def test_token_words_of_another_shape(pipeline: RealCustomPipeline, token_words: Any) -> None:
    dog = Subject(image=Image.new("RGB", (16, 16)), word="dog")
    with pytest.raises(UsageError, match="token_words is a list of positions for each subject"):
        pipeline("a dog", [dog], token_words=token_words)


def test_tokens_follow_the_image_encoder(pipeline: RealCustomPipeline) -> None:
    """Another encoder, or an encoded subject of another precision, does not leave its tokens to later calls."""
    dog = [Subject(image=Image.new("RGB", (16, 16), "red"), word="dog")]
    arguments: dict[str, Any] = {"output_type": "latent", "num_inference_steps": 2}

    def draw(subjects: list[Subject]) -> Any:
        return pipeline("a dog", subjects, generator=torch.Generator().manual_seed(0), **arguments).images

    pipeline.to(torch.bfloat16)
    half = pipeline.encode_subject(Image.new("RGB", (16, 16), "red"))
    pipeline.to(torch.float32)
    expected = draw(dog)
    pipeline.to(torch.float32)  # forgets what is encoded
    assert not torch.equal(draw([Subject(image=half, word="dog")]), expected)
    assert torch.equal(draw(dog), expected)
    encoder: Any = pipeline.image_encoder
    for parameter in encoder.model.parameters():
        parameter.data.mul_(1.5)
    pipeline.image_encoder = encoder
    assert not torch.equal(draw(dog), expected)


def test_a_subject_takes_numpy_s_numbers(pipe: RealCustomPipeline, picture: Picture) -> None:
    def drawn(scope: Any, occurrence: Any, **arguments: Any) -> Any:
        subjects = [Subject(image=picture(0), word="dog", scope=scope, occurrence=occurrence)]
        generator = torch.Generator().manual_seed(3)
        options: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent", **arguments}
        return pipe("a dog and a dog", subjects, generator=generator, **options).images

    expected = drawn(0.5, 1)
    assert torch.equal(drawn(np.float32(0.5), np.int64(1)), expected) and not torch.equal(drawn(0.5, 0), expected)
    assert torch.equal(drawn(None, 1, influence_scope=np.float32(0.5)), expected)
    with pytest.raises(UsageError, match="a number from 0, got True"):
        drawn(0.5, True)
