"""The sides that `benchmarks/sampler.py` compares, on one set of random weights: ours, diffusers' two and the release order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from PIL import Image
from release_order import ReleaseOrder
from release_order import install as install_release_order
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from realcustom import RealCustomPipeline, Subject
from realcustom.attention import Conditioning
from realcustom.checkpoint import Adapter, save_adapter
from realcustom.identity import model_identity
from realcustom.launch import run_together
from realcustom.maps import MapRecorder, WordTokens, by_queries, level_grids, text_cross_attentions
from realcustom.mask import influence_mask
from realcustom.model import RealCustomModel
from realcustom.sampling import SamplingParams
from realcustom.settings import (
    AttentionSettings,
    GuidanceMode,
    GuidanceSettings,
    KVInit,
    MaskSettings,
    MaskSource,
    MethodSettings,
    TokenSettings,
)
from realcustom.sprites.text import make_clip_tokenizer

SCHEDULERS = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
)
PROMPT, WORD = "a toy on the grass", "toy"
TEXT_TOKENS = 77
GUIDANCE_SCALE, SCOPE = 3.5, 0.25
SD1 = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """The sizes of the images and of the model."""

    name: str  # prefix of its metrics
    unet: dict[str, Any]
    latent: int  # side in latent cells
    batch: int = 1
    image_tokens: int = 16  # a square number
    image_width: int = 256
    steps: int = 20
    pairs: int = 15

    @property
    def is_xl(self) -> bool:
        return self.unet.get("addition_embed_type") == "text_time"


SMALL = {"block_out_channels": (64, 128, 256, 256), "cross_attention_dim": 256, "attention_head_dim": 8}


def stock_pipeline(size: Size) -> DiffusionPipeline:
    """A whole diffusers pipeline with random weights; only its UNet has the size of the setting."""
    torch.manual_seed(0)
    tokenizer = make_clip_tokenizer(tuple(PROMPT.split()), TEXT_TOKENS)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(0,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    unet = UNet2DConditionModel(sample_size=size.latent, **size.unet)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    parts: dict[str, Any] = {"vae": vae, "unet": unet, "scheduler": scheduler, "tokenizer": tokenizer}
    if size.is_xl:
        parts["tokenizer_2"] = tokenizer
        parts["text_encoder"] = CLIPTextModel(text_config(len(tokenizer), 768))
        parts["text_encoder_2"] = CLIPTextModelWithProjection(text_config(len(tokenizer), 1280))
        return StableDiffusionXLPipeline(**parts, add_watermarker=False)
    parts["text_encoder"] = CLIPTextModel(text_config(len(tokenizer), size.unet["cross_attention_dim"]))
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def text_config(vocabulary: int, width: int) -> CLIPTextConfig:
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=width // 32,
        max_position_embeddings=TEXT_TOKENS,
        **ends,
    )


def image_encoder(size: Size, folder: Path) -> None:
    """A CLIP vision model with as many patches as there are to be image tokens."""
    side = 8 * round(size.image_tokens**0.5)
    config = CLIPVisionConfig(
        hidden_size=size.image_width,
        projection_dim=size.image_width,
        intermediate_size=size.image_width,
        num_hidden_layers=2,
        num_attention_heads=size.image_width // 32,
        image_size=side,
        patch_size=8,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder
    )


def method(mask_reuse_after: int) -> MethodSettings:
    """Setting S's: guidance `direct`, scoring off, so that all sides attend to the same tokens."""
    return MethodSettings(
        tokens=TokenSettings(scoring=False),
        attn=AttentionSettings(kv_init=KVInit.KAIMING),
        mask=MaskSettings(influence_scope=SCOPE, mask_reuse_after=mask_reuse_after),
        guidance=GuidanceSettings(mode=GuidanceMode.DIRECT, subject_guidance_scale=GUIDANCE_SCALE),
    )


@dataclass(kw_only=True)
class Sides:
    """All sides, on one set of weights; each method is one call from noise to latents."""

    size: Size
    ours: RealCustomPipeline
    plain: DiffusionPipeline
    ip_adapter: DiffusionPipeline
    release: ReleaseOrder
    latents: Tensor  # (B, c, h, w), the initial noise of all sides
    embeds: dict[str, Any]  # the text as diffusers takes it, one row
    tokens: Tensor  # (1, S, Di)
    subject: Subject
    given_mask: Tensor = field(default_factory=lambda: torch.zeros(0))  # (1, 1, H*, W*), for the IP-Adapter

    @classmethod
    def make(cls, size: Size, folder: Path, device: str, dtype: torch.dtype) -> Sides:
        """Write model folders as a user would have them, and load every side from them."""
        stock, settings = stock_pipeline(size).to(dtype=dtype), method(size.steps)
        stock.save_pretrained(folder / "base")
        image_encoder(size, folder / "encoder")
        model = RealCustomModel(stock.unet, settings, size.image_width, torch.Generator().manual_seed(1))
        adapter = Adapter(
            tensors=model.adapter_state_dict(),
            settings=settings,
            base=model_identity(str(folder / "base")),
            image_encoder=model_identity(str(folder / "encoder")),
        )
        save_adapter(folder / "adapter.safetensors", adapter)
        del stock, model
        ours = RealCustomPipeline.from_pretrained(
            str(folder / "base"), folder / "adapter.safetensors", str(folder / "encoder"), device, dtype
        )
        plain, ip_adapter, third = (loaded(size, folder / "base", device, dtype) for _ in range(3))
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
        subject = Subject(image=ours.encode_subject(picture), word=WORD)
        ours.set_progress_bar_config(disable=True)
        assert ours.image_encoder is not None
        tokens = ours.image_encoder.encode(ours.image_encoder.prepare(picture)[None]).to(device, dtype)
        vision = {
            path: (attn.to_k_vision.weight, attn.to_v_vision.weight)
            for path, attn in text_cross_attentions(ours.base.unet).items()
        }
        install_ip_adapter(ip_adapter.unet, vision, size.image_tokens)
        install_release_order(third.unet, vision)
        embeds = text_embeds(plain, size, device)
        noise = torch.Generator().manual_seed(2)
        shape = (size.batch, 4, size.latent, size.latent)
        position = 1 + PROMPT.split().index(WORD)
        return cls(
            size=size,
            ours=ours,
            plain=plain,
            ip_adapter=ip_adapter,
            release=ReleaseOrder(
                unet=third.unet,
                scheduler=third.scheduler,
                text=with_conditions(embeds, "", size),
                negative=with_conditions(embeds, "negative_", size),
                word=(torch.arange(TEXT_TOKENS, device=device) == position).float(),
                tokens=tokens.expand(size.batch, -1, -1),
                scope=SCOPE,
                guidance_scale=GUIDANCE_SCALE,
            ),
            latents=torch.randn(shape, generator=noise).to(device, dtype),
            embeds=embeds,
            tokens=tokens,
            subject=subject,
        )

    @torch.no_grad()
    def run_guidance_passes(self, maps: bool) -> list[Tensor]:
        """The prompt alone through our UNet, once a step; with `maps` the word's mask is made each time as well."""
        unet, batch = self.ours.base.unet, self.size.batch
        text = self.embeds["prompt_embeds"].expand(batch, -1, -1)
        words = WordTokens.of(self.release.word.expand(batch, 1, -1))
        grids = by_queries(level_grids(self.size.latent, self.size.latent, len(unet.config.block_out_channels)))
        conditions, settings = self.release.text[1], self.ours.settings.mask
        made = []
        for timestep in range(self.size.steps):
            recorder = MapRecorder(words=words) if maps else None
            conditioning = Conditioning(grids=grids, recorders=[recorder] if recorder else [])
            out = unet(
                self.latents,
                timestep,
                text,
                added_cond_kwargs=conditions,
                cross_attention_kwargs={"conditioning": conditioning},
                return_dict=False,
            )[0]
            made.append(out if recorder is None else influence_mask(recorder.maps, SCOPE, settings))
        return made

    @property
    def unets(self) -> dict[str, UNet2DConditionModel]:
        return {
            "ours": self.ours.base.unet,
            "plain": self.plain.unet,
            "ip_adapter": self.ip_adapter.unet,
            "release": self.release.unet,
        }

    def run_ours(
        self,
        reuse_after: int,
        use_mask: bool = True,
        return_masks: bool = False,
        source: MaskSource = MaskSource.GUIDANCE,
    ) -> Any:
        """`RealCustomPipeline`, with new masks in this many steps; its output."""
        self.ours.settings = replace(self.ours.settings, mask=replace(self.ours.settings.mask, source=source))
        return self.ours(
            PROMPT,
            [self.subject],
            **self.embeds,
            latents=self.latents,
            height=self.size.latent * self.ours.base.vae_scale_factor,
            width=self.size.latent * self.ours.base.vae_scale_factor,
            num_inference_steps=self.size.steps,
            num_images_per_prompt=self.size.batch,
            mask_reuse_after=reuse_after,
            use_mask=use_mask,
            output_type="latent",
            return_masks=return_masks,
        )

    def run_batch(self, rows: int, steps: int) -> Any:
        """So many equal rows in one call, half of whose steps make new masks."""
        return self.ours(
            PROMPT,
            [self.subject],
            generator=[torch.Generator().manual_seed(row) for row in range(rows)],
            height=self.size.latent * self.ours.base.vae_scale_factor,
            width=self.size.latent * self.ours.base.vae_scale_factor,
            num_inference_steps=steps,
            num_images_per_prompt=rows,
            mask_reuse_after=steps // 2,
            output_type="latent",
        ).images

    def run_rows(self, rows: int, steps: int) -> list[Tensor]:
        """So many requests of one image that share UNet calls, each with its own prompt, weights, scope and scheduler."""
        samplers = []
        for row in range(rows):
            scheduler = getattr(diffusers, SCHEDULERS[row % len(SCHEDULERS)]).from_config(self.plain.scheduler.config)
            sampling = SamplingParams(
                seed=row,
                height=self.size.latent * self.ours.base.vae_scale_factor,
                width=self.size.latent * self.ours.base.vae_scale_factor,
                num_inference_steps=steps,
                subject_guidance_scale=2.0 + row,
                influence_scope=0.1 + 0.1 * row,
                mask_reuse_after=steps // 2,
            )
            prompt = " ".join([PROMPT, *["grass"] * row])
            samplers.append(self.ours.prepare(prompt, [self.subject], sampling, scheduler=scheduler).sampler)
        while not samplers[0].done:
            for step in run_together(self.ours.base.unet, [one.launches() for one in samplers]):
                assert not isinstance(step, Exception), step
        return [one.latents for one in samplers]

    def run_plain(self) -> Tensor:
        """Stock Stable Diffusion with classifier-free guidance."""
        return self._diffusers(self.plain)

    def run_ip_adapter(self, mask: Tensor | None = None) -> Tensor:
        """diffusers' IP-Adapter: two rows a step in one batch, the mask resized in every layer."""
        return self._diffusers(
            self.ip_adapter,
            ip_adapter_image_embeds=[torch.cat([torch.zeros_like(self.tokens), self.tokens])[:, None]],
            cross_attention_kwargs={"ip_adapter_masks": [self.given_mask if mask is None else mask]},
        )

    def run_release(self, reused_step: int, replay: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The release order, with new masks in this many steps."""
        return self.release(self.latents, self.size.steps, reused_step, replay)

    @torch.no_grad()
    def run_stock_forwards(self, rows: int) -> None:
        """The stock UNet alone, once a step, with so many rows a picture."""
        latents, text = self.latents.repeat(rows, 1, 1, 1), self.release.text[0].repeat(rows, 1, 1)
        conditions = self.release.text[1]
        added = None if conditions is None else {name: value.repeat(rows, 1) for name, value in conditions.items()}
        for timestep in range(self.size.steps):
            self.plain.unet(latents, timestep, text, added_cond_kwargs=added, return_dict=False)

    @torch.no_grad()
    def run_three_forwards(self) -> Tensor:
        """Three forwards of the stock UNet a step, one after another, and nothing else but the scheduler."""
        scheduler, latents = self.plain.scheduler, self.latents
        scheduler.set_timesteps(self.size.steps, device=latents.device)
        for timestep in scheduler.timesteps:
            for text, conditions in (self.release.text, self.release.text, self.release.negative):
                out = self.plain.unet(latents, timestep, text, added_cond_kwargs=conditions, return_dict=False)[0]
            latents = scheduler.step(out, timestep, latents, return_dict=False)[0]
        return latents

    def _diffusers(self, pipeline: DiffusionPipeline, **arguments: Any) -> Tensor:
        images: Tensor = pipeline(
            **self.embeds,
            latents=self.latents,
            num_inference_steps=self.size.steps,
            num_images_per_prompt=self.size.batch,
            guidance_scale=GUIDANCE_SCALE,
            output_type="latent",
            **arguments,
        ).images
        return images


def loaded(size: Size, folder: Path, device: str, dtype: torch.dtype) -> DiffusionPipeline:
    kind = StableDiffusionXLPipeline if size.is_xl else StableDiffusionPipeline
    off = {} if size.is_xl else {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = kind.from_pretrained(folder, dtype=dtype, **off).to(device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.requires_grad_(False).eval()
    return pipeline


def install_ip_adapter(unet: UNet2DConditionModel, vision: dict[str, tuple[Tensor, Tensor]], tokens: int) -> None:
    """The same as `load_ip_adapter`, with our weights; the tokens arrive projected, which costs diffusers nothing."""
    layers, processors = text_cross_attentions(unet), {}
    for name in unet.attn_processors:
        path = name.removesuffix(".processor")
        if path not in layers:
            processors[name] = AttnProcessor2_0()
            continue
        key, value = vision[path]
        processor = IPAdapterAttnProcessor2_0(key.shape[0], key.shape[1], num_tokens=(tokens,)).to(
            key.device, key.dtype
        )
        with torch.no_grad():
            processor.to_k_ip[0].weight.copy_(key)
            processor.to_v_ip[0].weight.copy_(value)
        processors[name] = processor.requires_grad_(False)
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([torch.nn.Identity()])
    unet.config.encoder_hid_dim_type = "ip_image_proj"


@torch.no_grad()
def text_embeds(pipeline: DiffusionPipeline, size: Size, device: str) -> dict[str, Tensor]:
    """The prompt and the empty text, encoded as diffusers does; by the names of its arguments."""
    asked = {"prompt": PROMPT, "device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    names = ["prompt_embeds", "negative_prompt_embeds"]
    if size.is_xl:
        names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
        asked["negative_prompt"] = ""  # SDXL's pipeline would use zeros if none are given
    return dict(zip(names, pipeline.encode_prompt(**({"negative_prompt": ""} | asked)), strict=True))


def with_conditions(embeds: dict[str, Tensor], kind: str, size: Size) -> tuple[Tensor, dict[str, Tensor] | None]:
    """The text at the batch's size as a UNet takes it."""
    text = embeds[f"{kind}prompt_embeds"].expand(size.batch, -1, -1)
    if not size.is_xl:
        return text, None
    side = size.latent * 8
    ids = torch.tensor([[side, side, 0, 0, side, side]], device=text.device, dtype=text.dtype)
    pooled = embeds[f"{kind}pooled_prompt_embeds"].expand(size.batch, -1)
    return text, {"text_embeds": pooled, "time_ids": ids.expand(size.batch, -1)}
