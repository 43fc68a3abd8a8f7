"""The world's CLIP: a tiny CLIPModel trained from scratch with CLIP's own contrastive loss.

Captions of two scenes may have the same meaning; then both pictures are right for both captions. Some pictures have a
drawn defect, which captions do not mention: linear probes on the image embedding, removed after training, make the
model encode it for the heads that `score` reads (see `sprites.heads`). B pictures, D = 64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from realcustom.sprites.defects import add_forbidden_sign, add_watermark, degrade
from realcustom.sprites.image_encoder import GRID, make_image_processor
from realcustom.sprites.resume import Checkpoint, report_progress
from realcustom.sprites.text import make_clip_tokenizer, make_text_encoder, tokenize
from realcustom.sprites.world import SIZE, Scene, Split, draw, random_for, scene

WIDTH = 64
PATCH = SIZE // GRID
FIRST_SCENE = 6 * 10**8  # first scene; other models use other scenes
CLEAN = 10.0  # the quality of a drawing without defects


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How CLIP is trained."""

    steps: int = 2400
    batch_size: int = 64
    lr: float = 1.5e-3
    second: float = 0.2  # probability of a second subject
    defect: float = 0.45  # probability of a drawn defect
    defect_weight: float = 0.5  # weight of the loss of the probes for defects
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Defects:
    """The heads' targets for a picture."""

    aesthetic: float = CLEAN  # quality, 1 to 10
    nsfw: float = 0.0  # 1: it shows unsafe content (drawn)
    watermark: float = 0.0  # 1: it has one


class DefectReadings(nn.Module):
    """Aesthetic, nsfw and watermark, read linearly from image embeddings (B, D) of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 3)

    def loss(self, image_embeds: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Squared error of the quality over 10 and cross-entropy of the rest; `wanted` (B, 3)."""
        read = self.linear(8 * image_embeds)  # embeddings have length one: a head needs large weights
        quality = nn.functional.mse_loss(read[:, 0], wanted[:, 0] / 10)
        return 10 * quality + nn.functional.binary_cross_entropy_with_logits(read[:, 1:], wanted[:, 1:])


def make_model() -> CLIPModel:
    """64 wide throughout: a text encoder of two layers like the pipeline's, and a ViT of four."""
    text_config = make_text_encoder(make_clip_tokenizer()).config
    vision_config = {
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    config = CLIPConfig(text_config=text_config.to_dict(), vision_config=vision_config, projection_dim=WIDTH)
    return CLIPModel(config)


def train(output: Path, work: Path, steps: int | None = None) -> None:
    """Train CLIP, resuming from `work`, and save model, tokenizer and image processor at `output`."""
    settings = ClipSettings() if steps is None else ClipSettings(steps=steps)
    torch.manual_seed(settings.seed)
    tokenizer, model, readings = make_clip_tokenizer(), make_model().train(), DefectReadings()
    parameters = [*model.parameters(), *readings.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, settings.steps, pct_start=0.1)
    checkpoint = Checkpoint(work / "clip.pt", model=model, readings=readings, optimizer=optimizer, schedule=schedule)
    first = checkpoint.restore()
    stream = _batches(settings, first)
    for step in report_progress("clip", range(first, settings.steps), settings.batch_size):
        images, scenes, defects = next(stream)
        ids = tokenize(tokenizer, [item.caption for item in scenes])
        output_of = model(
            input_ids=ids, attention_mask=_attention_mask(ids, tokenizer.eos_token_id), pixel_values=images
        )
        contrast = contrastive_loss(output_of.logits_per_text, _same_content(scenes))
        seen = readings.loss(output_of.image_embeds, defects)
        optimizer.zero_grad()
        (contrast + settings.defect_weight * seen).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        checkpoint.step(step, every=250, contrast=contrast.item(), defects=seen.item())
    checkpoint.save(settings.steps)
    model.eval().save_pretrained(output)
    tokenizer.save_pretrained(output)
    make_image_processor().save_pretrained(output)


def contrastive_loss(logits_per_text: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy (arXiv 2103.00020, fig. 3), the target shared among pairs with the same meaning.

    Args:
        logits_per_text: (B, B).
        same: (B, B) bool, True where picture and caption of two pairs agree; True on the diagonal.
    """
    target = same.float() / same.sum(1, keepdim=True)
    by_text = nn.functional.cross_entropy(logits_per_text, target)
    by_image = nn.functional.cross_entropy(logits_per_text.T, target)
    return (by_text + by_image) / 2


def content(item: Scene) -> tuple[str, frozenset[tuple[str, str]]]:
    """The meaning of a caption, independent of template and order: background, and noun and place of each subject."""
    return item.background, frozenset((placed.identity.noun, placed.place) for placed in item.subjects)


def picture_with_defect(index: int, image: np.ndarray, probability: float) -> tuple[np.ndarray, Defects]:
    """A picture, uint8 (32, 32, 3), with at most one drawn defect, and the heads' targets for it."""
    rng = random_for(Split.ZOO, index, 4)
    if rng.random() >= probability:
        return image, Defects()
    kind = int(rng.integers(3))
    if kind == 0:
        worse, quality = degrade(image, rng)
        return worse, Defects(aesthetic=quality)
    if kind == 1:
        marked = add_watermark(image, rng.uniform(0.5, 0.9), int(rng.integers(9)))
        return marked, Defects(watermark=1.0)
    return add_forbidden_sign(image, rng), Defects(nsfw=1.0)


def _same_content(scenes: list[Scene]) -> torch.Tensor:
    contents = [content(item) for item in scenes]
    return torch.tensor([[one == other for other in contents] for one in contents])


def _attention_mask(ids: torch.Tensor, eos: int) -> torch.Tensor:
    """One up to and with the first end-of-text token, which is also the padding, (B, L)."""
    ends = (ids == eos).cumsum(1)
    return ((ends == 0) | ((ends == 1) & (ids == eos))).long()


def _batches(settings: ClipSettings, first_step: int) -> Iterator[tuple[torch.Tensor, list[Scene], torch.Tensor]]:
    """Pixel values (B, 3, 32, 32), scenes and the heads' targets (B, 3), from step `first_step` on."""
    for step in range(first_step, settings.steps):
        numbers = range(FIRST_SCENE + step * settings.batch_size, FIRST_SCENE + (step + 1) * settings.batch_size)
        scenes = [scene(Split.ZOO, number, second=settings.second) for number in numbers]
        pairs = [
            picture_with_defect(number, draw(item).image, settings.defect)
            for number, item in zip(numbers, scenes, strict=True)
        ]
        images = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2).float() / 127.5 - 1
        wanted = [[defects.aesthetic, defects.nsfw, defects.watermark] for _, defects in pairs]
        yield images, scenes, torch.tensor(wanted)
