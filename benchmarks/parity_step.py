"""Comparisons on tiny models: the release's UNet's weights through our converter, its text encoder, its whole step."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from parity_parts import relative, sdxl_schedule, seeded, solvers
from parity_release import Release
from PIL import Image
from torch import Tensor

from realcustom import RealCustomPipeline, Subject
from realcustom.base import encode_prompts
from realcustom.base_loading import load_base
from realcustom.image_encoder import ImageEncoder
from realcustom.model import RealCustomModel
from realcustom.presets import released_sdxl
from realcustom.released import convert_released
from realcustom.settings import ImageEncoderSettings, MethodSettings
from tests.support import tiny

PROMPT, NEGATIVE, WORD = "a toy dog on grass", "the cat in snow", "dog"
WIDTH, PATCHES, VIEWS = 64, 16, 4  # image features: their width, tokens of a view, local views
STEPS, REUSED_AFTER, HEIGHT, LENGTH = 6, 3, 16, 24  # latents HEIGHT x LENGTH


@dataclass(frozen=True, kw_only=True)
class Models:
    """The release's UNet and the same weights as a base model with a converted adapter."""

    unet: Any
    base: str
    settings: MethodSettings
    pipeline: RealCustomPipeline
    features: tuple[Tensor, Tensor]  # deep (1, S, D) and local (1, 4S, D), of the subject
    black: tuple[Tensor, Tensor]


class GivenFeatures(ImageEncoder):
    """Features that are given: of a black picture, and of any other."""

    embed_dim = WIDTH
    local_views = VIEWS
    identity = "given"

    def __init__(self, settings: ImageEncoderSettings, subject: Tensor, black: Tensor) -> None:
        self.settings, self.subject, self.black = settings, subject, black

    def prepare(self, image: Image.Image) -> Tensor:
        """(3, 1, 1): whether it has any light."""
        return torch.full((3, 1, 1), float(image.getbbox() is not None))

    def encode(self, pixel_values: Tensor) -> Tensor:
        """(B, S_raw, D)."""
        return torch.cat([self.subject if bool(picture.any()) else self.black for picture in pixel_values])

    def to(self, where: torch.device | str | torch.dtype) -> None:
        """Nothing to move."""

    def save(self, folder: Path) -> None:
        """Nothing to write."""


def _unet(release: Release) -> Any:
    """The release's UNet at tiny width, with its 70 cross-attentions; queries and keys enlarged, so that maps differ."""
    config = release.config()
    prompts = config["image_prompt_settings"]
    prompts["vision_projection_config"]["params"] |= {"vision_dim": WIDTH, "out_dim": 2 * tiny.TEXT_WIDTH}
    config |= {
        "block_out_channels": [32, 32, 64],
        "attention_head_dim": [2, 4, 4],
        "norm_num_groups": 8,
        "cross_attention_dim": 2 * tiny.TEXT_WIDTH,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + tiny.TEXT_WIDTH,
        "sample_size": HEIGHT,
    }
    del config["vision_model_config"]
    torch.manual_seed(0)
    unet = release.module("models.unet_2d_condition_custom").UNet2DConditionModel(**config).eval()
    for name, weight in unet.named_parameters():
        if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
            weight.data *= 4
    return unet.requires_grad_(False)


@functools.cache
def models(release: Release) -> Models:
    """Made once: the release's file of weights, a base folder, the adapter that the converter makes of the two."""
    unet, folder = _unet(release), release.scratch
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    stock = UNet2DConditionModel.from_config({name: config[name] for name in config if name in _arguments()})
    own = unet.state_dict()
    stock.load_state_dict({name: own[name] for name in stock.state_dict()})
    torch.save({name: value for name, value in own.items() if name not in stock.state_dict()}, folder / "released.pth")
    pipeline: StableDiffusionXLPipeline = tiny.tiny_sdxl_pipeline()
    pipeline.unet, pipeline.scheduler = stock, sdxl_schedule()
    pipeline.save_pretrained(folder / "base")
    encoder = replace(tiny.tiny_pp_settings().image_encoder, fit=released_sdxl().image_encoder.fit)
    settings = replace(released_sdxl(), image_encoder=encoder)
    adapter = convert_released(
        folder / "released.pth", str(folder / "base"), tiny.tiny_siglip_dino(folder / "encoder"), settings
    )
    base = load_base(str(folder / "base"))
    model = RealCustomModel(base.unet, adapter.settings, WIDTH, local_views=VIEWS)
    model.load_adapter_state_dict(adapter.tensors)
    sides = [
        (
            torch.randn(1, PATCHES, WIDTH, generator=seeded(n)),
            torch.randn(1, VIEWS * PATCHES, WIDTH, generator=seeded(-n)),
        )
        for n in (5, 6)
    ]
    given = GivenFeatures(adapter.settings.image_encoder, *(torch.cat(side, 1) for side in sides))
    ours = RealCustomPipeline(base, adapter.settings, model.requires_grad_(False).eval(), given)
    return Models(
        unet=unet, base=str(folder / "base"), settings=settings, pipeline=ours, features=sides[0], black=sides[1]
    )


def _arguments() -> set[str]:
    """What diffusers' UNet is configured by."""
    return set(UNet2DConditionModel._get_init_keys(UNet2DConditionModel))


def converter(release: Release) -> list[float]:
    """Each trained tensor of the release's UNet, by its name in ours."""
    made = models(release)
    assert made.pipeline.model is not None
    own = made.unet.state_dict()
    return [relative(value, own[name]) for name, value in made.pipeline.model.trained_parameters().items()]


def _text_model(release: Release, base: str) -> Any:
    folders = []
    for number, suffix in enumerate(("", "_2")):
        folder = release.scratch / f"clip-{number}"
        part = tiny.tiny_sdxl_pipeline()
        getattr(part, f"text_encoder{suffix}").save_pretrained(folder)
        getattr(part, f"tokenizer{suffix}").save_pretrained(folder)
        folders.append(str(folder))
    return release.module("models.text").TextModel(folders, ["penultimate_nonorm"]).eval().requires_grad_(False)


def text(release: Release) -> list[float]:
    """Features and pooled text of two prompts."""
    made = models(release)
    model, pooled, found = _text_model(release, made.base), made.settings.base.sdxl_pooled, []
    for prompt in (PROMPT, NEGATIVE):
        theirs, ours = model(prompt), encode_prompts(made.pipeline.base, [prompt], pooled)
        assert ours.pooled is not None
        found += [relative(ours.hidden, theirs.embeddings), relative(ours.pooled, theirs.pooled[-1])]
    return found


def whole_step(release: Release) -> list[float]:
    """Latents and masks after each step, ours against the release's."""
    made = models(release)
    latents = torch.randn(2, 4, HEIGHT, LENGTH, generator=seeded(7))
    expected, masks = _released_steps(release, made, latents)
    found: list[float] = []

    def compare(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        found.append(relative(tensors["masks"][0], masks[step]))
        found.append(relative(tensors["latents"], expected[step]))
        return {}

    scale = made.pipeline.base.vae_scale_factor
    made.pipeline(
        PROMPT,
        [Subject(image=Image.new("RGB", (8, 8), "red"), word=WORD)],
        negative_prompt=NEGATIVE,
        num_images_per_prompt=2,
        latents=latents,
        height=HEIGHT * scale,
        width=LENGTH * scale,
        num_inference_steps=STEPS,
        mask_reuse_after=REUSED_AFTER,
        output_type="latent",
        callback_on_step_end=compare,
    )
    return found


@torch.no_grad()
def _released_steps(release: Release, made: Models, latents: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Each step's latents and mask: text alone for the maps, text and image, negative text and black image, guidance."""
    generate = release.module("mask_generation").mask_generation
    combine = release.module("inference_utils").classifier_free_guidance_image_prompt_cascade
    solver, _ = solvers(release, STEPS)
    model, rows = _text_model(release, made.base), len(latents)
    word = torch.zeros(1, 77)
    word[0, release.word_tokens(model, PROMPT, WORD)] = 1
    height, width = (side * made.pipeline.base.vae_scale_factor for side in latents.shape[-2:])
    sizes = torch.tensor([[width, height, 0, 0, width, height]], dtype=torch.float32).expand(rows, -1)

    def forward(prompt: str, image: tuple[Tensor, Tensor] | None, mask: Tensor | None, timestep: Tensor) -> Any:
        said = model(prompt)
        return made.unet(
            sample=latents,
            timestep=timestep,
            encoder_hidden_states=said.embeddings.expand(rows, -1, -1),
            added_cond_kwargs={"text_embeds": said.pooled[-1].expand(rows, -1), "time_ids": sizes},
            vision_input_dict=None if image is None else [part.expand(rows, -1, -1) for part in image],
            vision_guided_mask=mask,
            return_as_origin=False,
            return_text2image_mask=True,
        )

    after: list[Tensor] = []
    masks: list[Tensor] = []
    mask: Tensor | None = None
    for index, timestep in enumerate(solver.timesteps):
        if index < REUSED_AFTER:
            maps = forward(PROMPT, None, None, timestep)[1]["text2image_crossmap_2d"]
            grid = latents.shape[-2] // 2, latents.shape[-1] // 2
            mask = generate(maps, [], word, 0.25, *grid, mask_mode=["min_max_per_channel"])
        assert mask is not None
        subject = forward(PROMPT, made.features, mask, timestep)[0]
        null = forward(NEGATIVE, made.black, mask, timestep)[0]
        guided = combine(None, subject, null, 3.5, 3.5, 0, "naive_global_direct")
        step = solver.step(guided, "epsilon", timestep, latents)
        latents = step.pred_original_sample if index == STEPS - 1 else step.prev_sample
        after.append(latents)
        masks.append(mask)
    return after, masks
