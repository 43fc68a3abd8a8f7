"""The training loss of a tiny model on one seeded batch."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler

from realcustom.model import RealCustomModel
from realcustom.training.objective import Objective, squared_error
from tests.support import tiny

SCHEDULER = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def batch(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Latents, noise, timesteps, text and image tokens."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(4, 4, 16, 16, generator=generator),
        torch.randn(4, 4, 16, 16, generator=generator),
        torch.randint(0, 1000, (4,), generator=generator),
        torch.randn(4, 77, tiny.TEXT_WIDTH, generator=generator),
        torch.randn(4, tiny.IMAGE_TOKENS, tiny.IMAGE_WIDTH, generator=generator),
    )


def loss_of(model: RealCustomModel, quantity: float = 0.6, image: torch.Tensor | None = None) -> torch.Tensor:
    """`image` (4, S, D) instead of the batch's."""
    latents, noise, timesteps, text, own = batch()
    image = own if image is None else image
    objective = Objective(SCHEDULER)
    noisy = objective.add_noise(latents, noise, timesteps)
    prediction = model(noisy, timesteps, text, image, objective.alphas_cumprod[timesteps], quantity)
    return squared_error(prediction, objective.target(latents, noise, timesteps)).mean()
