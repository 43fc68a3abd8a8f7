"""The linear map from latents to colours."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from realcustom.base import encode_pixels
from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.errors import UsageError
from realcustom.output import to_images
from realcustom.preview import DecodedPreview, LatentPreview, make_preview
from realcustom.sprites import zoo_path


def test_the_map_is_applied_to_each_cell() -> None:
    weights = torch.tensor([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [0, 0, 0], [0.1, 0.2, 0.3]])
    preview = LatentPreview(weights=weights, deviation=10.0, factor=2)
    latents = torch.rand(2, 4, 3, 5) * 0.4
    expected = latents[:, :3] * 0.5 + torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    torch.testing.assert_close(preview.pixel_values(latents), expected)
    images = preview.images(latents)
    assert [image.size for image in images] == [(10, 6)] * 2 and images[0].mode == "RGB"


def test_latents_of_noise_are_scaled_down() -> None:
    preview = LatentPreview(weights=torch.tensor([[1.0, 1.0, 1.0], [0, 0, 0]]), deviation=0.1, factor=1)
    latents = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(preview.pixel_values(latents * 14), preview.pixel_values(latents))
    assert float(preview.pixel_values(latents * 14).abs().max()) < 0.6


def test_the_fit_is_the_best_linear_one_and_the_same_each_time(tiny_pipeline: RealCustomPipeline) -> None:
    first, second = (LatentPreview.fit(tiny_pipeline.base) for _ in range(2))
    assert torch.equal(first.weights, second.weights) and first.factor == tiny_pipeline.vae_scale_factor
    other = LatentPreview.fit(tiny_pipeline.base, seed=1)
    assert not torch.equal(first.weights, other.weights)
    assert first.weights.shape == (tiny_pipeline.base.latent_channels + 1, 3)


def test_previews_of_a_trained_vae_look_like_the_picture() -> None:
    base = RealCustomPipeline.from_pretrained(str(zoo_path("pipeline")), device="cpu").base
    preview = LatentPreview.fit(base)
    side = base.resolution
    picture = torch.full((1, 3, side, side), -0.6)
    picture[:, 0, :, side // 2 :] = 0.8  # red on the right
    found = preview.pixel_values(encode_pixels(base, picture))
    half = found.shape[-1] // 2
    assert float(found[0, 0, :, half + 1 :].mean() - found[0, 0, :, : half - 1].mean()) > 0.8
    assert float((found[0, 1] + 0.6).abs().mean()) < 0.25


def test_a_decoder_shows_what_the_vae_would() -> None:
    """The synthetic world's VAE is itself a tiny one: given as the decoder it gives the final image's own pixels."""
    base = RealCustomPipeline.from_pretrained(str(zoo_path("pipeline")), device="cpu").base
    preview = make_preview(base, f"{zoo_path('pipeline')}/vae")
    assert isinstance(preview, DecodedPreview)
    latents = torch.randn(2, base.latent_channels, 16, 12, generator=torch.Generator().manual_seed(0))
    latents *= preview.deviation / 2 / latents.std()
    for found, wanted in zip(preview.images(latents), to_images(base, latents, "pil"), strict=True):
        assert np.abs(np.asarray(found, int) - np.asarray(wanted, int)).max() <= 1


def test_a_decoder_of_other_latents_is_refused(tiny_pipeline: RealCustomPipeline, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"cannot load the preview decoder {tmp_path}"):
        make_preview(tiny_pipeline.base, str(tmp_path))
    channels = tiny_pipeline.base.latent_channels + 1
    diffusers.AutoencoderTiny(latent_channels=channels).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=f"reads latents of {channels} channels"):
        make_preview(tiny_pipeline.base, str(tmp_path))
