"""The world's detector: a tiny GroundingDinoForObjectDetection, trained from scratch.

transformers' own loss needs SciPy for its matching. With at most two boxes per picture the best matching is found by
trying all of them, in one batch. In addition to the decoder, every cell of the encoder is trained on the box that it
lies in: one query per picture gives too little signal.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    SwinConfig,
)
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoObjectDetectionOutput

from realcustom.sprites.bert import bert_config, make_bert_tokenizer
from realcustom.sprites.resume import Checkpoint, report_progress
from realcustom.sprites.world import NOUNS, SIZE, Drawing, Scene, Split, draw, random_for, scene

TEXT_LENGTH = 24  # tokens of a prompt in training, padding included; the model takes up to `max_text_len`
FIRST_SCENE = 3 * 10**8  # first scene; other models use other scenes
QUERIES = 10
NONE = -100.0  # the logit of a padding token, for which the model gives minus infinity


@dataclass(frozen=True, kw_only=True)
class DetectorSettings:
    """How the detector is trained."""

    steps: int = 4000
    batch_size: int = 16
    lr: float = 1e-3
    second: float = 0.3  # probability of a second subject
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt for a picture, and its boxes."""

    text: str  # "a star. a mug."
    boxes: tuple[tuple[float, float, float, float], ...]  # centre x, y, width, height, shares of the picture
    phrases: tuple[int, ...]  # for each box the number of its phrase in `text`


def make_processor() -> GroundingDinoProcessor:
    """Pictures at 32 px, [-1, 1]; prompts by the world's BERT tokenizer."""
    image_processor = GroundingDinoImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return GroundingDinoProcessor(image_processor, make_bert_tokenizer())


def make_model() -> GroundingDinoForObjectDetection:
    """About a million and a half parameters: Swin of four stages, 84 cells on three levels, ten queries."""
    backbone = SwinConfig(
        image_size=SIZE,
        patch_size=2,
        embed_dim=24,
        depths=[2, 2, 2, 1],
        num_heads=[2, 4, 8, 8],
        window_size=4,
        mlp_ratio=2.0,
        drop_path_rate=0.0,
        out_indices=[2, 3, 4],
    )
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=bert_config(width=64, layers=2),
        num_queries=QUERIES,
        encoder_layers=2,
        encoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_layers=2,
        decoder_ffn_dim=128,
        decoder_attention_heads=4,
        d_model=64,
        dropout=0.0,
        num_feature_levels=3,
        max_text_len=64,
        fusion_droppath=0.0,
    )
    model = GroundingDinoForObjectDetection(config)
    # logits are products of two normalised features of 64 numbers: unscaled they would start at tens
    with torch.no_grad():
        model.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after.weight.mul_(0.1)
    return model


def make_prompt(item: Scene, drawing: Drawing, rng: np.random.Generator) -> Prompt:
    """A prompt with a picture's nouns (each one nearly always) and up to two absent ones, in any order."""
    present = [placed.identity.noun for placed in item.subjects]
    named = [index for index in range(len(present)) if rng.random() < 0.85]
    absent = [noun for noun in NOUNS if noun not in present]
    others = list(rng.choice(absent, int(rng.integers(0 if named else 1, 3)), replace=False))
    nouns: list[str] = [*(present[index] for index in named), *others]
    order = [int(place) for place in rng.permutation(len(nouns))]
    article = "a " if rng.random() < 0.5 else ""
    text = " ".join(f"{article}{nouns[place]}." for place in order)
    return Prompt(
        text=text,
        boxes=tuple(_centre_form(drawing.boxes[index]) for index in named),
        phrases=tuple(order.index(place) for place in range(len(named))),
    )


def _centre_form(box: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (value / SIZE for value in box)
    return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The model's inputs and targets."""

    pixel_values: torch.Tensor  # (B, 3, 32, 32), [-1, 1]
    input_ids: torch.Tensor  # (B, L)
    attention_mask: torch.Tensor  # (B, L)
    boxes: torch.Tensor  # (B, 2, 4), centre form; where there is no box a unit square
    exists: torch.Tensor  # (B, 2) bool
    tokens: torch.Tensor  # (B, 2, L), one at the tokens of the box's phrase


def batches(processor: GroundingDinoProcessor, settings: DetectorSettings, first_step: int) -> Iterator[Batch]:
    """Batches from step `first_step` on."""
    for step in range(first_step, settings.steps):
        numbers = range(FIRST_SCENE + step * settings.batch_size, FIRST_SCENE + (step + 1) * settings.batch_size)
        scenes = [scene(Split.ZOO, number, second=settings.second) for number in numbers]
        drawings = [draw(item) for item in scenes]
        prompts = [
            make_prompt(item, drawing, random_for(Split.ZOO, number, 2))
            for item, drawing, number in zip(scenes, drawings, numbers, strict=True)
        ]
        yield make_batch(processor.tokenizer, drawings, prompts)


def make_batch(tokenizer: BertTokenizer, drawings: list[Drawing], prompts: list[Prompt]) -> Batch:
    """Tensors of pictures and prompts."""
    images = np.stack([drawing.image for drawing in drawings]).astype(np.float32)
    texts = [prompt.text for prompt in prompts]
    encoded = tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    ids = encoded.input_ids
    separator = ids == tokenizer.convert_tokens_to_ids(".")
    phrase = separator.cumsum(1)  # (B, L): at a phrase's tokens the number of the phrase
    special = (
        separator | (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id) | ~encoded.attention_mask.bool()
    )
    boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(len(prompts), 2, 1)
    exists = torch.zeros(len(prompts), 2, dtype=torch.bool)
    tokens = torch.zeros(len(prompts), 2, ids.shape[1])
    for row, prompt in enumerate(prompts):
        for place, (box, number) in enumerate(zip(prompt.boxes, prompt.phrases, strict=True)):
            boxes[row, place] = torch.tensor(box)
            exists[row, place] = True
            tokens[row, place] = ((phrase[row] == number) & ~special[row]).float()
    return Batch(
        pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1,
        input_ids=ids,
        attention_mask=encoded.attention_mask,
        boxes=boxes,
        exists=exists,
        tokens=tokens,
    )


def detection_loss(model: GroundingDinoForObjectDetection, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of the decoder's layers, and of the encoder's cells."""
    output = model(batch.pixel_values, batch.input_ids, attention_mask=batch.attention_mask)
    decoder = torch.zeros(())
    for logits, boxes in _layers(model, output, batch):
        costs = _costs(logits, boxes, batch)
        decoder = decoder + _set_loss(logits, boxes, match(costs, batch.exists), batch)
    return decoder, _cell_loss(output.enc_outputs_class, output.enc_outputs_coord_logits.sigmoid(), batch)


def _layers(
    model: GroundingDinoForObjectDetection, output: GroundingDinoObjectDetectionOutput, batch: Batch
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits (B, Q, L) and boxes (B, Q, 4) of every decoder layer; the last layer's are the model's answer."""
    references = [output.init_reference_points, *output.intermediate_reference_points.unbind(1)]
    for layer in range(model.config.decoder_layers - 1):
        hidden = output.intermediate_hidden_states[:, layer]
        logits = model.class_embed[layer](hidden, output.encoder_last_hidden_state_text, batch.attention_mask.bool())
        boxes = (model.bbox_embed[layer](hidden) + torch.special.logit(references[layer], eps=1e-5)).sigmoid()
        yield logits, boxes
    yield output.logits, output.pred_boxes


def _costs(logits: torch.Tensor, boxes: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cost (B, Q, 2) of giving a query one of the boxes: Grounding DINO's."""
    with torch.no_grad():
        probability = logits[..., : batch.tokens.shape[2]].sigmoid()
        positive = -0.25 * (1 - probability) ** 2 * (probability + 1e-8).log()
        negative = -0.75 * probability**2 * (1 - probability + 1e-8).log()
        share = batch.tokens / batch.tokens.sum(2, keepdim=True).clamp(min=1)
        label = torch.einsum("bql,bkl->bqk", positive - negative, share)
        distance = (boxes[:, :, None] - batch.boxes[:, None]).abs().sum(3)
        return label + 5 * distance - 2 * generalized_iou(boxes[:, :, None], batch.boxes[:, None])


def match(costs: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
    """The two different queries (B, 2) with the least total cost."""
    queries = costs.shape[1]
    costs = costs * exists[:, None]
    pairs = costs[:, :, None, 0] + costs[:, None, :, 1]  # (B, Q, Q)
    pairs = pairs + torch.eye(queries) * 1e4
    best = pairs.flatten(1).argmin(1)
    return torch.stack([best // queries, best % queries], 1)


def _set_loss(logits: torch.Tensor, boxes: torch.Tensor, matched: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Loss of the decoder: each box for its query, no box for all other queries."""
    tokens = batch.tokens * batch.exists[:, :, None]
    wanted = torch.zeros(*logits.shape[:2], tokens.shape[2])
    wanted.scatter_add_(1, matched[:, :, None].expand_as(tokens), tokens)
    number = batch.exists.sum().clamp(min=1)
    found = boxes.gather(1, matched[:, :, None].expand(-1, -1, 4))
    return 2 * _focal(logits, wanted, batch).sum() / number + _box_loss(found, batch.boxes, batch.exists) / number


def _cell_loss(logits: torch.Tensor, boxes: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Each cell (B, S) whose centre lies in the inner half of a box gets that box, all other cells none."""
    centres = _cell_centres(84).to(logits)
    offset = (centres[None, :, None] - batch.boxes[:, None, :, :2]).abs() / batch.boxes[:, None, :, 2:]
    inside = (offset.amax(3) < 0.3) & batch.exists[:, None]  # (B, S, 2)
    wanted = torch.einsum("bsk,bkl->bsl", inside.float(), batch.tokens).clamp(max=1)
    number = inside.sum().clamp(min=1)
    targets = batch.boxes[:, None].expand(-1, boxes.shape[1], -1, -1)
    located = _box_loss(boxes[:, :, None].expand_as(targets), targets, inside)
    return 2 * _focal(logits, wanted, batch).sum() / number + located / number


@functools.cache
def _cell_centres(cells: int) -> torch.Tensor:
    """Centres (S, 2) of the encoder's cells: 8 x 8, 4 x 4, 2 x 2."""
    levels = []
    for side in (8, 4, 2):
        middle = (torch.arange(side) + 0.5) / side
        ys, xs = torch.meshgrid(middle, middle, indexing="ij")
        levels.append(torch.stack([xs, ys], 2).flatten(0, 1))
    centres = torch.cat(levels)
    assert len(centres) == cells
    return centres


def _focal(logits: torch.Tensor, wanted: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Focal loss (arXiv 1708.02002) of every query and token, padding left out."""
    logits = logits[..., : wanted.shape[2]].clamp(min=NONE)
    probability = logits.sigmoid()
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    missed = (1 - probability) * wanted + probability * (1 - wanted)
    balance = 0.25 * wanted + 0.75 * (1 - wanted)
    return balance * missed**2 * entropy * batch.attention_mask[:, None]


def _box_loss(boxes: torch.Tensor, targets: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
    distance = (boxes - targets).abs().sum(-1)
    return ((5 * distance + 2 * (1 - generalized_iou(boxes, targets))) * exists).sum()


def generalized_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Generalised IoU (arXiv 1902.09630) of boxes (..., 4) in centre form, -1 to 1."""
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    other_low, other_high = others[..., :2] - others[..., 2:] / 2, others[..., :2] + others[..., 2:] / 2
    shared = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(-1)
    union = boxes[..., 2:].prod(-1) + others[..., 2:].prod(-1) - shared
    hull = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod(-1)
    return shared / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


def train(output: Path, work: Path, steps: int | None = None) -> None:
    """Train the detector, resuming from `work`, and save model and processor at `output`."""
    settings = DetectorSettings() if steps is None else DetectorSettings(steps=steps)
    torch.manual_seed(settings.seed)
    processor, model = make_processor(), make_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, settings.steps, pct_start=0.08)
    checkpoint = Checkpoint(work / "grounding_dino.pt", model=model, optimizer=optimizer, schedule=schedule)
    first = checkpoint.restore()
    stream = batches(processor, settings, first)
    for step in report_progress("grounding_dino", range(first, settings.steps), settings.batch_size):
        decoder, cells = detection_loss(model, next(stream))
        optimizer.zero_grad()
        (decoder + cells).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        checkpoint.step(step, every=250, decoder=decoder.item(), cells=cells.item())
    checkpoint.save(settings.steps)
    model.eval().save_pretrained(output)
    processor.save_pretrained(output)
