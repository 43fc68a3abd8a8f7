"""Edge cases of the method: each is a typed error or the stated behaviour, never a silent zero mask.

Beside these: words in test_words.py (several tokens, occurrences, parts of words, truncation, empty, plural), maps and
scopes in test_mask.py (scope 0, 1 and below one cell, empty, constant and not finite maps, half precision), scores in
test_scoring.py, weights in test_guidance.py, sizes in test_attention.py and test_sdxl.py, one picture for several words
and rows with different subjects in test_plus_plus.py and test_pipeline.py, slicing and offload in test_diffusers.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor

from realcustom import RealCustomPipeline, Subject
from realcustom.attention import Conditioning, SubjectTokens
from realcustom.config import override
from realcustom.mask import influence_mask
from realcustom.model import RealCustomModel
from realcustom.presets import paper_sd15, released_sdxl
from realcustom.reference import prepare_reference, square
from realcustom.scoring import select_tokens
from realcustom.settings import Fit, ImageEncoderSettings, MaskSettings, Never, Overlap, Reference, without_effect
from realcustom.words import find_word
from tests.support import tiny

Picture = Callable[[int], Image.Image]
PROMPT = "a dog on grass"


def draw(pipeline: RealCustomPipeline, subjects: Any, prompt: str = PROMPT, **arguments: Any) -> Any:
    arguments = {"num_inference_steps": 3, "output_type": "latent", "return_masks": True, **arguments}
    return pipeline(prompt, subjects, generator=torch.Generator().manual_seed(3), **arguments)


def test_a_plural_is_reported(pipeline: RealCustomPipeline, picture: Picture) -> None:
    pipeline.settings = override(pipeline.settings, {"words": {"plural": True}})
    out = draw(pipeline, [Subject(image=picture(0), word="toy")], "two toys in the snow")
    assert out.words == [["toys"]]


def test_masks_of_two_subjects_overlap_or_exclude(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """Summed, both act where both masks are; exclusive, the larger one alone, the others' zero there."""
    subjects = [Subject(image=picture(0), word="dog"), Subject(image=picture(1), word="grass", scope=0.4)]
    both = draw(pipeline, subjects)
    assert [int(mask.count_nonzero()) for mask in both.masks[0]] == [64, 102]  # each its own scope
    pipeline.settings = override(pipeline.settings, {"mask": {"overlap": "argmax"}})
    first, second = draw(pipeline, subjects).masks[0]
    assert ((first > 0) & (second > 0)).sum() == 0
    overlap = (both.masks[0][0] > 0) & (both.masks[0][1] > 0)
    assert overlap.any() and ((first > 0) | (second > 0))[overlap].all()


def test_equal_values_of_two_subjects_are_the_firsts() -> None:
    same = [torch.full((1, 2, 4, 4), 0.5)]
    mask = influence_mask(same, 1.0, MaskSettings(overlap=Overlap.ARGMAX))
    assert (mask[0, 0] == 1).all() and (mask[0, 1] == 0).all()


def test_an_absent_subject_has_no_effect_to_the_bit(picture: Picture) -> None:
    """A row with fewer subjects is padded with zero masks."""
    model = RealCustomModel(
        tiny.tiny_unet(), tiny.tiny_settings(), tiny.IMAGE_WIDTH, generator=torch.Generator().manual_seed(1)
    )
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 77, 24, generator=generator)
    tokens = [torch.randn(1, 16, tiny.IMAGE_WIDTH, generator=generator) for _ in range(2)]
    mask, absent = torch.rand(1, 1, 16, 16, generator=generator), torch.zeros(1, 1, 16, 16)
    outputs = []
    for masks in ([mask], [mask, absent]):
        subjects = [SubjectTokens(embeds=embeds, mask=of) for embeds, of in zip(tokens, masks, strict=False)]
        conditioning = Conditioning(grids={256: (16, 16), 64: (8, 8)}, subjects=subjects)
        with torch.no_grad():
            outputs.append(model.unet(latents, 500, text, cross_attention_kwargs={"conditioning": conditioning}).sample)
    assert torch.equal(*outputs)


@pytest.mark.parametrize(("quantity", "kept"), [(0.0, 1), (0.01, 1), (0.5, 8), (1.0, 16)])
def test_at_least_one_token_acts(quantity: float, kept: int) -> None:
    """All of them at 1, still gated."""
    scores = torch.softmax(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), -1)
    index, gate = select_tokens(scores, quantity)
    assert index.shape == (2, kept) and (gate > 1).all()


def test_the_mask_that_is_never_or_at_once_reused(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """0 steps count as the first one; as many as there are, or more, is never."""
    dog = [Subject(image=picture(0), word="dog")]
    always = draw(pipeline, dog)
    for reuse in (3, 9, Never.NEVER, None):
        assert torch.equal(draw(pipeline, dog, mask_reuse_after=reuse).images, always.images)
    assert torch.equal(draw(pipeline, dog, mask_reuse_after=0).images, draw(pipeline, dog, mask_reuse_after=1).images)


def test_a_negative_prompt_takes_the_empty_texts_place(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """Still without an image: with w_t = 1 the unconditional branch has no weight, and the prompt no effect."""
    dog = [Subject(image=picture(0), word="dog")]
    assert not torch.equal(draw(pipeline, dog, negative_prompt="a cat").images, draw(pipeline, dog).images)
    assert torch.equal(
        draw(pipeline, dog, negative_prompt="a cat", guidance_scale=1.0).images,
        draw(pipeline, dog, guidance_scale=1.0).images,
    )
    assert torch.equal(draw(pipeline, dog, negative_prompt="").images, draw(pipeline, dog).images)


def test_maps_that_are_not_finite_stop_the_call(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """A model whose numerics have broken down is named as such, not masked away."""
    for name, weight in pipeline.base.unet.named_parameters():
        if name.endswith("attn2.to_k.weight"):
            with torch.no_grad():
                weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        draw(pipeline, [Subject(image=picture(0), word="dog")])


def test_a_word_without_attention_warns(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """Its maps are zero: the subject has no influence, and that is said."""
    pipeline.settings = override(pipeline.settings, {"mask": {"norm": "minmax"}})
    for name, weight in pipeline.base.unet.named_parameters():
        if name.endswith("attn2.to_k.weight"):
            with torch.no_grad():
                weight.zero_()  # every token alike: constant maps, which min-max norms make zero
    with pytest.warns(UserWarning, match="the same everywhere"):
        out = draw(pipeline, [Subject(image=picture(0), word="dog")], num_inference_steps=1)
    assert (out.masks[0][0] == 0).all() and torch.isfinite(out.images).all()


def test_levels_may_be_left_out_of_the_mask(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """Coarse maps count by default, enlarged; `mask.layers` can leave them out, and names the sides where none is left."""
    dog = [Subject(image=picture(0), word="dog")]
    masks = {}
    for layers in ("all", "up", [16], [8]):
        pipeline.settings = override(pipeline.settings, {"mask": {"layers": layers}})
        (masks[str(layers)],) = draw(pipeline, dog, num_inference_steps=1).masks[0]
    assert all(mask.shape == (1, 1, 16, 16) for mask in masks.values())
    assert len({mask.numpy().tobytes() for mask in masks.values()}) == 4
    pipeline.settings = override(pipeline.settings, {"mask": {"layers": [32]}})
    with pytest.raises(ValueError, match=r"mask.layers \[32\].*\[8, 16\]"):
        draw(pipeline, dog)


def test_gradient_checkpointing_sees_the_same_tokens() -> None:
    """Conditioning travels as an argument: a second forward of a block sees what the first one saw."""
    gradients = []
    for checkpointing in (False, True):
        model = RealCustomModel(
            tiny.tiny_unet(), tiny.tiny_settings(), tiny.IMAGE_WIDTH, generator=torch.Generator().manual_seed(1)
        ).train()
        if checkpointing:
            model.unet.enable_gradient_checkpointing()
        generator = torch.Generator().manual_seed(0)
        shapes = ((2, 4, 16, 16), (2, 77, tiny.TEXT_WIDTH), (2, tiny.IMAGE_TOKENS, tiny.IMAGE_WIDTH))
        latents, text, image = (torch.randn(shape, generator=generator) for shape in shapes)
        alphas = torch.tensor([0.2, 0.7])
        model(latents, torch.tensor([800, 100]), text, image, alphas, 0.5).square().mean().backward()
        gradients.append({name: value.grad for name, value in model.trained_parameters().items()})
    for name, expected in gradients[0].items():
        assert expected is not None and expected.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], expected)


def test_references_of_every_kind() -> None:
    """RGB on white, upright, square as `fit` says."""
    colours = np.zeros((20, 40, 4), np.uint8)
    colours[..., 0], colours[:, 20:, 3] = 200, 255  # transparent on the left
    settings = ImageEncoderSettings()
    laid = np.asarray(prepare_reference(Image.fromarray(colours), None, settings))
    assert laid.shape == (40, 40, 3) and (laid[15, 5] == 255).all() and tuple(laid[15, 35]) == (200, 0, 0)
    grey = prepare_reference(Image.fromarray(np.full((8, 8), 90, np.uint8)), None, settings)
    assert grey.mode == "RGB" and np.unique(np.asarray(grey)).tolist() == [90]
    upright = Image.new("RGB", (40, 20))
    upright.putpixel((0, 0), (255, 0, 0))
    upright.getexif()[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = np.asarray(prepare_reference(upright, None, ImageEncoderSettings(fit=Fit.PAD)))
    assert tuple(turned[0, 29]) == (255, 0, 0)
    wide = Image.fromarray(np.tile(np.arange(40, dtype=np.uint8), (20, 1))).convert("RGB")
    assert square(wide, Fit.CROP).size == (20, 20) and square(wide, Fit.STRETCH).size == (40, 40)
    assert np.asarray(square(wide, Fit.CROP))[0, 0, 0] == 10
    assert np.asarray(square(wide, Fit.PAD))[0, 0, 0] == 255


def test_a_cut_out_needs_to_know_where() -> None:
    crop = ImageEncoderSettings(reference=Reference.CROP)
    picture = Image.new("RGB", (8, 8), (10, 20, 30))
    with pytest.raises(ValueError, match="give a mask or a picture with transparency"):
        prepare_reference(picture, None, crop)
    with pytest.raises(ValueError, match="the mask is empty"):
        prepare_reference(picture, Image.new("L", (8, 8)), crop)
    with pytest.raises(ValueError, match="the mask is 4 x 4, the picture 8 x 8"):
        prepare_reference(picture, Image.new("L", (4, 4), 255), crop)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "realcustom_pp"}, "realcustom_pp needs one of highres"),
        ({"tokens": {"projector": "highres"}}, "realcustom has none"),
        ({"image_encoder": {"kind": "siglip_dino"}}, "realcustom takes clip"),
        ({"image_encoder": {"layers": [-3, -2]}}, "kind clip takes the tokens of one hidden state"),
        ({"mask": {"select": "treshold"}}, "did you mean 'threshold'"),
        ({"guidance": {"guidance_rescale": 1.5}}, "0 to 1, got 1.5"),
        ({"mask": {"mask_reuse_after": "newer"}}, "mask.mask_reuse_after"),
    ],
)
def test_settings_that_contradict_each_other(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(tiny.tiny_settings(), change)


def test_a_setting_without_effect_warns(pipeline: RealCustomPipeline) -> None:
    idle = override(pipeline.settings, {"guidance": {"rescale_by_mask": True}})
    with pytest.warns(UserWarning, match="rescale_by_mask does nothing with guidance.guidance_rescale 0"):
        RealCustomPipeline(pipeline.base, idle, pipeline.model, pipeline.image_encoder)


def test_the_result_is_what_the_mode_says(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """Rescaled to the full, the combined prediction has the deviation of the generation branch."""
    seen: list[Tensor] = []
    dog = [Subject(image=picture(0), word="dog")]
    step = pipeline.scheduler.step
    guidance = {"mode": "direct", "guidance_rescale": 1.0, "launches": "separate", "subject_guidance_scale": 9}
    pipeline.settings = override(pipeline.settings, {"guidance": guidance})
    outputs: list[Tensor] = []
    pipeline.base.unet.register_forward_hook(lambda module, positional, output: outputs.append(output[0]))

    def seen_step(prediction: Tensor, *rest: Any, **named: Any) -> Any:
        seen.append(prediction)
        return step(prediction, *rest, **named)

    pipeline.scheduler.step = seen_step
    draw(pipeline, dog, num_inference_steps=1)
    assert seen[0].std() == pytest.approx(float(outputs[-1].std()), rel=1e-5)


def test_parts_are_replaced_in_the_stock_pipeline(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """Any part but the UNet, which holds the adapter; a name of our own that fails is not looked for there."""
    other = tiny.tiny_vae(seed=7)
    pipeline.vae = other
    assert pipeline.diffusers.vae is other and pipeline.base.vae is other
    with pytest.raises(AttributeError, match="the UNet holds the adapter"):
        pipeline.unet = tiny.tiny_unet()
    pipeline.settings = override(pipeline.settings, {"sampler": {"scheduler": "NoScheduler"}})
    with pytest.raises(ValueError, match="'NoScheduler' is not"):
        _ = pipeline.scheduler
    pipeline.settings = override(pipeline.settings, {"sampler": {"scheduler": "EulerDiscreteScheduler"}})
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"  # settings may change after a first call
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipeline.nothing
    with pytest.warns(UserWarning, match="thresholding"):
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.base.scheduler.config, thresholding=True)
    flow = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="flow matching"):
        pipeline.scheduler = flow


def test_another_dtype_after_loading(pipeline: RealCustomPipeline, picture: Picture) -> None:
    out = draw(pipeline.to(torch.bfloat16), [Subject(image=picture(0), word="dog")])
    assert out.images.dtype == torch.bfloat16 and out.masks[0][0].max() == 1
    again = draw(pipeline.to("cpu", torch.float32), [Subject(image=picture(0), word="dog")])
    assert again.images.dtype == torch.float32 and torch.isfinite(again.images).all()


def test_maps_under_autocast_are_those_without(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """Queries are then bf16; the softmax over text and all that follows are not."""
    with torch.autocast("cpu", torch.bfloat16):
        (mask,) = draw(pipeline, [Subject(image=picture(0), word="dog")], num_inference_steps=1).masks[0]
    assert mask.dtype == torch.float32 and len(mask[mask > 0].unique()) > 55  # bf16 has 8 bits: values would tie


def test_plain_text_to_image_leaves_the_unet_as_it_is(tiny_models: tiny.TinyModels) -> None:
    """Without an adapter: whatever processors it has, and not a tensor more; at any size."""
    plain = RealCustomPipeline.from_pretrained(tiny_models.base)
    processors, names = plain.unet.attn_processors, set(plain.unet.state_dict())
    before = draw(plain, [], height=48, width=40).images
    assert plain.unet.attn_processors == processors and set(plain.unet.state_dict()) == names
    plain.diffusers.enable_attention_slicing("max")
    assert torch.allclose(draw(plain, [], height=48, width=40).images, before, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": "dog.png"}, "image is a picture \\(PIL, numpy or torch\\), got a str; open it first"),
        ({"mask": "dog.png"}, "mask is a picture .*, got a str"),
        ({"image": None}, "got a NoneType"),
        ({"word": 3}, "got 3"),
        ({"word": ()}, "one word of the prompt or several"),
        ({"scope": 2.0}, "ratio from 0 to 1, got 2.0"),
    ],
)
def test_subjects_that_are_none(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Subject(**{"image": Image.new("RGB", (8, 8)), "word": "dog", **arguments})


def test_arguments_of_another_kind(pipeline: RealCustomPipeline, picture: Picture) -> None:
    dog = Subject(image=picture(0), word="dog")
    with pytest.raises(ValueError, match=r"subjects=\[Subject"):
        draw(pipeline, dog)
    with pytest.raises(ValueError, match=r"height is a whole number, got 32\.0"):
        draw(pipeline, [dog], height=32.0)
    for value in (2.0, "2", "newer", True):
        with pytest.raises(ValueError, match="mask_reuse_after is 'never'"):
            draw(pipeline, [dog], mask_reuse_after=value)
    assert torch.isfinite(draw(pipeline, [dog], callback_on_step_end=lambda *_: None).images).all()


def test_arguments_without_effect_warn(pipeline: RealCustomPipeline, picture: Picture) -> None:
    dog = Subject(image=picture(0), word="dog", mask=Image.new("L", (32, 32), 255))
    with pytest.warns(UserWarning, match="a subject's mask does nothing with reference image"):
        draw(pipeline, [dog], num_inference_steps=1)
    dog = Subject(image=picture(0), word="dog")
    with pytest.warns(UserWarning, match="influence_scope does nothing with use_mask=False"):
        draw(pipeline, [dog], num_inference_steps=1, use_mask=False, influence_scope=0.3)
    pipeline.settings = override(pipeline.settings, {"guidance": {"mode": "direct"}})
    with pytest.warns(UserWarning, match="guidance_scale does nothing in mode direct"):
        draw(pipeline, [dog], num_inference_steps=1, guidance_scale=5.0)
    idle: dict[str, dict[str, Any]] = {
        "tokens.fusion does nothing with tokens.scoring off": {"tokens": {"scoring": False, "fusion": "mean"}},
        "visual_context does nothing with tokens.fusion text": {
            "tokens": {"fusion": "text", "visual_context": "conv_in"}
        },
        "text_mask_mode does nothing with tokens.fusion visual": {
            "tokens": {"fusion": "visual", "text_mask_mode": "none"}
        },
        "mask.eps does nothing with mask.norm none": {"mask": {"norm": "none", "eps": 1e-6}},
        "high_res does nothing with image_encoder.kind clip": {"image_encoder": {"high_res": 64}},
    }
    for sentence, change in idle.items():
        assert any(sentence in said for said in without_effect(override(tiny.tiny_settings(), change))), sentence
    assert without_effect(paper_sd15()) == without_effect(released_sdxl()) == []


def test_bases_with_parts_that_are_missing(tiny_models: tiny.TinyModels, tmp_path: Path) -> None:
    """Named before anything is loaded; a tokenizer of another model is named after."""
    for base, part in ((tiny_models.base, "tokenizer"), (tiny.tiny_sdxl_base(tmp_path / "sdxl"), "tokenizer_2")):
        broken = tmp_path / f"without-{part}"
        shutil.copytree(base, broken)
        shutil.rmtree(broken / part)
        with pytest.raises(ValueError, match=f"it has no {part}"):
            RealCustomPipeline.from_pretrained(str(broken))
        (broken / part).mkdir()
        with pytest.raises(ValueError, match=f"it has no {part}"):
            RealCustomPipeline.from_pretrained(str(broken))
    pipeline = tiny.tiny_pipeline()
    pipeline.tokenizer = tiny.tiny_tokenizer((*tiny.WORDS, "many", "more", "words", "than", "known"))
    pipeline.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"tokenizer has \d+ tokens, text_encoder knows \d+"):
        RealCustomPipeline.from_pretrained(str(tmp_path / "other"))


def test_a_word_after_an_added_token_is_found() -> None:
    """Textual inversion adds tokens that end a word without saying so."""
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.add_tokens(["<sks>"])
    assert find_word(tokenizer, "a <sks> dog on grass", "dog").positions == (3,)


def test_no_reference_has_no_tokens_after_a_projector() -> None:
    """Dropped in training, a picture's features are zero; its tokens then are too, and the output is the base model's."""
    settings = tiny.tiny_pp_settings()
    model = RealCustomModel(tiny.tiny_unet(), settings, 64, generator=torch.Generator().manual_seed(1))
    features = torch.randn(2, 5 * 16, 64, generator=torch.Generator().manual_seed(0))
    features[1] = 0
    with torch.no_grad():
        tokens = model.project(features)
    assert (tokens[1] == 0).all() and tokens[0].abs().max() > 0


def test_the_black_reference_is_encoded_once(tiny_models: tiny.TinyModels, picture: Picture) -> None:
    pipeline = RealCustomPipeline.from_pretrained(tiny_models.base, tiny_models.adapter, tiny_models.image_encoder)
    guidance = {"uncond": "negative_text_black_image_masked"}
    pipeline.settings = override(pipeline.settings, {"guidance": guidance})
    seen: list[int] = []
    assert pipeline.image_encoder is not None
    model = pipeline.image_encoder.model  # type: ignore[attr-defined]
    model.register_forward_pre_hook(lambda _, positional: seen.append(len(positional[0])))
    for _ in range(2):
        draw(pipeline, [Subject(image=picture(0), word="dog")], num_inference_steps=1)
    assert seen == [1, 1]  # the subject, the black picture
