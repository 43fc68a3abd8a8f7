"""Metrics that are not of embeddings: a function of one's own, a judge that knows the truth, a judge that sees.

Each gives a vector of scores for an image and its case; the vectors are kept by the content of both.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from realcustom.errors import UsageError
from realcustom.evaluation.agreement import krippendorff
from realcustom.evaluation.metrics import Judged, Metric, Missing, Value
from realcustom.evaluation.seeing import Question, SeeingJudge
from realcustom.evaluation.suite import Photos, SuiteCase
from realcustom.evaluation.vectors import Vectors
from realcustom.store import Store


class Scorer(Protocol):
    """Scores images that were drawn for a prompt."""

    @property
    def identity(self) -> str:
        """Of its models and settings."""
        ...

    @property
    def conventions(self) -> Mapping[str, str]:
        """Of each of its scores, by its name, in the order of the columns."""
        ...

    def __call__(self, images: Sequence[Image.Image], cases: Sequence[SuiteCase]) -> np.ndarray:
        """(n, number of scores)."""
        ...


@dataclass(frozen=True, kw_only=True)
class OwnFunction:
    """A function `(images, cases) -> values` of an importable module, as a scorer."""

    identity: str
    conventions: dict[str, str]
    function: Callable[[Sequence[Image.Image], Sequence[SuiteCase]], Sequence[float]]

    def __call__(self, images: Sequence[Image.Image], cases: Sequence[SuiteCase]) -> np.ndarray:
        """(n, 1)."""
        values = np.asarray(self.function(images, cases), dtype=np.float64).reshape(-1, 1)
        if len(values) != len(images):
            raise UsageError(
                f"--metric: {next(iter(self.conventions))} gave {len(values)} values for {len(images)} images"
            )
        return values


def own_function(name: str) -> OwnFunction:
    """`module:function`. Raises UsageError where it, or a package that it imports, is not installed."""
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # a module beside the command, as `python -m` finds it
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--metric {name}: {error.name} is not installed: pip install it, or correct the name"
        ) from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise UsageError(f"--metric {name}: the module {module} has no function {function}")
    source = hashlib.sha256(inspect.getsource(sys.modules[module]).encode()).hexdigest()[:12]
    about = " ".join((inspect.getdoc(found) or "a function of the user's").split("\n\n")[0].split())
    return OwnFunction(identity=f"{name} {source}", conventions={name: f"{about}; {source}"}, function=found)


class Scores:
    """The kept scores of one scorer."""

    def __init__(self, identity: str, output: str, photos: Photos, store: Store) -> None:
        self.photos, self._vectors = photos, Vectors(output, identity, store)

    def get(self, images: Sequence[Judged], score: Callable[[Sequence[Judged]], np.ndarray]) -> list[np.ndarray | None]:
        """A vector for each image that has a prompt, None for the others."""
        keys = [self._key(image) if image.case.prompt else None for image in images]
        inputs = {key: image for key, image in zip(keys, images, strict=True) if key is not None}
        found = self._vectors.get(inputs, score)
        return [None if key is None else found[key] for key in keys]

    def _key(self, image: Judged) -> str:
        case = image.case
        subjects = [[one.word, *map(self.photos.identity, (one.given, *one.photos))] for one in case.references]
        content = [self.photos.sha256(image.photo.uri), case.prompt, case.subject, case.prompt_id, subjects]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def score_metrics(scorer: Scorer, output: str, photos: Photos, store: Store) -> list[Metric]:
    """A column for each of the scorer's scores."""
    kept = Scores(scorer.identity, output, photos, store)

    def score(images: Sequence[Judged]) -> np.ndarray:
        return scorer([photos.picture(image.photo.uri) for image in images], [image.case for image in images])

    def column(index: int) -> Callable[[Sequence[Judged]], list[Value]]:
        return lambda images: [None if row is None else float(row[index]) for row in kept.get(images, score)]

    return [
        Metric(name=name, convention=convention, compute=column(index))
        for index, (name, convention) in enumerate(scorer.conventions.items())
    ]


class SeeingColumn:
    """The column of a judge that sees: the mean over the times that it was asked; and how far it agrees with itself."""

    def __init__(self, judge: SeeingJudge, output: str, photos: Photos, store: Store) -> None:
        self._judge, self._photos = judge, photos
        self._kept = Scores(judge.identity, output, photos, store)
        self._asked: dict[str, list[list[float | None]]] = defaultdict(list)  # by method
        most = ", ".join(f"{name} 0-{most}" for name, most in judge.rubric.scores.items())
        self.metric = Metric(
            name=f"{judge.rubric.name}@seeing",
            convention=f"{most}, mean of {judge.settings.asks} answers of {judge.settings.model}, pictures swapped in half",
            compute=self._compute,
        )

    def notes(self) -> list[str]:
        """A sentence for each method: agreement, or what is missing."""
        said = [] if self._judge.failed is None else [f"{self.metric.name}: values are missing, {self._judge.failed}"]
        for method, ratings in self._asked.items():
            alpha = krippendorff(ratings)
            value = "cannot be said" if alpha is None else f"{alpha:.3f}"
            said.append(
                f"{self.metric.name} of {method}: the judge's agreement with itself (Krippendorff's alpha) {value}"
            )
        return said

    def _compute(self, images: Sequence[Judged]) -> list[Value]:
        self._asked.clear()
        values: list[Value] = []
        for image, row in zip(images, self._kept.get(images, self._ask), strict=True):
            if row is None:
                values.append(None)
                continue
            self._asked[image.method].append([None if np.isnan(value) else float(value) for value in row])
            values.append(Missing.MISSING if np.isnan(row).all() else float(np.nanmean(row)))
        return values

    def _ask(self, images: Sequence[Judged]) -> np.ndarray:
        return self._judge([self._question(image) for image in images])

    def _question(self, image: Judged) -> Question:
        references: list[Any] = [self._photos.picture(one.given.uri) for one in image.case.references]
        return Question(
            image=self._photos.picture(image.photo.uri), references=tuple(references), prompt=image.case.prompt
        )
