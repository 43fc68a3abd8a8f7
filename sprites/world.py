"""The synthetic world: a subject of a noun class and an identity, on a background and at a place that the caption names.

The caption never names the identity (colours, pattern, proportions): a customisation method must take it from a
picture. Everything is a pure function of a split and an index, and comes with its ground truth.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from realcustom.sprites import shapes

SIZE = 32  # pixels a side of a picture
SUBJECT = 18  # pixels a side of the square that a subject fills
NOUNS = tuple(shapes.SILHOUETTES)
BACKGROUNDS = tuple(shapes.BACKGROUNDS)
PLACES = {"left": (9, 16), "right": (23, 16), "top": (16, 9), "bottom": (16, 23)}  # name -> centre (x, y), pixels
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
PATTERNS = ("stripes", "dots", "halves")
BODY_COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 130, 30),
    "lime": (150, 210, 40),
    "green": (30, 130, 60),
    "sky": (80, 170, 240),
    "navy": (40, 60, 160),
    "purple": (140, 60, 180),
    "pink": (240, 130, 180),
}
SECOND_COLOURS = {"white": (255, 255, 255), "black": (25, 25, 25), "gold": (250, 215, 60), "teal": (20, 160, 150)}
TEMPLATES = ("a {subject} on {background}", "a picture of a {subject} on {background}", "{background} with a {subject}")
GUIDANCE_SCALE, NUM_INFERENCE_STEPS = 3.0, 20  # sampling settings of the world's diffusion model
SUPERSAMPLE = 4
OUTLINE = (20, 20, 30)


class Split(enum.Enum):
    """The split of a scene.

    Splits share neither seeds nor identities; the value is its range of 1/16ths of all identities.
    """

    CORPUS = (0, 5)
    ZOO = (5, 10)
    JUDGE = (10, 14)
    EVALUATION = (14, 16)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The attributes of a subject that a caption does not name."""

    noun: str
    body: str  # a name of BODY_COLOURS
    second: str  # a name of SECOND_COLOURS
    pattern: str  # one of PATTERNS
    proportion: float  # width over height, 0.8 to 1

    @property
    def description(self) -> str:
        """The noun with the identity's colours and pattern: "red star with gold stripes"."""
        return f"{self.body} {self.noun} with {self.second} {self.pattern}"


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A subject at a place."""

    identity: Identity
    place: str
    jitter: tuple[int, int]  # pixels, -1 to 1


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The content of a picture, and its caption."""

    subjects: tuple[Placed, ...]  # one or two; a caption's target word means the first
    background: str
    template: str
    texture_seed: int

    @property
    def caption(self) -> str:
        """The text that describes the picture without the identity."""
        return self._caption(tuple(placed.identity.noun for placed in self.subjects))

    def attribute_caption(self, described: int = 0) -> str:
        """A caption that names colours and pattern of the subject with this number, for training base models.

        No corpus or evaluation has it. It gives the text encoder and the UNet words for the attributes that an adapter
        takes from a picture.
        """
        names = [placed.identity.noun for placed in self.subjects]
        names[described] = self.subjects[described].identity.description
        return self._caption(tuple(names))

    def _caption(self, names: tuple[str, ...]) -> str:
        pairs = zip(names, self.subjects, strict=True)
        subject = " and a ".join(f"{name} at the {placed.place}" for name, placed in pairs)
        return self.template.format(subject=subject, background=self.background)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture and its ground truth."""

    image: np.ndarray  # uint8 (SIZE, SIZE, 3)
    masks: tuple[np.ndarray, ...]  # bool (SIZE, SIZE), one per subject
    boxes: tuple[tuple[int, int, int, int], ...]  # x0 y0 x1 y1 in pixels, upper ends exclusive


@functools.cache
def identities(split: Split) -> tuple[Identity, ...]:
    """All identities of a split, in a fixed shuffled order; no two splits share one."""
    grid = [(n, b, s, p) for n in NOUNS for b in BODY_COLOURS for s in SECOND_COLOURS for p in PATTERNS]
    rng = np.random.default_rng(20240303)
    order, proportions = rng.permutation(len(grid)), rng.uniform(0.8, 1.0, len(grid))
    first, last = (len(grid) * sixteenth // 16 for sixteenth in split.value)
    chosen = (grid[i] + (round(float(proportions[i]), 3),) for i in order[first:last])
    return tuple(Identity(noun=n, body=b, second=s, pattern=p, proportion=w) for n, b, s, p, w in chosen)


def assert_splits_disjoint() -> None:
    """Raise AssertionError if two splits share an identity."""
    seen: set[Identity] = set()
    for split in Split:
        assert seen.isdisjoint(identities(split)), f"{split} shares identities with another split"
        seen.update(identities(split))


def is_held_out(noun: str, background: str, place: str) -> bool:
    """Whether a corpus with `leave_out` never shows this noun on this background at this place: four of 32 for each noun."""
    sum_of_three = NOUNS.index(noun) + BACKGROUNDS.index(background) + 2 * list(PLACES).index(place)
    return sum_of_three % len(BACKGROUNDS) == 0


def random_for(split: Split, index: int, purpose: int = 0) -> np.random.Generator:
    """The generator that belongs to item `index` of a split; no two splits, items or purposes share one."""
    return np.random.default_rng([list(Split).index(split), index, purpose])


def scene(split: Split, index: int, *, views: int = 1, second: float = 0.0) -> Scene:
    """Scene `index` of a split.

    Args:
        views: this many consecutive scenes show the same first subject (known multi-view data).
        second: probability of a second subject of another noun, at the opposite place.
    """
    subject_rng, rng = random_for(split, index // views, 1), random_for(split, index)
    pool = identities(split)
    identity = pool[int(subject_rng.integers(len(pool)))]
    place = str(rng.choice(list(PLACES)))
    subjects = [_placed(identity, place, rng)]
    if rng.random() < second:
        others = [other for other in pool if other.noun != identity.noun]
        subjects.append(_placed(others[int(rng.integers(len(others)))], OPPOSITE[place], rng))
    return Scene(
        subjects=tuple(subjects),
        background=str(rng.choice(BACKGROUNDS)),
        template=str(rng.choice(TEMPLATES)),
        texture_seed=int(rng.integers(2**31)),
    )


def same_scene_with(scene: Scene, identity: Identity) -> Scene:
    """`scene` with another identity as its first subject; everything else unchanged."""
    first = dataclasses.replace(scene.subjects[0], identity=identity)
    return dataclasses.replace(scene, subjects=(first, *scene.subjects[1:]))


def draw(scene: Scene) -> Drawing:
    """Draw a scene, supersampled and averaged down, with each subject's mask and box."""
    background = shapes.BACKGROUNDS[scene.background](np.random.default_rng(scene.texture_seed), SIZE)
    canvas = background.astype(np.float32)
    masks: list[np.ndarray] = []
    for placed in reversed(scene.subjects):  # the first lies on top
        cover, colour = _subject(placed.identity)
        x, y = (c + j - SUBJECT // 2 for c, j in zip(PLACES[placed.place], placed.jitter, strict=True))
        x, y = min(max(x, 0), SIZE - SUBJECT), min(max(y, 0), SIZE - SUBJECT)
        window = canvas[y : y + SUBJECT, x : x + SUBJECT]
        window[:] = window * (1 - cover[..., None]) + colour * cover[..., None]
        mask = np.zeros((SIZE, SIZE), bool)
        mask[y : y + SUBJECT, x : x + SUBJECT] = cover >= 0.5
        masks = [mask, *(below & ~mask for below in masks)]
    image = np.clip(canvas.round(), 0, 255).astype(np.uint8)
    return Drawing(image=image, masks=tuple(masks), boxes=tuple(_box(mask) for mask in masks))


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _placed(identity: Identity, place: str, rng: np.random.Generator) -> Placed:
    dx, dy = rng.integers(-1, 2, 2)
    return Placed(identity=identity, place=place, jitter=(int(dx), int(dy)))


@functools.lru_cache(maxsize=1024)
def _subject(identity: Identity) -> tuple[np.ndarray, np.ndarray]:
    """Cover (SUBJECT, SUBJECT) in [0, 1] and colour (SUBJECT, SUBJECT, 3) of a subject by itself."""
    side = SUBJECT * SUPERSAMPLE
    outline = Image.new("L", (side, side))
    shapes.SILHOUETTES[identity.noun](ImageDraw.Draw(outline), side, identity.proportion)
    cover = np.asarray(outline) > 127
    ys, xs = np.mgrid[0:side, 0:side] / side
    second = shapes.PATTERNS[identity.pattern](xs, ys)
    body, other = np.array(BODY_COLOURS[identity.body]), np.array(SECOND_COLOURS[identity.second])
    colour = np.where(second[..., None], other, body).astype(np.float32)
    colour[cover & ~shapes.shrink(cover, SUPERSAMPLE // 2 + 1)] = OUTLINE
    small = (SUBJECT, SUPERSAMPLE, SUBJECT, SUPERSAMPLE)
    weight = cover.reshape(small).mean((1, 3), dtype=np.float32)
    total = (colour * cover[..., None]).reshape(*small, 3).mean((1, 3), dtype=np.float32)
    return weight, total / np.maximum(weight, 1e-6)[..., None]
