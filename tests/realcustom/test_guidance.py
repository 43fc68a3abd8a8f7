"""How predictions combine: special weights, and the paper's equation on predictions and on samples."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from realcustom.guidance import Branch, Weights, combine
from realcustom.settings import GuidanceMode


@pytest.fixture
def predictions() -> dict[Branch, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {branch: torch.randn(2, 4, 8, 8, generator=generator) for branch in Branch}


def cascade(text: float, subject: float) -> Weights:
    return Weights(mode=GuidanceMode.CASCADE, text=text, subject=subject, has_subjects=True)


def direct(subject: float) -> Weights:
    return Weights(mode=GuidanceMode.DIRECT, text=7.5, subject=subject, has_subjects=True)


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
    plain = Weights(mode=GuidanceMode.CASCADE, text=7.5, subject=12.5, has_subjects=False)
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
