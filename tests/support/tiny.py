"""Real classes at tiny size with seeded random weights: a Stable Diffusion folder, image encoders, an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from realcustom.base_loading import load_base
from realcustom.checkpoint import Adapter, save_adapter
from realcustom.image_encoder import load_image_encoder
from realcustom.model import RealCustomModel
from realcustom.settings import (
    EncoderKind,
    ImageEncoderSettings,
    MethodSettings,
    Projector,
    SamplerSettings,
    TokenSettings,
    Variant,
)
from realcustom.sprites.text import make_clip_tokenizer

WORDS = ("a", "the", "toy", "dog", "cat", "star", "on", "in", "and", "grass", "snow", "space", "with", "hat", "left")
TEXT_WIDTH = 24
IMAGE_WIDTH = 32
IMAGE_TOKENS = 16
# the description of an adapter that a test says is loaded
ADAPTER = {"id": "0123456789ab", "sha256": "0123456789ab" * 5 + "0123", "base": "tiny", "image_encoder": "tiny"}


def tiny_tokenizer(words: tuple[str, ...] = WORDS, length: int = 77) -> CLIPTokenizer:
    """CLIP's byte-pair rules with the merges that make each word one token."""
    return make_clip_tokenizer(words, length)


def tiny_unet(seed: int = 0, channels: int = 4, sample_size: int = 16) -> UNet2DConditionModel:
    """Blocks (32, 64), one layer each, cross-attention width 24."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return unet.eval().requires_grad_(False)


def tiny_text_encoder(tokenizer: CLIPTokenizer, seed: int = 0) -> CLIPTextModel:
    """Two layers, 24 wide."""
    torch.manual_seed(seed)
    return CLIPTextModel(_text_config(tokenizer)).eval()


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_vae(kl: bool = False, seed: int = 0) -> AutoencoderTiny | AutoencoderKL:
    """4 latent channels at half the pixels' size."""
    torch.manual_seed(seed)
    if kl:
        return AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=32,
        ).eval()
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(0, 0),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    ).eval()


def tiny_pipeline(seed: int = 0, kl: bool = False) -> StableDiffusionPipeline:
    """A whole stock pipeline: 32 px pictures, latents 4 x 16 x 16."""
    tokenizer = tiny_tokenizer()
    return StableDiffusionPipeline(
        vae=tiny_vae(kl, seed),
        text_encoder=tiny_text_encoder(tokenizer, seed),
        tokenizer=tokenizer,
        unet=tiny_unet(seed),
        scheduler=DDIMScheduler(
            clip_sample=False, set_alpha_to_one=False, steps_offset=1, beta_schedule="scaled_linear"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sdxl_unet(seed: int = 0) -> UNet2DConditionModel:
    """SDXL's shape: no attention at the finest level, several blocks a transformer, pooled text and picture sizes."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * TEXT_WIDTH,
        attention_head_dim=(2, 4, 4),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
    )
    return unet.eval().requires_grad_(False)


def tiny_sdxl_pipeline(seed: int = 0) -> StableDiffusionXLPipeline:
    """A whole stock SDXL pipeline: 32 px pictures, latents 4 x 16 x 16."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed + 1)
    return StableDiffusionXLPipeline(
        vae=tiny_vae(kl=True, seed=seed),
        text_encoder=tiny_text_encoder(tokenizer, seed),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tiny_tokenizer(),
        unet=tiny_sdxl_unet(seed),
        scheduler=tiny_pipeline(seed).scheduler,
        add_watermarker=False,
    )


def tiny_sdxl_base(folder: str | Path, seed: int = 0) -> str:
    """A diffusers folder of `tiny_sdxl_pipeline`; returns its path."""
    tiny_sdxl_pipeline(seed).save_pretrained(folder)
    return str(folder)


def tiny_base(folder: str | Path, seed: int = 0, kl: bool = False) -> str:
    """A diffusers folder of `tiny_pipeline`; returns its path."""
    tiny_pipeline(seed, kl).save_pretrained(folder)
    return str(folder)


def tiny_image_encoder(folder: str | Path, seed: int = 0) -> str:
    """A CLIP vision model folder: 32 px, patch 8, so 16 tokens of width 32; returns its path."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=IMAGE_WIDTH,
        intermediate_size=32,
        projection_dim=IMAGE_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    CLIPVisionModel(config).eval().save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return str(folder)


def tiny_siglip_dino(folder: str | Path, seed: int = 0) -> str:
    """Folders of a SigLIP and a DINOv2 with registers, 16 tokens of width 64 together at 32 px; returns "SIGLIP,DINOV2".

    DINOv2 was "trained" at 40 px, so that its position embeddings are interpolated.
    """
    torch.manual_seed(seed)
    sizes = dict(hidden_size=IMAGE_WIDTH, num_hidden_layers=3, num_attention_heads=4, patch_size=8)
    siglip, dino = Path(folder) / "siglip", Path(folder) / "dino"
    SiglipVisionModel(SiglipVisionConfig(image_size=32, intermediate_size=32, **sizes)).save_pretrained(siglip)
    half = [0.5, 0.5, 0.5]
    size = {"height": 32, "width": 32}
    SiglipImageProcessorPil(size=size, image_mean=half, image_std=half).save_pretrained(siglip)
    config = Dinov2WithRegistersConfig(image_size=40, mlp_ratio=1, num_register_tokens=4, **sizes)
    model = Dinov2WithRegistersModel(config)
    torch.nn.init.normal_(model.embeddings.register_tokens)
    model.save_pretrained(dino)
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    BitImageProcessorPil(**imagenet).save_pretrained(dino)
    return f"{siglip},{dino}"


def tiny_pp_settings(projector: Projector = Projector.HIGHRES) -> MethodSettings:
    """RealCustom++ for `tiny_siglip_dino`: 2 x 2 local views of a 64 px picture, no scoring, few steps."""
    deep_only = projector is Projector.HIGHRES
    return MethodSettings(
        variant=Variant.REALCUSTOM_PP,
        image_encoder=ImageEncoderSettings(
            kind=EncoderKind.SIGLIP_DINO,
            high_res=64,
            layers=(-2,) if deep_only else (0, 1, -2),
            dino_layers=(-2,) if deep_only else (0, 1, -2),
        ),
        tokens=TokenSettings(projector=projector, scoring=False),
        sampler=SamplerSettings(num_inference_steps=3),
    )


def tiny_settings() -> MethodSettings:
    """The paper's settings with a small scorer and few steps."""
    return MethodSettings(tokens=TokenSettings(hidden=16), sampler=SamplerSettings(num_inference_steps=3))


def tiny_adapter(path: str | Path, base: str, image_encoder: str, settings: MethodSettings | None = None) -> str:
    """An adapter checkpoint with seeded random weights for these folders; returns its path."""
    settings = settings or tiny_settings()
    loaded = load_base(base)
    encoder = load_image_encoder(image_encoder, settings.image_encoder)
    generator = torch.Generator().manual_seed(1)
    model = RealCustomModel(loaded.unet, settings, encoder.embed_dim, generator, encoder.local_views)
    adapter = Adapter(
        tensors=model.adapter_state_dict(), settings=settings, base=loaded.identity, image_encoder=encoder.identity
    )
    save_adapter(path, adapter)
    return str(path)


@dataclass(frozen=True, kw_only=True)
class TinyModels:
    """Paths of a base model, an image encoder and an adapter that was trained for the two."""

    base: str
    image_encoder: str
    adapter: str

    @property
    def training_options(self) -> tuple[str, ...]:
        """Arguments of the command line that put base and image encoder in the place of the recipe's."""
        return "--set", f"base={self.base}", "--set", f"method.image_encoder.model={self.image_encoder}"

    @property
    def options(self) -> tuple[str, ...]:
        """The same for all three models."""
        return *self.training_options, "--set", f"adapter={self.adapter}"


def write_tiny_models(folder: Path) -> TinyModels:
    """Write the three below `folder`."""
    base, image_encoder = tiny_base(folder / "base"), tiny_image_encoder(folder / "image_encoder")
    adapter = tiny_adapter(folder / "adapter.safetensors", base, image_encoder)
    return TinyModels(base=base, image_encoder=image_encoder, adapter=adapter)
