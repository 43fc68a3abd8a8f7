"""The world's captioner: a tiny BlipForConditionalGeneration, trained from scratch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)

from realcustom.sprites.bert import BOS, FIXED, make_bert_tokenizer
from realcustom.sprites.bert import SIZE as VOCABULARY
from realcustom.sprites.defects import recolour
from realcustom.sprites.resume import Checkpoint, report_progress
from realcustom.sprites.world import PLACES, SIZE, TEMPLATES, Scene, Split, draw, random_for, scene

FIRST_SCENE = 5 * 10**8  # first scene; other models use other scenes
LENGTH = 24  # tokens of a caption in training, padding included
WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class CaptionerSettings:
    """How the captioner is trained."""

    steps: int = 10_000
    batch_size: int = 32
    lr: float = 1.5e-3
    second: float = 0.15  # probability of a second subject
    recolour: float = 0.6  # probability of subjects in colours of no palette, see `batches`
    seed: int = 0


def make_processor() -> BlipProcessor:
    """Pictures at 32 px, [-1, 1]; captions by the world's BERT tokenizer."""
    image_processor = BlipImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return BlipProcessor(image_processor, make_bert_tokenizer())


def make_model() -> BlipForConditionalGeneration:
    """A ViT of 8 x 8 patches and a text decoder that attends to them, both 64 wide."""
    vision = BlipVisionConfig(
        image_size=SIZE,
        patch_size=4,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        initializer_range=0.02,
    )
    decoder = BlipTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        encoder_hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=FIXED[BOS],
        eos_token_id=FIXED["[SEP]"],
        sep_token_id=FIXED["[SEP]"],
        pad_token_id=FIXED["[PAD]"],
    )
    return BlipForConditionalGeneration(BlipConfig(text_config=decoder, vision_config=vision))


def canonical_caption(item: Scene) -> str:
    """The only training caption of a scene: one template; of two subjects the left or upper one first."""
    places = list(PLACES)
    subjects = sorted(item.subjects, key=lambda placed: places.index(placed.place))
    return dataclasses.replace(item, subjects=tuple(subjects), template=TEMPLATES[0]).caption


def batches(
    tokenizer: BertTokenizer, settings: CaptionerSettings, first_step: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Pixel values (B, 3, 32, 32), token ids (B, L) from [DEC] to [SEP], attention mask, from step `first_step` on.

    A split has so few identities that the colours would reveal the noun; recoloured subjects must be recognised by
    their shape.
    """
    for step in range(first_step, settings.steps):
        first = FIRST_SCENE + step * settings.batch_size
        scenes = [scene(Split.ZOO, first + i, second=settings.second) for i in range(settings.batch_size)]
        drawings = [draw(item) for item in scenes]
        images = [drawing.image for drawing in drawings]
        for i, drawing in enumerate(drawings):
            rng = random_for(Split.ZOO, first + i, 5)
            if rng.random() < settings.recolour:
                images[i] = recolour(drawing.image, np.logical_or.reduce(drawing.masks), rng)
        pixel_values = torch.from_numpy(np.stack(images).astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
        captions = [canonical_caption(item) for item in scenes]
        encoded = tokenizer(captions, padding="max_length", max_length=LENGTH, return_tensors="pt")
        ids = encoded.input_ids
        ids[:, 0] = FIXED[BOS]
        yield pixel_values, ids, encoded.attention_mask


def train(output: Path, work: Path, steps: int | None = None) -> None:
    """Train the captioner, resuming from `work`, and save model and processor at `output`."""
    settings = CaptionerSettings() if steps is None else CaptionerSettings(steps=steps)
    torch.manual_seed(settings.seed)
    processor, model = make_processor(), make_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, settings.steps, pct_start=0.1)
    checkpoint = Checkpoint(work / "blip.pt", model=model, optimizer=optimizer, schedule=schedule)
    first = checkpoint.restore()
    stream = batches(processor.tokenizer, settings, first)
    for step in report_progress("blip", range(first, settings.steps), settings.batch_size):
        pixel_values, ids, attention_mask = next(stream)
        labels = ids.masked_fill(attention_mask == 0, -100)
        loss = model(pixel_values=pixel_values, input_ids=ids, attention_mask=attention_mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        checkpoint.step(step, every=250, loss=loss.item())
    checkpoint.save(settings.steps)
    model.eval().save_pretrained(output)
    processor.save_pretrained(output)
