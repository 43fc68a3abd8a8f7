"""Krippendorff's alpha against his own example, and its ends."""

from __future__ import annotations

import pytest

from realcustom.evaluation.agreement import krippendorff

NO = None
# four observers, twelve units (Krippendorff 2011, "Computing Krippendorff's alpha-reliability", example C)
OBSERVERS: list[list[float | None]] = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NO, NO, NO],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NO, 3],
    [NO, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NO],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NO],
]


def test_the_published_example() -> None:
    units = [list(unit) for unit in zip(*OBSERVERS, strict=True)]
    assert krippendorff(units) == pytest.approx(0.849, abs=5e-4)


def test_its_ends() -> None:
    assert krippendorff([[1, 1], [3, 3], [2, 2]]) == 1.0
    against = krippendorff([[0, 4], [4, 0], [0, 4]])
    assert against is not None and against < 0
    assert krippendorff([[1, 1], [1, 1]]) is None and krippendorff([[1, None]]) is None and krippendorff([]) is None
