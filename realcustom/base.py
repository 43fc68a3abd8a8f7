"""The frozen base model, of Stable Diffusion 1.x's or SDXL's architecture and any size: its parts and what they compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

from realcustom.errors import UsageError
from realcustom.settings import PooledText
from realcustom.tokens import tokenize

MODELS = ("unet", "vae", "text_encoder", "text_encoder_2")


@dataclass(kw_only=True)
class Base:
    """A stock diffusers pipeline, its models frozen and in evaluation mode.

    The parts are read from the pipeline each time: changes made there (another VAE, a LoRA, offload) take effect here.
    """

    pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline
    identity: str  # hub id, or name and content hash of a folder

    @property
    def unet(self) -> UNet2DConditionModel:
        """The UNet."""
        return self.pipeline.unet

    @property
    def vae(self) -> Any:
        """AutoencoderKL or AutoencoderTiny. Raises UsageError where there is none: the latents' shape is read from it."""
        if self.pipeline.vae is None:
            raise UsageError("this pipeline has no VAE, which says what shape latents have: assign pipe.vae")
        return self.pipeline.vae

    @property
    def text_encoder(self) -> Any:
        """CLIPTextModel; SDXL's first one."""
        return self.pipeline.text_encoder

    @property
    def tokenizer(self) -> Any:
        """CLIPTokenizer; SDXL's first one."""
        return self.pipeline.tokenizer

    @property
    def tokenizers(self) -> list[Any]:
        """All tokenizers, one per text encoder."""
        return [self.pipeline.tokenizer, *([self.pipeline.tokenizer_2] if self.is_sdxl else [])]

    @property
    def scheduler(self) -> Any:
        """The base's own diffusers scheduler."""
        return self.pipeline.scheduler

    @property
    def is_sdxl(self) -> bool:
        """Whether the UNet is also conditioned on pooled text and picture sizes."""
        return isinstance(self.pipeline, StableDiffusionXLPipeline)

    @property
    def latent_channels(self) -> int:
        """c."""
        return int(self.vae.config.latent_channels)

    @property
    def takes_mask(self) -> bool:
        """Whether the UNet is an inpainting one: it also reads a mask and the picture around it, 1 + c more channels."""
        return int(self.unet.config.in_channels) == 2 * self.latent_channels + 1

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell and side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures that the model was trained for."""
        return int(self.unet.config.sample_size) * self.vae_scale_factor

    @property
    def device(self) -> torch.device:
        """The device that the models run on; with offload they are stored on another.

        diffusers looks through all modules several times for hooks of offload, which took half of a call's preparation: it
        is asked only where there is one, or where the models are on several devices.
        """
        models = [part for part in vars(self.pipeline).values() if isinstance(part, nn.Module)]
        devices = {next(model.parameters()).device for model in models}
        if len(devices) > 1 or any(map(_has_hook, models)):
            return torch.device(self.pipeline._execution_device)
        return devices.pop()

    @property
    def dtype(self) -> torch.dtype:
        """The number format that the UNet computes in; diffusers' own `dtype` looks through all modules and all names."""
        first: Tensor = next(self.unet.parameters())
        if first.is_floating_point() and not _has_hook(self.unet):
            return first.dtype
        dtype: torch.dtype = self.unet.dtype
        return dtype


def _has_hook(model: nn.Module) -> bool:
    """Whether accelerate or diffusers hooked one of its modules, as offload does."""
    left: list[nn.Module | None] = [model]
    while left:
        module = left.pop()
        if module is not None:
            if "_hf_hook" in vars(module) or "_diffusers_hook" in vars(module):
                return True
            left.extend(module._modules.values())
    return False


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """The text conditioning of the UNet."""

    hidden: Tensor  # (B, T, D)
    pooled: Tensor | None = None  # (B, P), SDXL alone


@torch.no_grad()
def encode_prompts(
    base: Base,
    prompts: Sequence[str],
    pooled: PooledText = PooledText.PROJECTED,
    *,
    prompts_2: Sequence[str] | None = None,
    clip_skip: int | None = None,
    chunks: int = 1,
) -> TextFeatures:
    """The text conditioning of the UNet, equal to that of diffusers' pipelines.

    SD 1.x: the last hidden state after its final norm. SDXL: the last but one hidden states of both text encoders,
    concatenated, and the second one's pooled text.

    Args:
        prompts_2: what SDXL's second text encoder reads; None = the same.
        clip_skip: how many layers before that hidden state.
        chunks: how many times the tokenizer's length is read; the pooled text is that of the first.
    Raises:
        UsageError: there is no tokenizer or text encoder, or a clip_skip beyond the encoder's layers, or a projected text is
            asked for and the second text encoder has no projection, or the text is not as wide as the UNet takes it.
    """
    pipeline = base.pipeline
    for name in ("tokenizer", "text_encoder", *(["tokenizer_2", "text_encoder_2"] if base.is_sdxl else [])):
        if getattr(pipeline, name) is None:
            raise UsageError(
                f"this pipeline has no {name}, and a text is to be read: give prompt_embeds and negative_prompt_embeds"
            )
    ids = tokenize(pipeline.tokenizer, prompts, chunks).to(base.device)
    if not base.is_sdxl and clip_skip is None:
        return TextFeatures(hidden=_joined(base, pipeline.text_encoder(ids)[0], chunks))
    first = pipeline.text_encoder(ids, output_hidden_states=True)
    if not base.is_sdxl:
        encoder = pipeline.text_encoder
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        return TextFeatures(hidden=_joined(base, norm(_layer(first.hidden_states, 1, clip_skip)), chunks))
    ids = tokenize(pipeline.tokenizer_2, prompts_2 or prompts, chunks).to(base.device)
    encoder = pipeline.text_encoder_2
    if pooled is PooledText.UNPROJECTED_COMPAT:
        encoder = getattr(encoder, "text_model", encoder)
    second = encoder(ids, output_hidden_states=True)
    hidden = torch.cat([_layer(each.hidden_states, 2, clip_skip) for each in (first, second)], -1)
    return TextFeatures(hidden=_joined(base, hidden, chunks), pooled=_pooled(base, second, pooled)[::chunks])


def _layer(states: Sequence[Tensor], from_end: int, clip_skip: int | None) -> Tensor:
    index = from_end + (clip_skip or 0)
    if index > len(states):
        raise UsageError(f"clip_skip is at most {len(states) - from_end} for this text encoder, got {clip_skip}")
    return states[-index]


def _joined(base: Base, hidden: Tensor, chunks: int) -> Tensor:
    """(P * chunks, L, D) -> (P, chunks * L, D). Raises UsageError where D is not the UNet's."""
    found, taken = hidden.shape[-1], base.unet.config.cross_attention_dim
    if found != taken:
        raise UsageError(
            f"the text encoder's features are {found} wide, the UNet takes {taken}: use the text encoder of this base model"
        )
    joined: Tensor = hidden.unflatten(0, (-1, chunks)).flatten(1, 2)
    return joined


def _pooled(base: Base, output: Any, pooled: PooledText) -> Tensor:
    if pooled is PooledText.UNPROJECTED_COMPAT:
        compat: Tensor = output.pooler_output
        return compat
    projected: Tensor | None = getattr(output, "text_embeds", None)
    if projected is None:
        raise UsageError(
            f"{base.identity}: its second text encoder is a {type(base.pipeline.text_encoder_2).__name__} without projection; "
            "save a CLIPTextModelWithProjection there, or set method.base.sdxl_pooled to unprojected_compat"
        )
    return projected


@torch.no_grad()
def encode_pixels(base: Base, pixel_values: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> latents (B, c, h, w), the posterior's mean, times the VAE's scaling factor."""
    with _vae_that_does_not_overflow(base) as vae:
        encoded = vae.encode(pixel_values.to(vae.dtype))
        return _scaled(vae, encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode())


@torch.no_grad()
def sample_latents(base: Base, pixel_values: Tensor, generator: torch.Generator | None) -> Tensor:
    """As `encode_pixels`, but drawn from the posterior, as diffusers' pipelines encode a picture; in the UNet's dtype."""
    with _vae_that_does_not_overflow(base) as vae:
        encoded = vae.encode(pixel_values.to(base.device, vae.dtype))
        latents = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.sample(generator)
        return _scaled(vae, latents.to(base.dtype))


def _scaled(vae: Any, latents: Tensor) -> Tensor:
    """The VAE's latents as the UNet takes them."""
    statistics = _latent_statistics(vae, latents)
    if statistics is None:
        return latents * float(vae.config.scaling_factor)
    mean, deviation = statistics
    return (latents - mean) * float(vae.config.scaling_factor) / deviation


@torch.no_grad()
def decode_latents(base: Base, latents: Tensor) -> Tensor:
    """Latents (B, c, h, w) -> pixels (B, 3, H, W) in [-1, 1], clipped."""
    with _vae_that_does_not_overflow(base) as vae:
        latents = latents.to(vae.dtype)
        statistics = _latent_statistics(vae, latents)
        if statistics is None:
            latents = latents / vae.config.scaling_factor
        else:  # in diffusers' order, which gives its last bits
            latents = latents * statistics[1] / vae.config.scaling_factor + statistics[0]
        pixel_values: Tensor = vae.decode(latents, return_dict=False)[0]
    return pixel_values.clamp(-1, 1)


@contextlib.contextmanager
def _vae_that_does_not_overflow(base: Base) -> Iterator[Any]:
    """The VAE, in float32 while it runs if it is in float16 and its configuration says that it overflows there.

    diffusers does the same in each call of SDXL: the VAE may have been replaced, or cast, since the call before.
    """
    vae = base.vae
    overflows = vae.dtype is torch.float16 and bool(getattr(vae.config, "force_upcast", False))
    if overflows:
        vae.to(dtype=torch.float32)
    try:
        yield vae
    finally:
        if overflows:
            vae.to(dtype=torch.float16)


def _latent_statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of each latent channel, (1, c, 1, 1), for VAEs whose configuration has them."""
    mean, deviation = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or deviation is None:
        return None
    return latents.new_tensor(mean).view(1, -1, 1, 1), latents.new_tensor(deviation).view(1, -1, 1, 1)
