"""Graded scores of a picture: how far it is from what was asked for, where an accuracy is 1.00 everywhere.

Log-odds are natural logarithms of the odds of the right answer against all others, from the judge's probabilities; they
go on growing where an accuracy has ended. Colours are counted in pixels, as the judge reads no colours. The place error
is in cells of the latent grid. B pictures; H = W = 32.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from realcustom.errors import UsageError
from realcustom.sprites import shapes
from realcustom.sprites.judge import Judge
from realcustom.sprites.similarity import SMALLEST_OBJECT, colour_histogram, similarity, to_lab
from realcustom.sprites.world import (
    BACKGROUNDS,
    BODY_COLOURS,
    NOUNS,
    OUTLINE,
    PATTERNS,
    PLACES,
    SECOND_COLOURS,
    SIZE,
    Identity,
    Scene,
    draw,
)

CELL = 2  # pixels a side of a latent cell
LEAST = 1e-12  # probability below which one is as good as none: log-odds stay within 27.7
NEAR = 15.0  # in Lab: a pixel further from every colour is a mixture of two, and votes for none
TEXTURES = 8  # drawings over which a background's colours are averaged


@dataclass(frozen=True, kw_only=True)
class Graded:
    """Scores of B pictures, each (B,) float64. Of two subjects those of one; the background's are of the picture."""

    similarity: np.ndarray  # to the identity, 0 to 1, as `similarity.similarity`
    noun: np.ndarray  # log-odds
    background: np.ndarray  # log-odds
    pattern: np.ndarray  # log-odds
    body: np.ndarray  # log-odds of the body colour among pixels that have one
    second: np.ndarray  # log-odds of the second colour among pixels that have one
    place_error: np.ndarray  # cells from the object's true centre; a side of the picture where there is no object
    background_error: np.ndarray  # mean absolute difference, 0 to 1, to the true drawing outside of its objects
    background_colour: np.ndarray  # colours outside of the true objects shared with those of the background, 0 to 1

    @property
    def control(self) -> np.ndarray:
        """One number for what the prompt controls: mean log-odds of noun, background and place, each within 10 of 0.

        A place's odds fall by a factor e with each cell that the object is off, and are 8 at its place.
        """
        place = 8.0 - self.place_error
        return np.asarray(np.mean([np.clip(part, -10, 10) for part in (self.noun, self.background, place)], 0))


def grade(judge: Judge, images: np.ndarray, scenes: Sequence[Scene], subject: int = 0) -> Graded:
    """Score pictures (B, H, W, 3), uint8, against the scenes that they should show.

    Args:
        subject: the number of the subject that is meant; of two, the other's pixels are painted over first.
    Raises:
        UsageError: not as many scenes as pictures, or a scene without that subject.
    """
    if len(images) != len(scenes):
        raise UsageError(f"{len(images)} pictures, but {len(scenes)} scenes")
    if any(subject >= len(item.subjects) for item in scenes):
        raise UsageError(f"a scene has no subject number {subject}")
    whole = judge(images)
    alone = np.stack(
        [
            image if len(item.subjects) == 1 else _paint_over_others(image, mask > 0.5, item, subject)
            for image, mask, item in zip(images, whole.mask, scenes, strict=True)
        ]
    )
    verdict = judge(alone)
    drawings = [draw(item) for item in scenes]
    placed = [item.subjects[subject] for item in scenes]
    who = [one.identity for one in placed]
    masks = verdict.mask > 0.5
    outside = [~np.logical_or.reduce(drawing.masks) for drawing in drawings]
    votes = [_colour_votes(image[mask]) for image, mask in zip(alone, masks, strict=True)]
    return Graded(
        similarity=similarity(alone, verdict, who),
        noun=log_odds(verdict.noun, [NOUNS.index(one.noun) for one in who]),
        background=log_odds(whole.background, [BACKGROUNDS.index(item.background) for item in scenes]),
        pattern=log_odds(verdict.pattern, [PATTERNS.index(one.pattern) for one in who]),
        body=_of_colours([vote[: len(BODY_COLOURS)] for vote in votes], who, "body"),
        second=_of_colours([vote[len(BODY_COLOURS) : -1] for vote in votes], who, "second"),
        place_error=np.array(
            [_place_error(mask, drawing.masks[subject]) for mask, drawing in zip(masks, drawings, strict=True)]
        ),
        background_error=np.array(
            [
                np.abs(image[where].astype(float) - drawing.image[where]).mean() / 255
                for image, drawing, where in zip(images, drawings, outside, strict=True)
            ]
        ),
        background_colour=np.array(
            [
                np.minimum(colour_histogram(image[where]), background_histogram(item.background)).sum()
                for image, item, where in zip(images, scenes, outside, strict=True)
            ]
        ),
    )


def log_odds(probabilities: np.ndarray, right: Sequence[int]) -> np.ndarray:
    """ln(p / (1 - p)) of the right class, (B,), of probabilities (B, K): 1 - p is summed, as p near 1 has no digits left."""
    is_right = np.eye(probabilities.shape[1], dtype=bool)[list(right)]
    values = probabilities.astype(np.float64)
    odds = np.maximum(values[is_right], LEAST) / np.maximum(np.where(is_right, 0.0, values).sum(1), LEAST)
    logarithms: np.ndarray = np.log(odds)
    return logarithms


@functools.cache
def background_histogram(background: str) -> np.ndarray:
    """Colours of a background, averaged over its textures."""
    drawn = [shapes.BACKGROUNDS[background](np.random.default_rng(seed), SIZE) for seed in range(TEXTURES)]
    pixels = np.clip(np.stack(drawn), 0, 255).astype(np.uint8)
    return colour_histogram(pixels.reshape(-1, 3))


def _of_colours(votes: Sequence[np.ndarray], who: Sequence[Identity], attribute: str) -> np.ndarray:
    """Log-odds of an attribute's colour, (B,), from votes (K,): each colour begins with 1 / K of a vote."""
    names = list(BODY_COLOURS if attribute == "body" else SECOND_COLOURS)
    counts = np.stack(votes) + 1 / len(names)
    return log_odds(counts, [names.index(getattr(one, attribute)) for one in who])


def _colour_votes(pixels: np.ndarray) -> np.ndarray:
    """Pixels (N, 3) near a colour, by that colour: of bodies, then of seconds, last the outline."""
    if not len(pixels):
        return np.zeros(len(_palette()))
    distance = ((to_lab(pixels)[:, None] - _palette()[None]) ** 2).sum(2)  # (N, colours)
    near = distance.min(1) <= NEAR**2
    return np.bincount(distance.argmin(1)[near], minlength=len(_palette())).astype(float)


@functools.cache
def _palette() -> np.ndarray:
    colours = [*BODY_COLOURS.values(), *SECOND_COLOURS.values(), OUTLINE]
    return to_lab(np.array(colours, np.uint8))


def _place_error(found: np.ndarray, true: np.ndarray) -> float:
    """Distance of two masks' centres in cells."""
    if found.sum() < SMALLEST_OBJECT:
        return float(SIZE / CELL)
    centres = [np.argwhere(mask).mean(0) for mask in (found, true)]
    return float(np.linalg.norm(centres[0] - centres[1]) / CELL)


def _paint_over_others(image: np.ndarray, found: np.ndarray, item: Scene, subject: int) -> np.ndarray:
    """The picture in which the background covers what was found nearer to another subject's place."""
    ys, xs = np.mgrid[0:SIZE, 0:SIZE]
    distances = np.stack([np.hypot(xs - x, ys - y) for x, y in (PLACES[one.place] for one in item.subjects)])
    texture = shapes.BACKGROUNDS[item.background](np.random.default_rng(item.texture_seed), SIZE)
    rim = ~shapes.shrink(~found, 1)  # an object's edge is half background
    cover = rim & (distances.argmin(0) != subject)
    return np.where(cover[..., None], np.clip(texture, 0, 255).astype(np.uint8), image)
