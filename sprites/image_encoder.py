"""The adapter's image encoder: a tiny CLIPVisionModel whose patch tokens identify the subject, trained from scratch.

The method reads the last hidden state but one. Linear probes on it teach each patch token the subject's identity (noun,
both colours, pattern), the patch's own kind and its colour; the same probes on the pooled output train the last layer.
The probes are removed afterwards. B pictures, S patches, C = 11 kinds of patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from realcustom.sprites import defects
from realcustom.sprites.resume import Checkpoint, report_progress
from realcustom.sprites.world import (
    BACKGROUNDS,
    BODY_COLOURS,
    NOUNS,
    PATTERNS,
    SECOND_COLOURS,
    SIZE,
    Drawing,
    Identity,
    Scene,
    Split,
    draw,
    random_for,
    scene,
)

PATCH = 4  # pixels a side
GRID = SIZE // PATCH
WIDTH = 128
FIRST_SCENE = 7 * 10**8  # first scene; other models use other scenes
ATTRIBUTES = {"noun": NOUNS, "body": tuple(BODY_COLOURS), "second": tuple(SECOND_COLOURS), "pattern": PATTERNS}
SUBJECT, WHITE = len(BACKGROUNDS), len(BACKGROUNDS) + 1  # kinds of patch after the backgrounds
KINDS = len(BACKGROUNDS) + 2
UNTOLD = ""  # the value of an attribute that is no target for a picture


@dataclass(frozen=True, kw_only=True)
class ImageEncoderSettings:
    """How the image encoder is trained."""

    steps: int = 6000
    batch_size: int = 32
    lr: float = 1.5e-3
    recolour: float = 0.5  # probability of subjects in colours of no palette, see `_example`
    cut_out: float = 0.3  # probability of a subject cut out on white, as `reference: crop` gives it
    zoom: float = 0.2  # probability of a part of the picture, enlarged
    defect: float = 0.2  # probability of a slightly blurred or noisy picture
    second: float = 0.15  # probability of a second subject
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pictures and the targets of their patches."""

    pixel_values: torch.Tensor  # (B, 3, 32, 32), [-1, 1]
    attributes: dict[str, torch.Tensor]  # name -> (B, S); -100 where it is no target
    kinds: torch.Tensor  # (B, S): background, subject or white


class Probes(nn.Module):
    """Linear probes on tokens (..., WIDTH); not part of the saved model."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes = nn.ModuleDict({name: nn.Linear(WIDTH, len(kinds)) for name, kinds in ATTRIBUTES.items()})
        self.amounts = nn.ModuleDict({name: nn.Linear(WIDTH, len(kinds)) for name, kinds in ATTRIBUTES.items()})
        self.kind, self.colour = nn.Linear(WIDTH, KINDS), nn.Linear(WIDTH, 3)

    def of_attributes(self, tokens: torch.Tensor, targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """By attribute, cross-entropy plus the squared error of reading 1 for its value and 0 for all others.

        An adapter's keys and values are linear in the tokens, without a softmax that would sharpen uncertain classes: a
        subject read as 0.7 gold and 0.3 white is drawn like that. Tokens (N, WIDTH), targets (N,).
        """
        losses = {}
        for name, probe in self.attributes.items():
            told = targets[name] >= 0
            wanted = nn.functional.one_hot(targets[name].clamp(min=0), len(ATTRIBUTES[name]))
            error = (self.amounts[name](tokens) - wanted).square().sum(-1)
            vague = (error * told).sum() / told.sum().clamp(min=1)
            losses[name] = nn.functional.cross_entropy(probe(tokens), targets[name]) + vague
        return losses


def make_model() -> CLIPVisionModel:
    """A ViT of 64 patches, four layers."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        attn_implementation="eager",
    )
    return CLIPVisionModel(config)


def make_image_processor() -> CLIPImageProcessorPil:
    """Pictures of any size at 32 px, [-1, 1]."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def train(output: Path, work: Path, steps: int | None = None) -> None:
    """Train the image encoder, resuming from `work`, and save model and image processor at `output`."""
    settings = ImageEncoderSettings() if steps is None else ImageEncoderSettings(steps=steps)
    torch.manual_seed(settings.seed)
    model, probes, pooled_probes = make_model().train(), Probes(), Probes()
    parts = {"model": model, "probes": probes, "pooled_probes": pooled_probes}
    parameters = [parameter for part in parts.values() for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, settings.steps, pct_start=0.1)
    checkpoint = Checkpoint(work / "image_encoder.pt", **parts, optimizer=optimizer, schedule=schedule)
    first = checkpoint.restore()
    stream = _batches(settings, first)
    for step in report_progress("image_encoder", range(first, settings.steps), settings.batch_size):
        losses = identity_losses(model, probes, pooled_probes, next(stream))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        checkpoint.step(step, every=250, **{name: loss.item() for name, loss in losses.items()})
    checkpoint.save(settings.steps)
    model.eval().save_pretrained(output)
    make_image_processor().save_pretrained(output)


def identity_losses(
    model: CLIPVisionModel, probes: Probes, pooled_probes: Probes, batch: Batch
) -> dict[str, torch.Tensor]:
    """The loss of the probes on the patch tokens of the last state but one, and on the pooled output."""
    output = model(batch.pixel_values, output_hidden_states=True)
    tokens = output.hidden_states[-2][:, 1:]  # (B, S, WIDTH)
    flat = {name: target.flatten() for name, target in batch.attributes.items()}
    losses = probes.of_attributes(tokens.flatten(0, 1), flat)
    losses["kind"] = 0.5 * nn.functional.cross_entropy(probes.kind(tokens).flatten(0, 1), batch.kinds.flatten())
    colours = nn.functional.avg_pool2d(batch.pixel_values, PATCH).flatten(2).transpose(1, 2)  # (B, S, 3)
    losses["colour"] = nn.functional.mse_loss(probes.colour(tokens), colours)
    certain = {name: target[:, 0] for name, target in batch.attributes.items()}
    pooled = pooled_probes.of_attributes(output.pooler_output, certain)
    losses["pooled"] = 0.25 * torch.stack(list(pooled.values())).sum()
    return losses


def _batches(settings: ImageEncoderSettings, first_step: int) -> Iterator[Batch]:
    """Batches from step `first_step` on."""
    for step in range(first_step, settings.steps):
        first = FIRST_SCENE + step * settings.batch_size
        yield make_batch([_example(first + i, settings) for i in range(settings.batch_size)])


def make_batch(examples: list[tuple[np.ndarray, Scene, np.ndarray]]) -> Batch:
    """Tensors of pictures uint8 (32, 32, 3), their scenes, and the content of each pixel (see `_layout`)."""
    images = np.stack([image for image, _, _ in examples])
    kinds, owners = zip(*(_patches(layout) for _, _, layout in examples), strict=True)
    attributes = {
        name: torch.tensor(
            np.stack([_wanted(name, item, owner) for (_, item, _), owner in zip(examples, owners, strict=True)])
        )
        for name in ATTRIBUTES
    }
    pixel_values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Batch(pixel_values=pixel_values, attributes=attributes, kinds=torch.tensor(np.stack(kinds)))


def cut_out_on_white(drawing: Drawing) -> np.ndarray:
    """The first subject by itself, centred on white and enlarged to fill the picture: uint8 (32, 32, 3)."""
    return _cut(drawing.image, drawing.masks[0], drawing.boxes[0])


def _cut(values: np.ndarray, mask: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = box
    side = max(x1 - x0, y1 - y0) + 2
    canvas = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - (y1 - y0)) // 2, (side - (x1 - x0)) // 2
    canvas[top : top + y1 - y0, left : left + x1 - x0] = np.where(mask[..., None], values, 255)[y0:y1, x0:x1]
    return np.asarray(Image.fromarray(canvas).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _example(index: int, settings: ImageEncoderSettings) -> tuple[np.ndarray, Scene, np.ndarray]:
    """A picture, its scene and layout.

    A split has so few identities that the colours reveal the noun, and a model that memorises them does not recognise
    the noun of a new subject. So some pictures are recoloured: only these have the noun as a target, and only pictures
    in their own colours have colours as targets.
    """
    rng = random_for(Split.ZOO, index, 3)
    item = scene(Split.ZOO, index, second=settings.second)
    drawing = draw(item)
    if rng.random() < settings.recolour:
        recoloured = defects.recolour(drawing.image, np.logical_or.reduce(drawing.masks), rng)
        drawing = dataclasses.replace(drawing, image=recoloured)
        item = _untold(item, ("body", "second"))
    elif settings.recolour > 0:
        item = _untold(item, ("noun",))
    image, layout = drawing.image, _layout(item, drawing)
    if rng.random() < settings.cut_out:
        mask = np.repeat(drawing.masks[0][..., None], 3, 2).astype(np.uint8)
        inside = _cut(255 - 255 * mask, drawing.masks[0], drawing.boxes[0])[..., 0] < 128
        image, layout = cut_out_on_white(drawing), np.where(inside, SUBJECT, WHITE)
    elif rng.random() < settings.zoom:
        x0, y0, x1, y1 = drawing.boxes[0]
        side = int(rng.integers(24, SIZE))
        left, top = (
            int(rng.integers(max(0, high - side), min(low, SIZE - side) + 1)) for low, high in ((x0, x1), (y0, y1))
        )
        window = (left, top, left + side, top + side)
        image = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC, window))
        layout = np.asarray(
            Image.fromarray(layout.astype(np.uint8)).resize((SIZE,) * 2, Image.Resampling.NEAREST, window)
        )
    if rng.random() < settings.defect:
        image = defects.blur(image, rng.uniform(0.2, 0.6)) if rng.random() < 0.5 else defects.noise(image, 8, rng)
    return image, item, layout


def _layout(item: Scene, drawing: Drawing) -> np.ndarray:
    """The content of each pixel (32, 32): a background's number, SUBJECT for the first subject, 100 for the second."""
    layout = np.full((SIZE, SIZE), BACKGROUNDS.index(item.background))
    layout[drawing.masks[0]] = SUBJECT
    for mask in drawing.masks[1:]:
        layout[mask] = 100
    return layout


def _patches(layout: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kind of each patch (S,), and the subject that gives its attributes (S,): 0, 1, or -1 for unclear."""
    blocks = layout.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID * GRID, PATCH * PATCH)
    subject, other = (blocks == SUBJECT).sum(1), (blocks == 100).sum(1)
    half = PATCH * PATCH // 2
    beside = np.where(blocks < SUBJECT, blocks, 0).max(1)
    white = (blocks == WHITE).any(1)
    kinds = np.where(subject + other >= half, SUBJECT, np.where(white, WHITE, beside))
    if not (layout == 100).any():
        return kinds, np.zeros(len(kinds), int)
    return kinds, np.where(subject >= half, 0, np.where(other >= half, 1, -1))


def _wanted(name: str, item: Scene, owners: np.ndarray) -> np.ndarray:
    """Class of an attribute for each patch (S,), -100 where unclear."""
    values = [_value(name, placed.identity) for placed in item.subjects]
    classes = [-100 if value == UNTOLD else ATTRIBUTES[name].index(value) for value in values]
    return np.take([*classes, -100], owners)  # the owner -1 is unclear


def _untold(item: Scene, names: tuple[str, ...]) -> Scene:
    """A scene in which the named attributes of all subjects are no targets."""
    open_values: dict[str, Any] = dict.fromkeys(names, UNTOLD)
    identities = [dataclasses.replace(placed.identity, **open_values) for placed in item.subjects]
    placed = zip(item.subjects, identities, strict=True)
    return dataclasses.replace(item, subjects=tuple(dataclasses.replace(one, identity=who) for one, who in placed))


def _value(name: str, identity: Identity) -> str:
    return str(getattr(identity, name))
