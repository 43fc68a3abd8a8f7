"""Metrics of images: each a function of vectors whose convention is its name, `KIND@MODEL`.

    clip_t             cosine of CLIP's embeddings of the image and of the prompt as it was sampled; not scaled
    clip_i, dino_i     cosine with each real picture of the subject, their mean; whole pictures
    ..._segmented      the same with the subject cut out on white on both sides; 0 where no subject is found in the image
    diversity          1 - cosine with the other images of the same prompt, their mean; 0 = one image for all seeds
    copying            cosine with the picture that was given, minus the mean with the subject's other pictures
    leak               cosine of the background with that of the given picture, minus the mean with other subjects'

The mean over a prompt's subjects is taken where it has several. An image has no value where the question has no answer: a
real picture has no prompt.
"""

from __future__ import annotations

import enum
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from realcustom.errors import UsageError
from realcustom.evaluation.results import Measured
from realcustom.evaluation.settings import MetricModels
from realcustom.evaluation.suite import Photo, SuiteCase
from realcustom.evaluation.vectors import Vectors
from realcustom.evaluation.views import Seen, View, Views
from realcustom.identity import model_identity, resolve_model
from realcustom.store import Store

if TYPE_CHECKING:
    from realcustom.evaluation.embedding import Clip, Dino


class Missing(enum.Enum):
    """A value that could not be had, unlike one that does not apply: it is printed as missing."""

    MISSING = "missing"


Value = float | Missing | None  # None: the metric does not apply

CONVENTIONS = {
    "clip_t": "cosine of image and prompt as sampled, not scaled",
    "clip_i": "cosine with every real picture of the subject, whole pictures",
    "dino_i": "cosine with every real picture of the subject, whole pictures",
    "clip_i_segmented": "as clip_i, subjects cut out on white on both sides, 0 where none is found",
    "dino_i_segmented": "as dino_i, subjects cut out on white on both sides, 0 where none is found",
    "diversity": "1 - cosine between the images of one prompt",
    "copying": "cosine with the given picture, minus with the subject's other pictures",
    "leak": "cosine of the background with the given picture's, minus with other subjects'",
}
_BLANK = Image.new("RGB", (8, 8))  # in the place of a view that shows nothing
_CLIP_KINDS = ("clip_t", "clip_i", "clip_i_segmented")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An image that is measured."""

    method: str
    case: SuiteCase  # of a real picture: its subject with the other pictures
    photo: Photo  # the image itself
    real: bool = False  # a real picture, or the right answer


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A column."""

    name: str
    convention: str
    compute: Callable[[Sequence[Judged]], list[Value]]

    def measure(self, images: Sequence[Judged]) -> list[Measured]:
        """A value for each image to which the metric applies. Raises UsageError for one that is no finite number."""
        found = []
        for image, value in zip(images, self.compute(images), strict=True):
            if value is None:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"the metric {self.name} is {value} for {image.case.uid} of {image.method}: no number")
            found.append(
                Measured(
                    method=image.method,
                    subject=image.case.subject,
                    prompt_id=image.case.prompt_id,
                    seed=image.case.seed,
                    metric=self.name,
                    value=None if isinstance(value, Missing) else value,
                    image=image.photo.uri.rsplit("/", 1)[-1],
                )
            )
        return found


def parse(name: str, models: MetricModels) -> tuple[str, str, str]:
    """`dino_i@dino_s16` -> (kind, model to load, name of the column). Raises UsageError for an unknown kind."""
    kind, _, model = name.partition("@")
    if kind not in CONVENTIONS or not model:
        raise UsageError(f"--metric: there is no '{name}'; there are {', '.join(CONVENTIONS)}, each with @MODEL")
    known = {field: str(getattr(models, field)) for field in MetricModels.__dataclass_fields__}
    where = known.get(model, model)
    label = model if model in known else model.rstrip("/").rsplit("/", 1)[-1]
    return kind, resolve_model(where), f"{kind}@{label}"


class Embedder:
    """Vectors of views and texts by one model, which is loaded when the first one is missing."""

    def __init__(self, model: str, clip: bool, output: str, views: Views, device: str | None, store: Store) -> None:
        self._name, self._clip, self._device, self.views = model, clip, device, views
        self.identity = model_identity(model)
        self._vectors = Vectors(output, f"{'clip' if clip else 'dino'} {self.identity}", store)
        self._model: Clip | Dino | None = None

    def model(self) -> Any:
        """The loaded model."""
        from realcustom.evaluation.embedding import Clip, Dino

        if self._model is None:
            self._model = Clip(self._name, self._device) if self._clip else Dino(self._name, self._device)
        return self._model

    def preprocessing(self) -> str:
        """How a picture is scaled and cut, in words; loads the model if that was never asked."""
        return self._vectors.about(lambda: str(self.model().preprocessing))

    def seen(self, wanted: Sequence[Seen]) -> list[np.ndarray]:
        """The vectors of views, (D,) each of length 1; zeros where a subject's view shows none."""
        keys = [self.views.key(seen) for seen in wanted]
        found = self._vectors.get(dict(zip(keys, wanted, strict=True)), self._embed)
        return [found[key] for key in keys]

    def texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The vectors of texts."""
        found = self._vectors.get({f"text {text}": text for text in texts}, lambda new: self.model().texts(new))
        return [found[f"text {text}"] for text in texts]

    def _embed(self, wanted: Sequence[Seen]) -> np.ndarray:
        pictures = [self.views.picture(seen) for seen in wanted]
        vectors: np.ndarray = self.model().pictures([picture or _BLANK for picture in pictures])
        vectors[[index for index, picture in enumerate(pictures) if picture is None]] = 0.0
        return vectors


def make_metric(kind: str, name: str, embedder: Embedder) -> Metric:
    """The column `name`."""
    functions: Mapping[str, Callable[[Embedder, Sequence[Judged]], list[Value]]] = {
        "clip_t": text_similarity,
        "clip_i": lambda embed, images: picture_similarity(embed, images, View.WHOLE),
        "dino_i": lambda embed, images: picture_similarity(embed, images, View.WHOLE),
        "clip_i_segmented": lambda embed, images: picture_similarity(embed, images, View.SUBJECT),
        "dino_i_segmented": lambda embed, images: picture_similarity(embed, images, View.SUBJECT),
        "diversity": diversity,
        "copying": copying,
        "leak": leak,
    }
    return Metric(
        name=name,
        convention=f"{CONVENTIONS[kind]}; {embedder.identity}",
        compute=lambda images: functions[kind](embedder, images),
    )


def is_clip(kind: str) -> bool:
    """Whether the kind's model is a CLIP."""
    return kind in _CLIP_KINDS


def text_similarity(embed: Embedder, images: Sequence[Judged]) -> list[Value]:
    """`clip_t`."""
    asked = [image for image in images if image.case.prompt]
    pictures = embed.seen([Seen(photo=image.photo) for image in asked])
    texts = embed.texts([image.case.prompt for image in asked])
    values = {id(image): float(a @ b) for image, a, b in zip(asked, pictures, texts, strict=True)}
    return [values.get(id(image)) for image in images]


def picture_similarity(embed: Embedder, images: Sequence[Judged], view: View) -> list[Value]:
    """`clip_i`, `dino_i`; segmented with the view of the subject."""
    pairs = [(image, reference) for image in images for reference in image.case.references]
    own = embed.seen([Seen(photo=image.photo, word=reference.word, view=view) for image, reference in pairs])
    photos = [Seen(photo=photo, word=reference.word, view=view) for _, reference in pairs for photo in reference.photos]
    compared = iter(embed.seen(photos))
    values: dict[int, list[float]] = defaultdict(list)
    for (image, reference), vector in zip(pairs, own, strict=True):
        values[id(image)].append(float(np.mean([vector @ next(compared) for _ in reference.photos])))
    return [float(np.mean(values[id(image)])) for image in images]


def diversity(embed: Embedder, images: Sequence[Judged]) -> list[Value]:
    """`diversity`."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        if not image.real:
            groups[image.method, image.case.subject, image.case.prompt_id].append(index)
    vectors = embed.seen([Seen(photo=image.photo) for image in images])
    values: list[Value] = [None] * len(images)
    for members in groups.values():
        for index, distance in zip(members, mean_distances(np.stack([vectors[i] for i in members])), strict=True):
            values[index] = distance
    return values


def mean_distances(vectors: np.ndarray) -> list[float | None]:
    """Of each of (n, D) vectors of length 1: the mean of 1 - cosine with the others; None for a single one."""
    if len(vectors) < 2:
        return [None] * len(vectors)
    distances = np.maximum(1.0 - vectors @ vectors.T, 0.0)
    np.fill_diagonal(distances, 0.0)
    return [float(value) for value in distances.sum(axis=1) / (len(vectors) - 1)]


def copying(embed: Embedder, images: Sequence[Judged]) -> list[Value]:
    """`copying`; None for a real picture, and where a subject has one picture."""
    values: list[Value] = []
    for image in images:
        if image.real or any(len(reference.photos) < 2 for reference in image.case.references):
            values.append(None)
            continue
        differences = []
        for reference in image.case.references:
            others = [photo for photo in reference.photos if photo.uri != reference.given.uri]
            own, given, *rest = embed.seen([Seen(photo=photo) for photo in (image.photo, reference.given, *others)])
            differences.append(float(own @ given) - float(np.mean([own @ other for other in rest])))
        values.append(float(np.mean(differences)))
    return values


def leak(embed: Embedder, images: Sequence[Judged]) -> list[Value]:
    """`leak`; None for a real picture."""
    given = {reference.subject: reference for image in images for reference in image.case.references}
    backgrounds = [Seen(photo=one.given, word=one.word, view=View.BACKGROUND) for one in given.values()]
    vectors = dict(zip(given, embed.seen(backgrounds), strict=True))
    pairs = [(image, reference) for image in images if not image.real for reference in image.case.references]
    own = embed.seen([Seen(photo=image.photo, word=reference.word, view=View.BACKGROUND) for image, reference in pairs])
    values: dict[int, list[float]] = defaultdict(list)
    for (image, reference), vector in zip(pairs, own, strict=True):
        shown = {one.subject for one in image.case.references}
        others = [float(vector @ other) for subject, other in vectors.items() if subject not in shown]
        values[id(image)].append(float(vector @ vectors[reference.subject]) - float(np.mean(others)))
    return [float(np.mean(values[id(image)])) if id(image) in values else None for image in images]
