"""What one inference step hands from part to part (section 3.3): each argument written out and compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, KDPM2DiscreteScheduler
from PIL import Image
from torch import Tensor

from realcustom import RealCustomPipeline, Subject, attention
from realcustom.config import override
from realcustom.maps import text_cross_attentions
from realcustom.schedule import alphas_cumprod_at
from realcustom.scoring import select_tokens
from realcustom.settings import MaskResize
from tests.support import tiny

Picture = Callable[[int], Image.Image]
PROMPT = "a dog on grass"


def draw(pipeline: RealCustomPipeline, subjects: Any, prompt: Any = PROMPT, **arguments: Any) -> Any:
    arguments = {"num_inference_steps": 3, "output_type": "latent", "return_masks": True, **arguments}
    count = 1 if isinstance(prompt, str) else len(prompt)
    generators = [torch.Generator().manual_seed(3 + row) for row in range(count)]
    return pipeline(prompt, subjects, generator=generators, **arguments)


def calls_of(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Arguments and result of each call of a method from now on."""
    seen: list[tuple[Any, ...]] = []
    method = getattr(owner, name)

    def look(*arguments: Any) -> Any:
        result = method(*arguments)
        seen.append((*arguments, result))
        return result

    monkeypatch.setattr(owner, name, look)
    return seen


@pytest.mark.parametrize("context", ["latent", "conv_in"])
def test_what_the_scorer_is_given(
    pipeline: RealCustomPipeline, picture: Picture, monkeypatch: pytest.MonkeyPatch, context: str
) -> None:
    """Text, the scaled latent times this step's mask, all image tokens, this step's noise level, the word's tokens."""
    if context == "conv_in":
        settings = override(pipeline.settings, {"tokens": {"visual_context": context}})
        pipeline = RealCustomPipeline(pipeline.base, settings, None, pipeline.image_encoder)
        from realcustom.model import RealCustomModel

        model = RealCustomModel(pipeline.base.unet, settings, tiny.IMAGE_WIDTH).requires_grad_(False).eval()
        pipeline.model = model
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.base.scheduler.config)  # its input is scaled
    assert pipeline.model is not None and pipeline.model.adaptive_scoring is not None
    scored = calls_of(pipeline.model.adaptive_scoring, "forward", monkeypatch)
    inputs: list[tuple[Tensor, Tensor]] = []
    pipeline.base.unet.register_forward_pre_hook(lambda _, positional: inputs.append(positional[:2]))
    out = draw(pipeline, [Subject(image=picture(0), word="dog")])
    assert len(scored) == 3 and len(inputs) == 6
    for step, (text, latents, image, alphas, words, scores) in enumerate(scored):
        scaled, timestep = inputs[2 * step]  # the guidance branch's: what the UNet sees
        (mask,) = out.masks[step]
        expected = scaled if context == "latent" else pipeline.base.unet.conv_in(scaled)
        assert torch.equal(latents, expected * mask)
        ids = pipeline.base.tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
        assert torch.equal(text, pipeline.base.text_encoder(ids)[0])
        assert words.nonzero().tolist() == [[0, 2]]  # BOS, a, dog
        table = pipeline.base.scheduler.alphas_cumprod
        near = table[round(float(timestep))]
        assert alphas.shape == (1,) and alphas[0] == pytest.approx(float(near), rel=0.02)
        assert image.shape == (1, tiny.IMAGE_TOKENS, tiny.IMAGE_WIDTH) and scores.shape == (1, tiny.IMAGE_TOKENS)
        assert select_tokens(scores, 0.8)[0].shape == (1, 12)


def test_early_steps_listen_to_the_text_and_late_ones_to_the_latent(
    pipeline: RealCustomPipeline, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pipeline.model is not None
    scored = calls_of(pipeline.model.adaptive_scoring, "forward", monkeypatch)
    draw(pipeline, [Subject(image=picture(0), word="dog")], num_inference_steps=10)
    levels = [float(alphas) for _, _, _, alphas, _, _ in scored]
    assert levels == sorted(levels) and levels[0] < 0.1 and levels[-1] > 0.9


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # diffusers' own, in KDPM2
def test_noise_levels_between_timesteps() -> None:
    """Of integers the table's; between them by sigma, as the schedules that come there go themselves."""
    config = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).config
    ddim = DDIMScheduler.from_config(config)
    assert alphas_cumprod_at(ddim, torch.tensor(500)) == ddim.alphas_cumprod[500]
    assert alphas_cumprod_at(ddim, torch.tensor(999)) == ddim.alphas_cumprod[999]
    for kind, karras in ((EulerDiscreteScheduler, True), (KDPM2DiscreteScheduler, False)):
        scheduler = kind.from_config(config, use_karras_sigmas=karras)
        scheduler.set_timesteps(12)
        latents = torch.ones(1, 4, 2, 2)
        for timestep in scheduler.timesteps[:-1]:
            scaled = scheduler.scale_model_input(latents, timestep)  # 1 / sqrt(1 + sigma^2) = sqrt(abar)
            level = alphas_cumprod_at(scheduler, timestep)
            assert float(level.sqrt()) == pytest.approx(float(scaled[0, 0, 0, 0]), abs=2e-3)
            scheduler.step(torch.zeros_like(latents), timestep, latents)


def test_a_recorded_map_is_the_layers_own_attention(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """Recomputed from the layer's inputs and weights in float64, cross- and self-attention: scale 1 / sqrt(d) included."""
    pipeline.settings = override(pipeline.settings, {"mask": {"self_refine": True}})
    recorders = []
    inputs: dict[str, tuple[Tensor, Tensor | None]] = {}

    def keep(path: str) -> Any:
        def look(module: Any, positional: Any, named: dict[str, Any]) -> None:
            conditioning = named["conditioning"]
            if conditioning.recorders:
                recorders.append(conditioning.recorders[0])
                inputs[path] = (positional[0], named.get("encoder_hidden_states"))

        return look

    for path, module in pipeline.base.unet.named_modules():
        if path.endswith(("attn1", "attn2")):
            module.register_forward_pre_hook(keep(path), with_kwargs=True)
    draw(pipeline, [Subject(image=picture(0), word="dog")], num_inference_steps=1)
    recorder = recorders[0]

    def attention_of(path: str) -> Tensor:
        attn, (hidden, text) = pipeline.base.unet.get_submodule(path), inputs[path]
        context = hidden if text is None else text
        query, key = (
            layer(states).double().unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for layer, states in ((attn.to_q, hidden), (attn.to_k, context))
        )
        return torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, -1).mean(1)  # (B, N, T)

    paths = [path for path in inputs if path.endswith("attn2")]
    assert paths == [path for path in inputs if path in text_cross_attentions(pipeline.base.unet)]
    for path, found in zip(paths, recorder.maps, strict=True):
        expected = attention_of(path)[..., 2].view_as(found[0, 0][None])
        assert (found[:, 0] - expected).abs().max() <= 1e-6
    fine = [attention_of(path) for path in inputs if path.endswith("attn1") and inputs[path][0].shape[1] == 256]
    assert len(fine) == 3 and (recorder.self_maps - sum(fine)).abs().max() <= 1e-6


def test_how_masks_are_resized_and_weighed_in_layers(
    pipeline: RealCustomPipeline, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings reach the layers: the way of resizing, and the visual term's scale."""
    asked = []
    resize = attention.resize_mask

    def look(mask: Tensor, grid: tuple[int, int], how: MaskResize) -> Tensor:
        asked.append((grid, how))
        return resize(mask, grid, how)

    monkeypatch.setattr(attention, "resize_mask", look)
    before = draw(pipeline, [Subject(image=picture(0), word="dog")], num_inference_steps=1).images
    assert {how for _, how in asked} == {MaskResize.BILINEAR} and {grid for grid, _ in asked} == {(16, 16), (8, 8)}
    asked.clear()
    pipeline.settings = override(pipeline.settings, {"mask": {"mask_resize": "area"}})
    draw(pipeline, [Subject(image=picture(0), word="dog")], num_inference_steps=1)
    assert {how for _, how in asked} == {MaskResize.AREA}
    assert pipeline.model is not None
    pipeline.model.settings = override(pipeline.model.settings, {"attn": {"scale": 0.0}})
    nothing = draw(pipeline, [Subject(image=picture(0), word="dog")], num_inference_steps=1, guidance_scale=5.0).images
    plain = draw(pipeline, [], num_inference_steps=1, guidance_scale=5.0).images
    assert (nothing - plain).abs().max() <= 1e-4 and not torch.allclose(before, plain, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*ignores the prompt")  # weights of 0 too
@pytest.mark.parametrize(
    ("mode", "text", "subject", "rescale"),
    [
        *(("direct", *weights, {}) for weights in ((5.0, 3.0), (5.0, 1.0), (1.0, 3.0), (5.0, 0.0), (0.0, 2.0))),
        *(("cascade", *weights, {}) for weights in ((5.0, 3.0), (5.0, 5.0), (0.0, 2.0))),
        *((mode, 5.0, 3.0, {"guidance_rescale": 0.5}) for mode in ("direct", "cascade")),
        ("cascade", 5.0, 3.0, {"guidance_rescale": 0.5, "rescale_by_mask": True}),
    ],
)
def test_rows_without_a_subject_are_plain_guidance_in_every_mode(
    pipeline: RealCustomPipeline, picture: Picture, mode: str, text: float, subject: float, rescale: dict[str, Any]
) -> None:
    """inv. 7: a row is what it is alone, whatever the others have; at every special weight."""
    guidance = {"mode": mode, "guidance_scale": text, "subject_guidance_scale": subject, **rescale}
    tokens = {"text_mask_mode": "exclude"}  # an absent subject has no word whose tokens would stay
    pipeline.settings = override(pipeline.settings, {"guidance": guidance, "tokens": tokens})
    subjects = [[Subject(image=picture(0), word="dog")], []]
    prompts = [PROMPT, "a cat in the snow"]
    together = draw(pipeline, subjects, prompts, num_inference_steps=2, mask_reuse_after=1).images
    assert torch.isfinite(together).all()
    for row in range(2):
        generator = torch.Generator().manual_seed(3 + row)
        alone = pipeline(
            prompts[row],
            subjects[row],
            generator=generator,
            num_inference_steps=2,
            mask_reuse_after=1,
            output_type="latent",
        ).images
        assert (together[row] - alone[0]).abs().max() <= 1e-4, row


def test_masked_rescaling_is_told_of_the_mask(pipeline: RealCustomPipeline, picture: Picture) -> None:
    dog = [Subject(image=picture(0), word="dog")]
    images = []
    for by_mask in (False, True):
        guidance = {"guidance_rescale": 0.7, "rescale_by_mask": by_mask}
        pipeline.settings = override(pipeline.settings, {"guidance": guidance})
        images.append(draw(pipeline, dog, num_inference_steps=1).images)
    inside = draw(pipeline, dog, num_inference_steps=1).masks[0][0][0, 0] > 0
    difference = (images[0] - images[1]).abs().amax((0, 1))
    assert difference[inside].max() == 0 and difference[~inside].min() > 0


def test_subjects_everywhere_beside_a_row_without(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """use_mask=False, on a picture that is not square: the stand-in mask has the grid's size."""
    out = draw(
        pipeline,
        [[Subject(image=picture(0), word="dog")], []],
        [PROMPT, "a cat"],
        use_mask=False,
        height=32,
        width=40,
        num_inference_steps=1,
    )
    assert torch.isfinite(out.images).all() and out.masks == []
