"""Complete runs, one function each. Nothing here imports torch or ray, and no model is looked up before it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

from realcustom import presets
from realcustom.evaluation.settings import EvaluateSettings
from realcustom.inference.settings import ServeSettings
from realcustom.preprocessing.settings import (
    BatchSize,
    CaptionSettings,
    ComputeSettings,
    Device,
    EncodeSettings,
    PreprocessSettings,
    ScoreSettings,
    SelectSettings,
    SubjectsSettings,
)
from realcustom.settings import (
    GuidanceSettings,
    ImageEncoderSettings,
    MaskSettings,
    MaskSource,
    MethodSettings,
    SamplerSettings,
    TokenSettings,
)
from realcustom.training.settings import CurriculumPoint, Precision, Schedule, TrainSettings


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """All settings of a run. The two models that several parts share are named once, here."""

    base: str  # diffusers folder or hub id of the frozen text-to-image model
    adapter: str | None = None  # adapter trained for that base, the default of `generate` and `serve`
    method: MethodSettings = field(default_factory=MethodSettings)
    preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    serve: ServeSettings = field(default_factory=ServeSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def for_stages(self) -> PreprocessSettings:
        """`preprocess`, in which `encode` has the run's base and the method's image encoder unless it names its own."""
        encode, image_encoder = self.preprocess.encode, self.method.image_encoder.model
        encode = dataclasses.replace(
            encode, base=encode.base or self.base, image_encoder=encode.image_encoder or image_encoder
        )
        return dataclasses.replace(self.preprocess, encode=encode)


def sprites() -> RunSettings:
    """The synthetic world with the models that ship with this repository: 32 px, minutes on two CPU cores, no download."""
    from realcustom.sprites import ZOO
    from realcustom.sprites.world import NOUNS, NUM_INFERENCE_STEPS, SIZE

    return RunSettings(
        base=str(ZOO / "pipeline"),
        adapter=str(ZOO / "adapter.safetensors"),
        method=MethodSettings(
            image_encoder=ImageEncoderSettings(model=str(ZOO / "image_encoder")),
            tokens=TokenSettings(hidden=128),
            # the subject's weight is well above the text's, as in the paper; both are small, because any guidance costs
            # some similarity here (sprites/README.md)
            guidance=GuidanceSettings(guidance_scale=1.0, subject_guidance_scale=3.0),
            mask=MaskSettings(source=MaskSource.PREVIOUS),  # half the UNet calls, no loss (benchmarks/mask_sources.py)
            sampler=SamplerSettings(num_inference_steps=NUM_INFERENCE_STEPS),
        ),
        preprocess=PreprocessSettings(
            score=ScoreSettings(clip=str(ZOO / "clip"), heads=str(ZOO / "heads")),
            select=SelectSettings(min_side=SIZE - 8),
            caption=CaptionSettings(model=str(ZOO / "blip"), nouns=NOUNS),
            subjects=SubjectsSettings(
                detector=str(ZOO / "grounding_dino"), segmenter=str(ZOO / "sam"), min_box_side=8, max_area=0.6
            ),
            encode=EncodeSettings(resolution=SIZE),
        ),
        train=TrainSettings(
            lr=3e-3,  # for new weights; 1e-4 to train the shipped adapter further
            schedule=Schedule.COSINE,
            steps=200,
            batch_size=16,
            warmup=20,
            # a subject's colours are decided at high noise levels, where the latents do not show them. Other views
            # cannot be copied, but as in the paper the reference is mostly the picture itself, and the text is
            # sometimes dropped: the adapter then also learns the reference's background, which the mask suppresses
            timestep_shift=6.0,
            p_multiview=0.15,
            p_drop_text=0.2,
            val_every=50,
            checkpoint_every=25,
            keep_checkpoints=8,  # all: the quickstart measures some of their adapters
            sample_every=100,
            threads=1,
        ),
        serve=ServeSettings(threads=1, max_pixels=256 * 256, detector=str(ZOO / "grounding_dino")),
    )


# LAION's linear aesthetic head, converted once (docs/preprocessing/models.md)
LAION_HEADS = "models/laion_aesthetic"


def _photographs(resolution: int) -> PreprocessSettings:
    """Preprocessing of photographs from the web with models of the hub, on all GPUs there are.

    The thresholds: of beauty and watermarks those of the data that Stable Diffusion 1.5 was trained on (its model card:
    "laion-aesthetics v2 5+", aesthetic score > 5.0, watermark probability < 0.5); of NSFW the decision of the classifier
    itself, 0.5. Of image and text 0.2 is ours, for alt texts that say nothing of the picture: LAION-5B's 0.28 is for ViT-B/32,
    whose similarities are higher, and a text that is a little wrong gets a synthetic caption beside it.
    """
    return PreprocessSettings(
        # bf16 there; threads: as cloud machines have cores for each GPU, less some (docs/preprocessing/models.md)
        compute=ComputeSettings(device=Device.CUDA, threads=6),
        score=ScoreSettings(
            clip="openai/clip-vit-large-patch14",
            heads=LAION_HEADS,
            nsfw="Falconsai/nsfw_image_detection",
            watermark="prithivMLmods/Watermark-Detection-SigLIP2",
            batch_size=BatchSize.AUTO,
        ),
        select=SelectSettings(
            min_side=resolution // 2, min_aesthetic=5.0, min_image_text=0.2, max_nsfw=0.5, max_watermark=0.5
        ),
        caption=CaptionSettings(model="Salesforce/blip-image-captioning-large", batch_size=BatchSize.AUTO),
        subjects=SubjectsSettings(
            detector="IDEA-Research/grounding-dino-base",
            segmenter="facebook/sam-vit-huge",
            batch_size=BatchSize.AUTO,
        ),
        encode=EncodeSettings(resolution=resolution, batch_size=BatchSize.AUTO),
    )


def paper_sd15() -> RunSettings:
    """The paper on Stable Diffusion 1.5: models of the hub, training on GPUs."""
    return RunSettings(
        base="stable-diffusion-v1-5/stable-diffusion-v1-5",
        method=presets.paper_sd15(),
        preprocess=_photographs(resolution=512),
        train=TrainSettings(
            use_gpu=True,
            num_workers=16,  # the paper's
            precision=Precision.BF16,
            base_dtype=Precision.BF16,
            gradient_checkpointing=True,
        ),
        serve=ServeSettings(num_gpus=1),
    )


def photos_sd15() -> RunSettings:
    """A corpus of photographs from the web to an adapter for Stable Diffusion 1.5, on one machine with GPUs.

    The paper's method. Training differs where the paper's is for 16 GPUs: bf16 and gradient checkpointing, one worker (more
    by `train.num_workers`), and the learning rate that IP-Adapter's authors advise for batches of 64 at 512 px, 1e-4.
    """
    return dataclasses.replace(
        paper_sd15(),
        train=TrainSettings(
            lr=1e-4,
            steps=40_000,
            precision=Precision.BF16,
            base_dtype=Precision.BF16,
            gradient_checkpointing=True,
            use_gpu=True,
            num_workers=1,
        ),
    )


def released_sdxl() -> RunSettings:
    """RealCustom++ on SDXL as released; `realcustom convert` makes an adapter from the released weights."""
    paper = paper_sd15()
    train = dataclasses.replace(
        paper.train,
        p_drop_text=0.1,
        p_drop_image=0.1,
        p_drop_both=0.05,
        # other views where records know some; `ref_aug` stands in for them, and needs the records' pictures
        curriculum=(
            CurriculumPoint(until_step=paper.train.steps // 2, p_multiview=0.0),
            CurriculumPoint(until_step=paper.train.steps, p_multiview=0.5),
        ),
    )
    return dataclasses.replace(
        paper,
        base="stabilityai/stable-diffusion-xl-base-1.0",
        method=presets.released_sdxl(),
        preprocess=_photographs(resolution=1024),
        train=train,
    )


RECIPES: dict[str, Callable[[], RunSettings]] = {
    "sprites": sprites,
    "paper_sd15": paper_sd15,
    "photos_sd15": photos_sd15,
    "released_sdxl": released_sdxl,
}
