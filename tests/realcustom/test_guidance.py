"""How predictions combine: special weights, and the paper's equation on predictions and on samples."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from realcustom.guidance import Branch, Weights, combine
from realcustom.settings import GuidanceMode, GuidanceSettings, Uncond


@pytest.fixture
def predictions() -> dict[Branch, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {branch: torch.randn(2, 4, 8, 8, generator=generator) for branch in Branch}


def weights_of(mode: GuidanceMode, text: float, subject: float, *, has_subjects: bool = True, **more: Any) -> Weights:
    settings = GuidanceSettings(mode=mode, guidance_scale=text, subject_guidance_scale=subject, **more)
    return Weights(settings=settings, has_subjects=has_subjects)


def cascade(text: float, subject: float) -> Weights:
    return weights_of(GuidanceMode.CASCADE, text, subject)


def direct(subject: float) -> Weights:
    return weights_of(GuidanceMode.DIRECT, 7.5, subject)


def test_the_papers_equation(predictions: dict[Branch, Tensor]) -> None:
    null, text, subject = (predictions[branch] for branch in Branch)
    for w_t, w_i in itertools.product((0.0, 2.0, 7.5), (3.0, 12.5)):
        expected = null + w_t * (text - null) + w_i * (subject - text)
        assert torch.equal(combine(predictions, cascade(w_t, w_i)), expected)
        weights = cascade(w_t, w_i).coefficients()
        assert sum(weights.values()) == pytest.approx(1)
        assert torch.allclose(sum(weights[b] * predictions[b] for b in Branch), expected, atol=1e-4)  # type: ignore[arg-type]


def test_special_weights(predictions: dict[Branch, Tensor]) -> None:
    """inv. 23."""
    null, text, subject = (predictions[branch] for branch in Branch)
    plain = weights_of(GuidanceMode.CASCADE, 7.5, 12.5, has_subjects=False)
    cfg = null + 7.5 * (text - null)
    assert torch.equal(combine(predictions, plain), cfg)
    assert torch.equal(combine(predictions, cascade(7.5, 0.0)), cfg)  # w_i = 0: plain CFG, bitwise
    assert (combine(predictions, cascade(4.0, 4.0)) - combine(predictions, direct(4.0))).abs().max() <= 1e-6
    assert (combine(predictions, cascade(1.0, 1.0)) - subject).abs().max() <= 1e-6
    assert (combine(predictions, cascade(1.0, 0.0)) - text).abs().max() <= 1e-6
    assert torch.equal(combine(predictions, cascade(0.0, 0.0)), null)  # bitwise
    only_text = combine(predictions, cascade(1.0, 6.0))
    assert (only_text - (text + 6.0 * (subject - text))).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("weights", "branches"),
    [
        (cascade(7.5, 12.5), {"UNCONDITIONAL", "GUIDANCE", "GENERATION"}),
        (cascade(7.5, 0.0), {"UNCONDITIONAL", "GUIDANCE"}),
        (cascade(5.0, 5.0), {"UNCONDITIONAL", "GENERATION"}),
        (cascade(1.0, 5.0), {"GUIDANCE", "GENERATION"}),
        (cascade(1.0, 1.0), {"GENERATION"}),
        (cascade(0.0, 0.0), {"UNCONDITIONAL"}),
        (direct(3.5), {"UNCONDITIONAL", "GENERATION"}),
        (direct(1.0), {"GENERATION"}),
        (direct(0.0), {"UNCONDITIONAL"}),
        # a deviation that rescales is needed, whatever its prediction weighs
        (weights_of(GuidanceMode.DIRECT, 7.5, 0.0, guidance_rescale=0.7), {"UNCONDITIONAL", "GENERATION"}),
        (weights_of(GuidanceMode.DIRECT, 7.5, 0.0), {"UNCONDITIONAL"}),
        (weights_of(GuidanceMode.CASCADE, 7.5, 0.0), {"UNCONDITIONAL", "GUIDANCE"}),
        (
            weights_of(GuidanceMode.CASCADE, 5.0, 5.0, guidance_rescale=0.7, rescale_by_mask=True),
            {"UNCONDITIONAL", "GUIDANCE", "GENERATION"},
        ),
        (weights_of(GuidanceMode.CASCADE, 5.0, 5.0, rescale_by_mask=True), {"UNCONDITIONAL", "GENERATION"}),
        (
            weights_of(GuidanceMode.CASCADE, 7.5, 3.0, guidance_rescale=0.7, has_subjects=False),
            {"UNCONDITIONAL", "GUIDANCE"},
        ),
    ],
)
def test_a_branch_without_weight_is_not_needed(weights: Weights, branches: set[str]) -> None:
    assert {branch.name for branch in weights.branches()} == branches


def test_guidance_on_predictions_is_guidance_on_samples(predictions: dict[Branch, Tensor]) -> None:
    """inv. 27: eq. 13 on the prediction equals eq. 13 on z_{t-1} for DDIM with eta 0 and no clipping."""
    scheduler = DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(50)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for timestep in scheduler.timesteps[[0, 20, 45]]:
        on_prediction = scheduler.step(combine(predictions, cascade(7.5, 12.5)), timestep, latents).prev_sample
        stepped = {b: scheduler.step(p, timestep, latents).prev_sample for b, p in predictions.items()}
        on_samples = combine(stepped, cascade(7.5, 12.5))
        assert (on_prediction - on_samples).abs().max() <= 1e-5 * max(1.0, float(on_samples.abs().max()))


@pytest.mark.parametrize("mode", [GuidanceMode.DIRECT, GuidanceMode.CASCADE])
def test_rescaling_brings_the_deviation_towards_the_generation_branch(
    predictions: dict[Branch, Tensor], mode: GuidanceMode
) -> None:
    plain = combine(predictions, weights_of(mode, 7.5, 12.5))
    for phi in (0.5, 1.0):
        scaled = combine(predictions, weights_of(mode, 7.5, 12.5, guidance_rescale=phi)).numpy()
        for row in range(2):
            target, own = predictions[Branch.GENERATION][row].numpy(), plain[row].numpy()
            factor = phi * target.std(ddof=1) / own.std(ddof=1) + 1 - phi
            np.testing.assert_allclose(scaled[row], own * factor, atol=1e-5)
            if phi == 1.0:
                assert scaled[row].std(ddof=1) == pytest.approx(target.std(ddof=1), rel=1e-5)


def test_masked_rescaling_tells_inside_from_outside(predictions: dict[Branch, Tensor]) -> None:
    weights = weights_of(GuidanceMode.CASCADE, 7.5, 12.5, guidance_rescale=1.0, rescale_by_mask=True)
    plain = combine(predictions, cascade(7.5, 12.5))
    mask = torch.zeros(2, 2, 4, 4)  # two subjects, on a grid of half the latent's size
    mask[:, 0, :2], mask[:, 1, 2, :2] = 0.5, 1.0
    scaled = combine(predictions, weights, mask)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[:4], inside[4:6, :4] = True, True
    for branch, where in ((Branch.GENERATION, inside), (Branch.GUIDANCE, ~inside)):
        factor = predictions[branch].std((1, 2, 3)) / plain.std((1, 2, 3))
        expected = plain * factor[:, None, None, None]
        torch.testing.assert_close(scaled[..., where], expected[..., where])


def test_a_constant_prediction_is_not_rescaled_to_nan() -> None:
    flat = dict.fromkeys(Branch, torch.ones(1, 4, 2, 2))
    weights = weights_of(GuidanceMode.DIRECT, 7.5, 3.0, guidance_rescale=0.5)
    assert torch.equal(combine(flat, weights), flat[Branch.GENERATION])


def test_which_branches_see_the_subject() -> None:
    black = Uncond.NEGATIVE_TEXT_BLACK_IMAGE_MASKED
    assert cascade(7.5, 12.5).with_subjects() == (Branch.GENERATION,)
    seen = weights_of(GuidanceMode.DIRECT, 7.5, 3.5, uncond=black).with_subjects()
    assert seen == (Branch.UNCONDITIONAL, Branch.GENERATION)
    assert weights_of(GuidanceMode.DIRECT, 7.5, 3.5, uncond=black, has_subjects=False).with_subjects() == ()
