"""Fine-tuning for each subject, as DreamBooth (arXiv 2208.12242) and LoRA (arXiv 2106.09685) do it, on the drawn world.

The base model itself is trained on pictures of one subject, under a rare word before its noun ("a z star at the left on
grass"), and then drawn from with that word in the prompt. `Training.prior` adds as many pictures of other subjects of the
noun, drawn by the base, under the noun alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from drawn_methods import noise
from peft import LoraConfig
from PIL import Image
from torch import Tensor

from realcustom.base import Base
from realcustom.base_loading import load_base
from realcustom.evaluation.table import Case
from realcustom.sprites import zoo_path
from realcustom.sprites.base import make_scheduler, to_latents, to_pixel_values
from realcustom.sprites.questions import Question, other_views
from realcustom.sprites.text import tokenize
from realcustom.sprites.world import NUM_INFERENCE_STEPS, Scene, Split, draw, scene

RARE = "z"  # in no caption
LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
SHIFT = 2.0  # of timesteps, as the base was trained
PRIOR = 16  # pictures of a noun that the base draws itself
PRIOR_SCENES = 5 * 10**8


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a base is trained on a subject."""

    views: int = 1  # pictures of the subject: the one that an adapter is given, and others
    rank: int = 8  # of the LoRA; 0 = all of the UNet's weights are trained
    prior: bool = False  # prior preservation
    lr: float = 2e-3
    batch_size: int = 4  # and as many of the prior
    stops: tuple[int, ...] = (100, 500)  # steps after which the case is drawn


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What a fine-tuned base has drawn."""

    image: Image.Image
    seconds: float  # of the training up to there


def fine_tuned(case: Case, training: Training) -> Iterator[Tuned]:
    """The case's picture at each of the stops."""
    asked: Question = case.truth.question
    noun, base = case.target_word, load_base(zoo_path("pipeline"))
    base.pipeline.set_progress_bar_config(disable=True)
    shown = [asked.references[0], *other_views(asked, training.views - 1)]
    data = [_data(base, shown, noun, rare=True)]
    if training.prior:
        data.append(_drawn_by_the_base(base, noun))
    parameters, seconds, done = _trainable(base, training), 0.0, 0
    optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(case.seed)
    for stop in training.stops:
        start = time.perf_counter()
        for _ in range(done, stop):
            _step(base, data, optimizer, parameters, training, generator)
        seconds, done = seconds + time.perf_counter() - start, stop
        yield Tuned(image=_draw(base, case), seconds=seconds)


def _data(base: Base, scenes: Sequence[Scene], noun: str, *, rare: bool) -> tuple[Tensor, Tensor]:
    """Latents (n, 12, 16, 16) and text features (n, T, D) of drawings."""
    return to_latents(to_pixel_values([draw(one) for one in scenes])), _features(
        base, [_with_rare(one.caption, noun) if rare else one.caption for one in scenes]
    )


def _with_rare(prompt: str, noun: str) -> str:
    return prompt.replace(noun, f"{RARE} {noun}", 1)


@torch.no_grad()
def _features(base: Base, captions: Sequence[str]) -> Tensor:
    ids = tokenize(base.pipeline.tokenizer, list(captions))
    features: Tensor = base.pipeline.text_encoder(ids).last_hidden_state
    return features


def _drawn_by_the_base(base: Base, noun: str) -> tuple[Tensor, Tensor]:
    """Pictures of the noun in PRIOR scenes, as the base draws them before it is trained."""
    found = (scene(Split.ZOO, PRIOR_SCENES + number) for number in range(40 * PRIOR))
    captions = [one.caption for one in found if one.subjects[0].identity.noun == noun][:PRIOR]
    generators = [torch.Generator().manual_seed(number) for number in range(PRIOR)]
    pixels = base.pipeline(
        captions, generator=generators, num_inference_steps=NUM_INFERENCE_STEPS, guidance_scale=1.0, output_type="np"
    ).images
    return to_latents(torch.from_numpy(pixels).permute(0, 3, 1, 2) * 2 - 1), _features(base, captions)


def _trainable(base: Base, training: Training) -> list[torch.nn.Parameter]:
    """The weights that are trained: a new LoRA's, or all of the UNet's."""
    if training.rank:
        base.unet.add_adapter(
            LoraConfig(r=training.rank, lora_alpha=training.rank, target_modules=list(LAYERS)), "subject"
        )
    else:
        base.unet.requires_grad_(True)
    return [parameter for parameter in base.unet.parameters() if parameter.requires_grad]


def _step(
    base: Base,
    data: Sequence[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.nn.Parameter],
    training: Training,
    generator: torch.Generator,
) -> None:
    """One step: v-prediction on pictures drawn from each of `data`, which weigh alike."""
    chosen = [torch.randint(len(latents), (training.batch_size,), generator=generator) for latents, _ in data]
    latents = torch.cat([of[rows] for (of, _), rows in zip(data, chosen, strict=True)])
    text = torch.cat([of[rows] for (_, of), rows in zip(data, chosen, strict=True)])
    uniform = torch.rand(len(latents), generator=generator)
    timesteps = (1000 * SHIFT * uniform / (1 + (SHIFT - 1) * uniform)).long()
    sample = torch.randn(latents.shape, generator=generator)
    signal = make_scheduler().alphas_cumprod[timesteps].sqrt()[:, None, None, None]
    sigma = (1 - signal**2).sqrt()
    predicted = base.unet(signal * latents + sigma * sample, timesteps, text, return_dict=False)[0]
    loss = torch.nn.functional.mse_loss(predicted, signal * sample - sigma * latents)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


@torch.no_grad()
def _draw(base: Base, case: Case) -> Image.Image:
    """The case's prompt with the rare word, from the case's noise."""
    images = base.pipeline(
        _with_rare(case.prompt, case.target_word),
        generator=noise([case])[0],
        num_inference_steps=NUM_INFERENCE_STEPS,
        guidance_scale=1.0,
    ).images
    image: Image.Image = images[0]
    return image


def pixels(tuned: Sequence[Tuned]) -> np.ndarray:
    """Their pictures, uint8 (n, 32, 32, 3)."""
    return np.stack([np.asarray(one.image.convert("RGB")) for one in tuned])
