"""The learning rate and the curriculum as functions of the step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from realcustom.config import override
from realcustom.errors import UsageError
from realcustom.training.schedules import learning_rate
from realcustom.training.settings import CurriculumPoint, Schedule, TrainSettings

SETTINGS = TrainSettings(lr=2.0, steps=100, warmup=10)


def rates(settings: TrainSettings) -> list[float]:
    return [learning_rate(settings, step) for step in range(settings.steps)]


def test_each_schedule_warms_up_and_ends_as_it_says() -> None:
    constant = rates(SETTINGS)
    cosine, linear = (rates(replace(SETTINGS, schedule=kind)) for kind in (Schedule.COSINE, Schedule.LINEAR))
    wsd = rates(replace(SETTINGS, schedule=Schedule.WSD, decay=20))
    for schedule in (constant, cosine, linear, wsd):
        assert schedule[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert set(constant[10:]) == {2.0}
    assert cosine[10:] == pytest.approx([1 + math.cos(math.pi * step / 90) for step in range(90)])
    assert linear[10:] == pytest.approx([2 * (90 - step) / 90 for step in range(90)])
    assert set(wsd[10:81]) == {2.0} and wsd[80:] == pytest.approx([2 * (20 - step) / 20 for step in range(20)])


def test_before_its_decay_wsd_does_not_know_its_end() -> None:
    settings = replace(SETTINGS, schedule=Schedule.WSD, decay=20)
    assert rates(replace(settings, steps=200))[:80] == rates(settings)[:80]


def test_a_curriculum_is_linear_between_its_points() -> None:
    points = [{"until_step": 50, "ref_aug": 0.4}, {"until_step": 100, "p_multiview": 0.5}]
    settings = override(SETTINGS, {"curriculum": points})
    assert [settings.at(step) for step in (0, 50, 75, 100, 300)] == [
        pytest.approx(pair) for pair in ((0, 0.4), (0, 0.4), (0.25, 0.2), (0.5, 0), (0.5, 0))
    ]
    assert replace(SETTINGS, p_multiview=0.3).at(7) == (0.3, 0.0)
    one = replace(SETTINGS, curriculum=(CurriculumPoint(until_step=9, p_multiview=0.1, ref_aug=1.0),))
    assert one.at(0) == one.at(9) == one.at(50) == (0.1, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "wsd"}, "schedule=wsd needs decay"),
        ({"schedule": "wsd", "decay": 101}, "schedule=wsd needs decay"),
        ({"decay": 5}, "decay=5 belongs to schedule=wsd; constant has none"),
        ({"curriculum": [{"until_step": 5}, {"until_step": 5}]}, "must rise"),
        ({"curriculum": [{"until_step": 5}], "p_multiview": 0.5}, "p_multiview=0.5 is given beside a curriculum"),
        ({"curriculum": [{"until_step": 5, "ref_aug": 2}]}, "ref_aug=2.0 is a probability"),
        ({"curriculum": [{"until_step": 5, "p_multivew": 1}]}, "did you mean"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        override(SETTINGS, changes)
