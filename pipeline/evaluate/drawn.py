"""The drawn world as a suite: cases whose answers are known, and the judge that was trained on them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from realcustom import storage
from realcustom.evaluation.suite import Photo, Reference, Suite, SuiteCase
from realcustom.evaluation.table import Case
from realcustom.identity import model_identity
from realcustom.pipeline.quickstart.cases import DrawnJudge, drawn_cases
from realcustom.sprites import zoo_path
from realcustom.store import Store


def drawn_suite(folder: str, count: int, store: Store) -> Suite:
    """`count` cases, each with a subject of its own, whose pictures are written below `folder`."""
    cases = [_case(case, folder, store) for case in drawn_cases(count)]
    return Suite(name="drawn", cases=tuple(cases), counts=f"drawn: {count} subjects x 1 prompt x 1 image = {count}")


def _case(case: Case, folder: str, store: Store) -> SuiteCase:
    given, wrong, truth = (
        Photo(uri=_written(picture, storage.join(folder, f"{case.uid}-{name}.png"), store))
        for name, picture in (("given", case.reference), ("wrong", case.wrong_reference), ("truth", case.oracle))
    )
    reference = Reference(subject=case.uid, word=case.target_word, given=given, photos=(given,), wrong=wrong)
    return SuiteCase(references=(reference,), prompt=case.prompt, prompt_id="0", seed=case.seed, truth=truth)


def _written(picture: Image.Image, uri: str, store: Store) -> str:
    if not store.exists(uri):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        store.write(uri, buffer.getvalue())
    return uri


class DrawnScorer:
    """Similarity, background and noun by the judge that was trained on ground truth."""

    def __init__(self) -> None:
        self.identity = f"drawn judge {model_identity(str(zoo_path('judge')))}"
        self.conventions = {
            "similarity": "of the object's colours and pattern with the subject's, 0-1, by the drawn world's judge",
            "background": "share of images with the prompt's background, by the drawn world's judge",
            "noun": "share of images with the prompt's noun, by the drawn world's judge",
        }
        self._judge: DrawnJudge | None = None

    def __call__(self, images: Sequence[Image.Image], cases: Sequence[SuiteCase]) -> np.ndarray:
        """(n, 3)."""
        self._judge = self._judge or DrawnJudge()
        numbers = [int(case.subject.removeprefix("case-")) for case in cases]
        known = [drawn_cases(1, first=number)[0] for number in numbers]
        scores = self._judge(images, known)
        return np.array([[score.similarity, score.background, score.noun] for score in scores], dtype=np.float64)
