"""The training objective: diffusion noising, targets and their weighted mean squared error. Pure torch.

Legend: B batch, C latent channels, h w latent size, T diffusion timesteps.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from realcustom.errors import UsageError


class NoiseSchedule(Protocol):
    """The part of a diffusers scheduler that is used."""

    alphas_cumprod: torch.Tensor  # (T,)

    @property
    def config(self) -> object:
        """The scheduler's configuration; `prediction_type` is read."""


class Objective:
    """E||target - model(z_t, t, ...)||^2 of the paper's eq. 1 for a base model's noise schedule and prediction type."""

    def __init__(self, scheduler: NoiseSchedule, device: torch.device | None = None) -> None:
        """Use a scheduler's noise schedule and prediction type.

        Args:
            scheduler: a variance-preserving diffusers scheduler (it has `alphas_cumprod`).
            device: the device of the batches.

        Raises:
            UsageError: a flow-matching scheduler, or a prediction type other than epsilon and v_prediction.
        """
        if not hasattr(scheduler, "alphas_cumprod"):
            raise UsageError(f"{type(scheduler).__name__} has no alphas_cumprod: only diffusion bases can be trained")
        self.prediction_type = str(getattr(scheduler.config, "prediction_type", "epsilon"))
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise UsageError(f"prediction_type {self.prediction_type!r} is neither epsilon nor v_prediction")
        self.alphas_cumprod = scheduler.alphas_cumprod.to(device=device, dtype=torch.float32)  # (T,)

    @property
    def num_train_timesteps(self) -> int:
        """T: timesteps are ints in [0, T)."""
        return len(self.alphas_cumprod)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps (eq. 2), (B, C, h, w)."""
        signal, spread = self._coefficients(timesteps)
        return signal * latents + spread * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The target of the model's output: eps, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0; (B, C, h, w)."""
        if self.prediction_type == "epsilon":
            return noise
        signal, spread = self._coefficients(timesteps)
        return signal * noise - spread * latents

    def min_snr_weights(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        """The weight of each row's error by min-SNR (arXiv 2303.09556), (B,), in (0, 1].

        With SNR = abar_t / (1 - abar_t), the error of z_0 has the weight min(SNR, gamma): that of eps min(SNR, gamma) / SNR,
        that of v min(SNR, gamma) / (SNR + 1).
        """
        alphas = self.alphas_cumprod[timesteps]  # (B,)
        snr = alphas / (1 - alphas)
        return snr.clamp(max=gamma) / (snr if self.prediction_type == "epsilon" else snr + 1)

    def _coefficients(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alphas = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)  # (B, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()


def squared_error(prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error of each row over (C, h, w), in fp32; (B,). With `weights`, (B, 1, h, w), the weighted mean."""
    errors = F.mse_loss(prediction.float(), target.float(), reduction="none")
    if weights is None:
        return errors.flatten(1).mean(1)
    return (errors.mean(1, keepdim=True) * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)
