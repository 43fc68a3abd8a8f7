"""Drawings step by step: what the page's slider shows.

Letters: h w pixels of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from realcustom.evaluation.table import Case
from realcustom.output import to_images

if TYPE_CHECKING:
    from realcustom.diffusion_pipeline import RealCustomPipeline

PHOTOGRAPHS = (
    Path(__file__).resolve().parents[2] / "tests" / "data" / "photos"
)  # in a clone, not in an installed package
PHOTOGRAPH, WRONG_PHOTOGRAPH = "robot_toy.jpg", "duck_toy.jpg"
PHOTOGRAPH_SIDE = 192  # pixels, on the page


@dataclass(frozen=True, kw_only=True)
class Film:
    """One drawing: the picture after each step, and where the subject could act in it."""

    frames: Sequence[Image.Image]
    masks: Sequence[np.ndarray] | None  # (h, w) in [0, 1] after each step; None: no mask was used


@dataclass(frozen=True, kw_only=True)
class Films:
    """Four drawings of a prompt from the same noise, and the one without a subject."""

    case: Case
    right: Film
    wrong: Film
    right_unmasked: Film
    wrong_unmasked: Film
    text_alone: Image.Image


def draw_films(pipeline: RealCustomPipeline, case: Case) -> Films:
    """Draw the case with its right and its wrong reference, each with and without the mask."""
    right, wrong = _draw(pipeline, case, use_mask=True)
    right_unmasked, wrong_unmasked = _draw(pipeline, case, use_mask=False)
    plain = pipeline(case.prompt, generator=torch.Generator().manual_seed(case.seed)).images
    assert isinstance(plain, list)  # output_type is "pil"
    return Films(
        case=case,
        right=right,
        wrong=wrong,
        right_unmasked=right_unmasked,
        wrong_unmasked=wrong_unmasked,
        text_alone=plain[0],
    )


def _draw(pipeline: RealCustomPipeline, case: Case, use_mask: bool) -> list[Film]:
    """The drawings of the right and of the wrong reference, as one batch."""
    from realcustom.diffusion_pipeline import Subject

    frames: list[list[Image.Image]] = []  # by step
    masks: list[np.ndarray] = []

    def keep(pipe: RealCustomPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        images = to_images(pipe.base, tensors["latents"], "pil")
        assert isinstance(images, list)
        frames.append(images)
        if tensors["masks"] is not None:
            masks.append(tensors["masks"][0][:, 0].float().cpu().numpy())  # (2, h, w)
        return {}

    pipeline(
        [case.prompt] * 2,
        [[Subject(image=image, word=case.target_word)] for image in (case.reference, case.wrong_reference)],
        generator=[torch.Generator().manual_seed(case.seed) for _ in range(2)],
        use_mask=use_mask,
        callback_on_step_end=keep,
    )
    return [
        Film(
            frames=[images[row] for images in frames],
            masks=[mask[row] for mask in masks] if use_mask else None,
        )
        for row in range(2)
    ]


def photograph_case() -> Case | None:
    """A case whose references are photographs; None where the package is installed without them. Nothing judges it."""
    if not (PHOTOGRAPHS / PHOTOGRAPH).exists():
        return None
    right, wrong = (Image.open(PHOTOGRAPHS / name).convert("RGB") for name in (PHOTOGRAPH, WRONG_PHOTOGRAPH))
    return Case(
        uid="photograph",
        prompt="a star at the top on snow",
        target_word="star",
        reference=right,
        wrong_reference=wrong,
        oracle=right,
        seed=1,
    )
