"""The world's segmenter: a tiny SamModel that segments the object in a box, trained from scratch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    SamConfig,
    SamImageProcessorPil,
    SamMaskDecoderConfig,
    SamModel,
    SamProcessor,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from realcustom.sprites.resume import Checkpoint, report_progress
from realcustom.sprites.world import SIZE, Split, draw, random_for, scene

FIRST_SCENE = 4 * 10**8  # first scene; other models use other scenes
WIDTH = 96  # of the features of a patch


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings:
    """How the segmenter is trained."""

    steps: int = 4000
    batch_size: int = 16
    lr: float = 1e-3
    second: float = 0.3  # probability of a second subject
    jitter: float = 0.05  # standard deviation of a box's edges, shares of its side
    rough: float = 0.15  # probability of a box that is four times as far off, for learning low scores
    seed: int = 0


def make_processor() -> SamProcessor:
    """Pictures with their longer side at 32 px, padded to a square, [-1, 1]."""
    square = {"height": SIZE, "width": SIZE}
    return SamProcessor(
        SamImageProcessorPil(
            size={"longest_edge": SIZE},
            pad_size=square,
            mask_size={"longest_edge": SIZE},
            mask_pad_size=square,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
    )


def make_model() -> SamModel:
    """Under a million parameters: patches of 4 px, masks of 32 x 32."""
    vision = SamVisionConfig(
        image_size=SIZE,
        patch_size=4,
        hidden_size=WIDTH,
        output_channels=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        mlp_ratio=2.0,
        window_size=4,
        global_attn_indexes=[1, 3],
        num_pos_feats=WIDTH // 2,
        initializer_range=0.02,
    )
    prompt = SamPromptEncoderConfig(hidden_size=WIDTH, image_size=SIZE, patch_size=4, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(
        hidden_size=WIDTH, mlp_dim=2 * WIDTH, num_hidden_layers=2, num_attention_heads=4, iou_head_hidden_dim=WIDTH
    )
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    with torch.no_grad():  # waves of a period as long as the picture: the default, for 1024 px, is noise at 8 x 8 cells
        model.shared_image_embedding.positional_embedding.normal_(0.0, 1.0)
    return model


def jitter_box(box: tuple[int, int, int, int], rng: np.random.Generator, settings: SegmenterSettings) -> np.ndarray:
    """A box (4,) as a detector would give it: each edge a little off, within the picture, not empty."""
    scale = settings.jitter * (4 if rng.random() < settings.rough else 1)
    width, height = box[2] - box[0], box[3] - box[1]
    moved = np.array(box) + rng.normal(0, scale, 4) * np.array([width, height, width, height])
    moved[2:] = np.maximum(moved[2:], moved[:2] + 2)
    clipped: np.ndarray = np.clip(moved, 0, SIZE)
    return clipped.astype(np.float32)


def batches(settings: SegmenterSettings, first_step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Pixel values (B, 3, 32, 32), boxes (B, 1, 4) and masks (B, 32, 32) from step `first_step` on."""
    for step in range(first_step, settings.steps):
        images, boxes, masks = [], [], []
        for place in range(settings.batch_size):
            number = FIRST_SCENE + step * settings.batch_size + place
            rng = random_for(Split.ZOO, number, 2)
            drawing = draw(scene(Split.ZOO, number, second=settings.second))
            chosen = int(rng.integers(len(drawing.boxes)))
            images.append(drawing.image)
            boxes.append(jitter_box(drawing.boxes[chosen], rng, settings))
            masks.append(drawing.masks[chosen])
        pixel_values = torch.from_numpy(np.stack(images).astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
        yield pixel_values, torch.from_numpy(np.stack(boxes))[:, None], torch.from_numpy(np.stack(masks)).float()


def segmentation_loss(
    logits: torch.Tensor, scores: torch.Tensor, masks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss of the mask (cross-entropy and Dice), loss of the score, and the masks' IoU (B,).

    Args:
        logits, masks: (B, 32, 32).
        scores: the model's estimate (B,) of the IoU.
    """
    probability = logits.sigmoid()
    dice = 1 - (2 * (probability * masks).sum((1, 2)) + 1) / ((probability + masks).sum((1, 2)) + 1)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, masks) + dice.mean()
    found = logits.detach() > 0
    shared = (found & masks.bool()).sum((1, 2))
    iou = shared / (found | masks.bool()).sum((1, 2)).clamp(min=1)
    return loss, nn.functional.mse_loss(scores, iou), iou


def train(output: Path, work: Path, steps: int | None = None) -> None:
    """Train the segmenter, resuming from `work`, and save model and processor at `output`."""
    settings = SegmenterSettings() if steps is None else SegmenterSettings(steps=steps)
    torch.manual_seed(settings.seed)
    model = make_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, settings.steps, pct_start=0.08)
    checkpoint = Checkpoint(work / "sam.pt", model=model, optimizer=optimizer, schedule=schedule)
    first = checkpoint.restore()
    stream = batches(settings, first)
    for step in report_progress("sam", range(first, settings.steps), settings.batch_size):
        pixel_values, boxes, masks = next(stream)
        answer = model(pixel_values=pixel_values, input_boxes=boxes, multimask_output=False)
        loss, score_loss, iou = segmentation_loss(answer.pred_masks[:, 0, 0], answer.iou_scores[:, 0, 0], masks)
        optimizer.zero_grad()
        (loss + score_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        checkpoint.step(step, every=250, loss=loss.item(), score=score_loss.item(), iou=iou.mean().item())
    checkpoint.save(settings.steps)
    model.eval().save_pretrained(output)
    make_processor().save_pretrained(output)
