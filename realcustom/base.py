"""The frozen base model: a Stable Diffusion 1.x-shaped diffusers folder or hub id, of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from realcustom.identity import model_identity, split_revision

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@dataclass(kw_only=True)
class Base:
    """The parts of a base model, frozen and in evaluation mode."""

    unet: UNet2DConditionModel
    vae: Any  # AutoencoderKL or AutoencoderTiny
    text_encoder: Any  # CLIPTextModel
    tokenizer: Any  # CLIPTokenizer
    scheduler: Any  # a diffusers scheduler
    identity: str  # hub id, or name and content hash of a folder

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell, a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def resolution(self) -> int:
        """Pixels a side of the pictures that the model was made for."""
        return int(self.unet.config.sample_size) * self.vae_scale_factor

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.unet.device


def check_base(base: str) -> None:
    """Raise ValueError if `base` is a local folder that is not a diffusers model; costs no model loading."""
    path = Path(base)
    if not path.exists():
        if base.startswith((".", "/", "~")) or base.count("/") > 1:
            raise ValueError(f"no base model at {base}: give a folder in diffusers' format or a hub id like owner/name")
        return
    missing = [part for part in PARTS if not (path / part).is_dir()]
    if missing:
        raise ValueError(
            f"{base} is not a base model: it has no {', '.join(missing)} folder; a base model is a folder in diffusers' "
            f"format with {', '.join(PARTS)} (save one with StableDiffusionPipeline.save_pretrained)"
        )


def load_base(base: str, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Base:
    """Load a base model from a folder or hub id (`owner/name` or `owner/name@revision`).

    Raises ValueError if it lacks a part or is not SD 1.x-shaped.
    """
    check_base(base)
    name, revision = split_revision(base)
    pipeline = StableDiffusionPipeline.from_pretrained(
        name,
        revision=revision,
        dtype=dtype,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    parts = {part: getattr(pipeline, part) for part in PARTS}
    for part in ("unet", "vae", "text_encoder"):
        parts[part].requires_grad_(False).eval()
        if device is not None:
            parts[part].to(device)
    if parts["unet"].config.in_channels != parts["vae"].config.latent_channels:
        raise ValueError(
            f"{base}: the UNet takes {parts['unet'].config.in_channels} channels, the VAE has {parts['vae'].config.latent_channels}"
        )
    return Base(**parts, identity=model_identity(base))


def tokenize(base: Base, prompts: Sequence[str]) -> Tensor:
    """Token ids (B, T), padded and truncated to the tokenizer's length."""
    tokens = base.tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=base.tokenizer.model_max_length,
        return_tensors="pt",
    )
    return tokens.input_ids


@torch.no_grad()
def encode_prompts(base: Base, prompts: Sequence[str]) -> Tensor:
    """Text features (B, T, D): the text encoder's last hidden state after its final norm."""
    ids = tokenize(base, prompts).to(base.text_encoder.device)
    return base.text_encoder(ids)[0]


@torch.no_grad()
def encode_pixels(base: Base, pixel_values: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> latents (B, c, h, w), the posterior's mean, times the VAE's scaling factor."""
    pixel_values = pixel_values.to(base.vae.dtype)
    encoded = base.vae.encode(pixel_values)
    latents = encoded.latents if isinstance(base.vae, AutoencoderTiny) else encoded.latent_dist.mode()
    return latents * base.vae.config.scaling_factor


@torch.no_grad()
def decode_latents(base: Base, latents: Tensor) -> Tensor:
    """Latents (B, c, h, w) -> pixels (B, 3, H, W) in [-1, 1], clipped."""
    latents = latents.to(base.vae.dtype) / base.vae.config.scaling_factor
    return base.vae.decode(latents, return_dict=False)[0].clamp(-1, 1)
