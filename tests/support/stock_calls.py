"""Calls of a pipeline from pictures, ours and stock's of the same parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from realcustom import RealCustomPipeline, Subject

Picture = Callable[[int], Image.Image]
PROMPT, PROMPTS = "a dog on grass", ["a dog on grass", "a cat in the snow"]
STEPS: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "latent"}


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tensor(pipe: Any, *call: Any, **arguments: Any) -> Tensor:
    images = pipe(*call, **{**STEPS, "generator": seeded(), **arguments}).images
    assert isinstance(images, Tensor)
    return images


def photo(width: int = 40, height: int = 32, seed: int = 7, mode: str = "RGB") -> Image.Image:
    shape = (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8), mode)


def half(width: int = 40, height: int = 32) -> Image.Image:
    """White on the left."""
    mask = Image.new("L", (width, height))
    mask.paste(255, (0, 0, width // 2, height))
    return mask


def stock(kind: Any, pipe: RealCustomPipeline, **parts: Any) -> Any:
    """The stock pipeline of the same parts and these; a scheduler of its own."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    pipe.diffusers.set_progress_bar_config(disable=True)
    return quiet(kind.from_pipe(pipe.diffusers, scheduler=scheduler, dtype=pipe.dtype, **parts))


def subject(picture: Picture, **fields: Any) -> list[Subject]:
    return [Subject(image=picture(0), word="dog", **fields)]
