"""Two complete presets. Imports neither torch nor ray."""

from __future__ import annotations

from realcustom.settings import (
    RELEASED_SOLVER,
    BaseSettings,
    EncoderKind,
    Fit,
    GuidanceMode,
    GuidanceSettings,
    ImageEncoderSettings,
    MaskNorm,
    MaskSettings,
    MethodSettings,
    PooledText,
    Projector,
    SamplerSettings,
    SiglipGelu,
    TimeIdsOrder,
    TimestepSpacing,
    TokenSettings,
    Uncond,
    Variant,
    WordMatching,
    WordSettings,
)


def paper_sd15() -> MethodSettings:
    """The CVPR 2024 paper on Stable Diffusion 1.5 (section 4.1): DDIM, 50 steps, guidance 7.5 and 12.5."""
    return MethodSettings(sampler=SamplerSettings(timestep_spacing=TimestepSpacing.LEADING))


def released_sdxl() -> MethodSettings:
    """RealCustom++ on SDXL as sampled by its released code, including defects that the weights may rely on.

    The release uses its own long negative prompt in every call; pass yours as `negative_prompt`.
    """
    return MethodSettings(
        variant=Variant.REALCUSTOM_PP,
        base=BaseSettings(sdxl_pooled=PooledText.UNPROJECTED_COMPAT, time_ids_order=TimeIdsOrder.WH_COMPAT),
        image_encoder=ImageEncoderSettings(
            kind=EncoderKind.SIGLIP_DINO,
            model="google/siglip-so400m-patch14-384,facebook/dinov2-with-registers-large",
            siglip_gelu=SiglipGelu.EXACT,
            fit=Fit.STRETCH,
        ),
        tokens=TokenSettings(scoring=False, projector=Projector.HIGHRES),
        words=WordSettings(match=WordMatching.RELEASE_COMPAT),
        mask=MaskSettings(norm=MaskNorm.MINMAX_PER_LAYER, eps=1e-6, mask_reuse_after=12),
        guidance=GuidanceSettings(
            mode=GuidanceMode.DIRECT, subject_guidance_scale=3.5, uncond=Uncond.NEGATIVE_TEXT_BLACK_IMAGE_MASKED
        ),
        sampler=SamplerSettings(scheduler=RELEASED_SOLVER, num_inference_steps=25),
    )
