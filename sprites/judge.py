"""The judge of generated pictures: which noun, background, place and pattern they show, and the object's mask.

A small convolutional network that shares nothing with the other models: trained on ground truth alone, on identities
and seeds of its own (`Split.JUDGE`), on pictures degraded as a generator degrades them. B pictures; H = W = 32.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from realcustom.errors import UsageError
from realcustom.sprites import shapes
from realcustom.sprites.defects import add_blob, degrade_mildly, melt
from realcustom.sprites.resume import Checkpoint, report_progress
from realcustom.sprites.world import BACKGROUNDS, NOUNS, PATTERNS, PLACES, SIZE, Scene, Split, draw, random_for, scene

HEADS = {"noun": NOUNS, "background": BACKGROUNDS, "place": tuple(PLACES), "pattern": PATTERNS}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judge's result: probabilities, in the order of the world's lists."""

    noun: np.ndarray  # (B, nouns), sums to one
    background: np.ndarray  # (B, backgrounds)
    place: np.ndarray  # (B, places)
    pattern: np.ndarray  # (B, patterns)
    mask: np.ndarray  # (B, H, W), 0 to 1: probability that an object is there


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """How the judge is trained."""

    steps: int = 2000
    batch_size: int = 32
    lr: float = 3e-3
    empty: float = 0.12  # probability of a picture without an object: bare, or with nothing but a blurred spot
    second: float = 0.15  # probability of a second subject in a picture with an object
    seed: int = 0


class JudgeNet(nn.Module):
    """Features at four scales going down, a mask going up."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64, 128)
        self.stem = _block(3, widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(_block(small, large, stride=2), _block(large, large))
            for small, large in itertools.pairwise(widths)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(large, small, 1) for small, large in itertools.pairwise(widths))
        self.up = nn.ModuleList(_block(width, width) for width in widths[:-1])
        self.mask = nn.Conv2d(widths[0], 1, 1)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * widths[-1], len(kinds)) for name, kinds in HEADS.items()})

    def forward(self, pixel_values: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Logits per head (B, kinds) and of the mask (B, H, W), from pixel values (B, 3, H, W) in [-1, 1]."""
        levels = [self.stem(pixel_values)]  # (B, 16, 32, 32)
        for down in self.down:
            levels.append(down(levels[-1]))  # ... (B, 128, 4, 4)
        pooled = torch.cat([levels[-1].mean((2, 3)), levels[-1].amax((2, 3))], 1)  # (B, 256)
        x = levels[-1]
        for level in reversed(range(len(self.up))):
            x = nn.functional.interpolate(self.lateral[level](x), scale_factor=2.0, mode="nearest")
            x = self.up[level](x + levels[level])
        return {name: head(pooled) for name, head in self.heads.items()}, self.mask(x)[:, 0]


class Judge:
    """The trained judge.

    Args:
        net: its network, in evaluation mode.
    """

    def __init__(self, net: JudgeNet) -> None:
        self.net = net.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: str | Path) -> Judge:
        """Read `model.safetensors` and `config.json` of a folder.

        Raises:
            UsageError: it was trained for other nouns, backgrounds, places or patterns than the world has now.
        """
        config = json.loads((Path(folder) / "config.json").read_text())
        for name, kinds in HEADS.items():
            if config.get(name) != list(kinds):
                raise UsageError(
                    f"the judge in {folder} knows {name}s {config.get(name)}, the world has {list(kinds)}; "
                    "train it with: python -m realcustom.sprites.train judge"
                )
        net = JudgeNet()
        net.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        return cls(net)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Verdict:
        """Judge pictures (B, 32, 32, 3): uint8, or float in [0, 1]."""
        if images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
            raise UsageError(f"the judge takes pictures (B, {SIZE}, {SIZE}, 3), not {images.shape}")
        scale = 127.5 if images.dtype == np.uint8 else 0.5
        pixel_values = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / scale - 1
        parts = [self.net(chunk) for chunk in pixel_values.split(256)]
        logits = {name: torch.cat([heads[name] for heads, _ in parts]) for name in HEADS}
        probabilities = {name: value.softmax(1).numpy() for name, value in logits.items()}
        return Verdict(**probabilities, mask=torch.cat([mask for _, mask in parts]).sigmoid().numpy())


def train(output: Path, work: Path, steps: int | None = None) -> None:
    """Train the judge, resuming from `work`, and save `model.safetensors` and `config.json` in `output`."""
    settings = JudgeSettings() if steps is None else JudgeSettings(steps=steps)
    torch.manual_seed(settings.seed)
    net = JudgeNet().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, settings.steps, pct_start=0.1)
    checkpoint = Checkpoint(work / "judge.pt", net=net, optimizer=optimizer, schedule=schedule)
    first = checkpoint.restore()
    stream = _batches(settings, first)
    for step in report_progress("judge", range(first, settings.steps), settings.batch_size):
        pixel_values, targets, masks = next(stream)
        logits, mask_logits = net(pixel_values)
        losses = {
            name: nn.functional.cross_entropy(logits[name], targets[:, i], ignore_index=-100)
            for i, name in enumerate(HEADS)
        }
        losses["mask"] = nn.functional.binary_cross_entropy_with_logits(mask_logits, masks)
        optimizer.zero_grad()
        (sum(losses[name] for name in HEADS) + 3 * losses["mask"]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        checkpoint.step(step, every=250, **{name: loss.item() for name, loss in losses.items()})
    checkpoint.save(settings.steps)
    _save(net, output)


def _save(net: JudgeNet, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.json").write_text(
        json.dumps({name: list(kinds) for name, kinds in HEADS.items()}, indent=2) + "\n"
    )
    temporary = output / "model.safetensors.tmp"
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, temporary)
    os.replace(temporary, output / "model.safetensors")


def _batches(settings: JudgeSettings, first_step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Pixel values (B, 3, 32, 32), classes (B, heads; -100: none) and masks (B, 32, 32) from step `first_step` on."""
    for step in range(first_step, settings.steps):
        first = step * settings.batch_size
        rows = [_example(first + i, settings) for i in range(settings.batch_size)]
        images, targets, masks = (np.stack(column) for column in zip(*rows, strict=True))
        pixel_values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        yield pixel_values, torch.from_numpy(targets), torch.from_numpy(masks).float()


def _example(index: int, settings: JudgeSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = random_for(Split.JUDGE, index, 2)
    item = scene(Split.JUDGE, index, second=settings.second)
    background = BACKGROUNDS.index(item.background)
    if rng.random() < settings.empty:
        mask = np.zeros((SIZE, SIZE), bool)
        return (
            degrade_mildly(_without_object(item, rng), mask, rng),
            np.array([-100, background, -100, -100]),
            mask,
        )
    drawing = draw(item)
    mask = np.logical_or.reduce(drawing.masks)
    if len(item.subjects) > 1:
        # pixels do not show which of two subjects is meant: both are object, and noun, place and pattern are no targets
        return degrade_mildly(drawing.image, mask, rng), np.array([-100, background, -100, -100]), mask
    subject = item.subjects[0]
    targets = np.array(
        [
            NOUNS.index(subject.identity.noun),
            background,
            list(PLACES).index(subject.place),
            PATTERNS.index(subject.identity.pattern),
        ]
    )
    return degrade_mildly(drawing.image, mask, rng), targets, mask


def _without_object(item: Scene, rng: np.random.Generator) -> np.ndarray:
    """The background of a scene: bare, with a soft spot, or with the object blurred beyond recognition."""
    texture = shapes.BACKGROUNDS[item.background](np.random.default_rng(item.texture_seed), SIZE)
    ground = np.clip(texture, 0, 255).astype(np.uint8)
    kind = int(rng.integers(3))
    if kind == 0:
        return ground
    if kind == 1:
        return add_blob(ground, rng)
    drawing = draw(item)
    return melt(drawing.image, drawing.masks[0], ground, rng.uniform(2.2, 4.5))


def _block(narrow: int, wide: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(wide), nn.ReLU())
