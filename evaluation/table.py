"""The table: every case generated under every setting from the same starting noise, scored, with intervals.

Generator and judge are arguments: the in-process pipeline or an HTTP endpoint, ground truth or a neural judge.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from realcustom.errors import UsageError
from realcustom.evaluation.settings import EvaluateSettings
from realcustom.evaluation.statistics import Interval, bootstrap_difference, bootstrap_mean


class Setting(enum.Enum):
    """A row of the table."""

    TEXT_TO_IMAGE = "text_to_image"  # no subject: the lower bound
    SUBJECT_WITHOUT_MASK = "subject_without_mask"  # the subject acts everywhere
    SUBJECT_WITH_MASK = "subject_with_mask"  # the method
    WRONG_REFERENCE = "wrong_reference_with_mask"  # another subject of the same noun is given: must score lower
    ORACLE = "oracle"  # the true image; a higher score means copying


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question: this prompt, with this word narrowed to this subject."""

    uid: str
    prompt: str
    target_word: str
    reference: Image.Image
    wrong_reference: Image.Image  # another subject of the same noun
    oracle: Image.Image  # the right answer: the subject itself in the prompt's scene
    seed: int  # of the starting noise, the same in every setting
    truth: Any = None  # data for the judge; passed on unread


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The judge's scores of one image."""

    similarity: float  # similarity to the case's subject, in [0, 1]
    background: bool  # the prompt's background is shown
    noun: bool  # the prompt's noun is shown


class Judge(Protocol):
    """Scores images against their cases, in order."""

    def __call__(self, images: Sequence[Image.Image], cases: Sequence[Case]) -> Sequence[Scores]: ...


class Generator(Protocol):
    """Draws one image per case under a setting (any but the oracle), from each case's own seed."""

    def __call__(self, setting: Setting, cases: Sequence[Case]) -> Sequence[Image.Image]: ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting's row."""

    setting: Setting
    similarity: Interval
    background_accuracy: float
    noun_accuracy: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data for a report."""
        return {
            "setting": self.setting.value,
            "similarity": self.similarity.mean,
            "similarity_ci": [self.similarity.low, self.similarity.high],
            "background_accuracy": self.background_accuracy,
            "noun_accuracy": self.noun_accuracy,
            "images": self.images,
        }


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows, the gain of the right reference over a wrong one, and the images and scores (in the cases' order)."""

    rows: list[Row]
    wrong_reference: Interval | None  # similarity with the right reference minus with the wrong one, paired
    images: dict[Setting, list[Image.Image]]
    scores: dict[Setting, list[Scores]]

    def to_dict(self) -> dict[str, Any]:
        """`table` and `wrong_reference` as plain data for a report."""
        wrong = self.wrong_reference
        return {
            "table": [row.to_dict() for row in self.rows],
            "wrong_reference": None if wrong is None else {"difference": wrong.mean, "ci": [wrong.low, wrong.high]},
        }


def evaluate(
    cases: Sequence[Case],
    generator: Generator,
    judge: Judge,
    settings: EvaluateSettings,
    rows: Sequence[Setting] = tuple(Setting),
    progress: Callable[[Setting, int, int], None] | None = None,
) -> Table:
    """Generate and score every case under every setting of `rows`.

    Args:
        cases: at least 2; all of them are used (their number, not `settings.images`, is the row's `images`).
        generator: called with at most `settings.batch_size` cases at a time, never for the oracle.
        judge: called once per row with all of its images.
        progress: called after each batch with the setting, the number of images done and of all images.
    Raises:
        UsageError: too few cases, or a uid twice.
        ValueError: a generator or judge returned another number than it was asked for.
    """
    if len(cases) < 2:
        raise UsageError(f"a table needs at least 2 cases, got {len(cases)}")
    if len({case.uid for case in cases}) < len(cases):
        raise UsageError("cases must have different uids: a case counted twice narrows the intervals falsely")
    images: dict[Setting, list[Image.Image]] = {}
    scores: dict[Setting, list[Scores]] = {}
    for setting in rows:
        images[setting] = _draw(setting, cases, generator, settings.batch_size, progress)
        scores[setting] = list(judge(images[setting], cases))
        if len(scores[setting]) != len(cases):
            raise ValueError(f"the judge returned {len(scores[setting])} scores for {len(cases)} images")
    return Table(
        rows=[_row(setting, scores[setting], settings) for setting in rows],
        wrong_reference=_wrong_reference(scores, settings),
        images=images,
        scores=scores,
    )


def _draw(
    setting: Setting,
    cases: Sequence[Case],
    generator: Generator,
    batch_size: int,
    progress: Callable[[Setting, int, int], None] | None,
) -> list[Image.Image]:
    if setting is Setting.ORACLE:
        return [case.oracle for case in cases]
    images: list[Image.Image] = []
    for start in range(0, len(cases), batch_size):
        batch = cases[start : start + batch_size]
        drawn = list(generator(setting, batch))
        if len(drawn) != len(batch):
            raise ValueError(f"the generator returned {len(drawn)} images for {len(batch)} cases ({setting.value})")
        images += drawn
        if progress:
            progress(setting, len(images), len(cases))
    return images


def _row(setting: Setting, scores: Sequence[Scores], settings: EvaluateSettings) -> Row:
    return Row(
        setting=setting,
        similarity=bootstrap_mean(
            [score.similarity for score in scores],
            confidence=settings.confidence,
            resamples=settings.resamples,
            seed=settings.seed,
        ),
        background_accuracy=sum(score.background for score in scores) / len(scores),
        noun_accuracy=sum(score.noun for score in scores) / len(scores),
        images=len(scores),
    )


def _wrong_reference(scores: dict[Setting, list[Scores]], settings: EvaluateSettings) -> Interval | None:
    if Setting.SUBJECT_WITH_MASK not in scores or Setting.WRONG_REFERENCE not in scores:
        return None
    return bootstrap_difference(
        [score.similarity for score in scores[Setting.SUBJECT_WITH_MASK]],
        [score.similarity for score in scores[Setting.WRONG_REFERENCE]],
        confidence=settings.confidence,
        resamples=settings.resamples,
        seed=settings.seed,
    )
