"""The loss against an independent computation in numpy (inv. 33)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from realcustom.training.objective import Objective, squared_error


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_objective_equals_numpy(prediction_type: str) -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )
    objective = Objective(scheduler)
    generator = torch.Generator().manual_seed(0)
    latents, noise, prediction = torch.randn(3, 5, 4, 6, 3, generator=generator)
    timesteps = torch.tensor([0, 100, 250, 500, 999])

    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)[timesteps.numpy()].reshape(-1, 1, 1, 1)
    assert np.allclose(np.sqrt(abar.ravel()), [0.999575, 0.945634, 0.820849, 0.525673, 0.068265], atol=2e-6)
    z, eps = latents.double().numpy(), noise.double().numpy()
    noisy = np.sqrt(abar) * z + np.sqrt(1 - abar) * eps
    target = eps if prediction_type == "epsilon" else np.sqrt(abar) * eps - np.sqrt(1 - abar) * z
    error = ((prediction.double().numpy() - target) ** 2).mean(axis=(1, 2, 3))

    assert np.allclose(objective.add_noise(latents, noise, timesteps), noisy, atol=1e-5)
    ours = squared_error(prediction, objective.target(latents, noise, timesteps))
    assert np.allclose(ours, error, rtol=1e-4)
    assert torch.allclose(
        objective.add_noise(latents, noise, timesteps), scheduler.add_noise(latents, noise, timesteps)
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_equal_numpy(prediction_type: str) -> None:
    """The weight times the error of the prediction is min(SNR, gamma) times the error of the z_0 that follows from it."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )
    timesteps = torch.tensor([0, 50, 100, 250, 500, 750, 999])
    ours = Objective(scheduler).min_snr_weights(timesteps, 5.0).double().numpy()
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[timesteps.numpy()]
    snr = abar / (1 - abar)
    # an error e of eps is an error e sqrt((1 - abar) / abar) of z_0; one of v is e sqrt(1 - abar)
    of_start = (1 - abar) / abar if prediction_type == "epsilon" else 1 - abar
    assert np.allclose(ours, np.minimum(snr, 5.0) * of_start, rtol=1e-4)
    assert ours.min() > 0 and ours.max() <= 1 + 1e-6 and (snr[:3] > 5).all() and (snr[4:] < 5).all()


def test_other_kinds_of_bases_are_refused() -> None:
    with pytest.raises(ValueError, match="only diffusion bases"):
        Objective(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="'sample' is neither"):
        Objective(DDIMScheduler(prediction_type="sample"))
