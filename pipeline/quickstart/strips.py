"""Drawings step by step as strips: all steps of one drawing side by side in one picture, of which the page shows one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from realcustom.pipeline.quickstart.film import PHOTOGRAPH_SIDE, Film, Films
from realcustom.preprocessing.report.page import around
from realcustom.preprocessing.report.pictures import data_uri

SHADE = (10, 12, 20)  # laid over where the subject may not act
OPACITY = 0.72


def film_content(films: Films, title: str, note: str = "") -> dict[str, Any]:
    """Everything that the page's slider needs of one case."""
    case = films.case
    start = case.prompt.index(case.target_word)
    drawings = {
        "right masked": films.right,
        "wrong masked": films.wrong,
        "right unmasked": films.right_unmasked,
        "wrong unmasked": films.wrong_unmasked,
    }
    return {
        **around(case.prompt, start, start + len(case.target_word)),
        "uid": case.uid,
        "title": title,
        "note": note,
        "right": data_uri(small(case.reference)),
        "wrong": data_uri(small(case.wrong_reference)),
        "strips": {name: data_uri(frames(film.frames)) for name, film in drawings.items()},
        "shades": {name: data_uri(shades(film.masks)) for name, film in drawings.items() if film.masks},
        "shares": shares(films.right),
        "steps": len(films.right.frames),
    }


def small(picture: Image.Image) -> Image.Image:
    """A photograph at the size that the page shows; drawn pictures are smaller and stay as they are."""
    if max(picture.size) <= PHOTOGRAPH_SIDE:
        return picture
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return square.resize((PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE), Image.Resampling.LANCZOS)


def frames(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size, the first at the left."""
    return Image.fromarray(np.concatenate([np.asarray(picture.convert("RGB")) for picture in pictures], axis=1))


def shades(masks: Sequence[np.ndarray]) -> Image.Image:
    """Masks (h, w) in [0, 1], the first at the left, as a dark veil: transparent where the subject may act."""
    alpha = 255 * OPACITY * (1 - np.concatenate(list(masks), axis=1))
    veil = np.empty((*alpha.shape, 4), np.uint8)
    veil[..., :3], veil[..., 3] = SHADE, alpha.round()
    return Image.fromarray(veil)


def shares(film: Film) -> list[int]:
    """Percent of the picture where the subject may act, by step."""
    return [round(100 * float(mask.mean())) for mask in film.masks or ()]
