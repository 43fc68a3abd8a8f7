"""Graded scores: what they say of drawings whose faults are known, and of the cheats that each is meant for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from realcustom.errors import UsageError
from realcustom.sprites import zoo_path
from realcustom.sprites.control import Graded, grade, log_odds
from realcustom.sprites.judge import Judge
from realcustom.sprites.questions import Kind, Question, question, stolen
from realcustom.sprites.world import BACKGROUNDS, OPPOSITE, SIZE, Identity, Placed, Scene, draw, same_scene_with

COUNT = 24


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load(zoo_path("judge"))


def asked(kind: Kind = Kind.CONTRADICTION) -> list[Question]:
    return [question(kind, index) for index in range(COUNT)]


def scored(judge: Judge, shown: Sequence[Scene], questions: Sequence[Question], subject: int = 0) -> Graded:
    images = np.stack([draw(one).image for one in shown])
    return grade(judge, images, [one.target for one in questions], subject)


def test_log_odds_keep_their_digits_where_a_probability_is_one() -> None:
    sure = np.array([[1.0, 1e-9, 0.0], [0.25, 0.5, 0.25]], np.float32)
    np.testing.assert_allclose(log_odds(sure, [0, 1]), [np.log(1e9), 0.0], rtol=1e-6)
    np.testing.assert_allclose(log_odds(sure, [2, 0]), [np.log(1e-12), np.log(1 / 3)], rtol=1e-6)


def test_the_true_drawing_is_right_in_all(judge: Judge) -> None:
    questions = asked()
    found = scored(judge, [one.target for one in questions], questions)
    assert found.background_error.max() == 0.0
    assert found.place_error.max() < 0.5
    assert min(found.noun.mean(), found.background.mean(), found.pattern.mean()) > 3
    assert min(found.body.mean(), found.second.mean()) > 1
    assert found.background_colour.mean() > 0.85
    assert (found.control > 5).mean() > 0.9


def test_each_score_falls_by_what_it_is_meant_for_and_by_nothing_else(judge: Judge) -> None:
    questions = asked()
    right = scored(judge, [one.target for one in questions], questions)

    def moved(scene: Scene) -> Scene:
        placed = dataclasses.replace(scene.subjects[0], place=OPPOSITE[scene.subjects[0].place])
        return dataclasses.replace(scene, subjects=(placed,))

    place = scored(judge, [moved(one.target) for one in questions], questions)
    assert (place.place_error > 5).all() and place.noun.mean() > 3 and place.background.mean() > 3
    elsewhere = [
        dataclasses.replace(one.target, background=BACKGROUNDS[BACKGROUNDS.index(one.target.background) - 1])
        for one in questions
    ]
    ground = scored(judge, elsewhere, questions)
    assert ground.background.max() < 0 and ground.place_error.max() < 0.5
    assert (ground.background_error > right.background_error).all()
    assert (ground.background_colour < right.background_colour).all()
    texture = scored(judge, [dataclasses.replace(one.target, texture_seed=7) for one in questions], questions)
    assert (texture.background_error < ground.background_error).mean() > 0.9
    assert texture.background_colour.mean() > 0.85

    def dyed(identity: Identity) -> Identity:
        return dataclasses.replace(identity, second="gold" if identity.second != "gold" else "black")

    other = [same_scene_with(one.target, dyed(one.target.subjects[0].identity)) for one in questions]
    colour = scored(judge, other, questions)
    assert colour.second.mean() < -1 and colour.body.mean() > 1 and colour.pattern.mean() > 3
    assert (colour.similarity < right.similarity).all()


def test_planted_cheats_are_caught(judge: Judge) -> None:
    questions = asked()
    right = scored(judge, [one.target for one in questions], questions)
    copier = scored(judge, [one.references[0] for one in questions], questions)
    assert copier.similarity.mean() > 0.9, "what it copies is the subject"
    assert copier.background.max() < 0 and copier.place_error.min() > 5 and copier.control.max() < right.control.min()
    thief = scored(
        judge,
        [dataclasses.replace(one.target, background=one.references[0].background) for one in questions],
        questions,
    )
    assert thief.similarity.mean() > 0.9 and thief.place_error.max() < 0.5 and thief.background.max() < 0
    ignorer = scored(
        judge,
        [same_scene_with(one.target, one.wrong_references[0].subjects[0].identity) for one in questions],
        questions,
    )
    assert (ignorer.control > 5).mean() > 0.9, "it does as the prompt says"
    assert ignorer.similarity.mean() < 0.6 and ignorer.body.mean() < -1


def test_of_two_subjects_each_is_scored_alone(judge: Judge) -> None:
    questions = asked(Kind.TWO_SUBJECTS)
    shown = [one.target for one in questions]
    for number in (0, 1):
        found = scored(judge, shown, questions, number)
        assert found.similarity.mean() > 0.8 and (found.noun > 0).mean() > 0.9
        assert np.median(found.place_error) < 1.0
    swapped = [dataclasses.replace(one, subjects=_swapped(one)) for one in shown]
    assert scored(judge, swapped, questions).noun.mean() < 0


def test_a_second_object_in_the_subjects_colours_is_caught(judge: Judge) -> None:
    questions = asked(Kind.BYSTANDER)
    theft = [stolen(one.target) for one in questions]
    own = grade(judge, np.stack([draw(one.target).image for one in questions]), theft, 1)
    taken = grade(judge, np.stack([draw(one).image for one in theft]), theft, 1)
    assert taken.similarity.mean() > 0.8 and own.similarity.mean() < 0.6


def test_no_object_is_the_worst_place_and_no_colour(judge: Judge) -> None:
    target = question(Kind.PLAIN, 0).target
    bare = np.full((1, SIZE, SIZE, 3), 128, np.uint8)
    found = grade(judge, bare, [target])
    assert found.place_error.tolist() == [16.0] and found.similarity.tolist() == [0.0]
    np.testing.assert_allclose(found.body, np.log(1 / 7))
    np.testing.assert_allclose(found.second, np.log(1 / 3))


def test_scenes_must_fit_the_pictures(judge: Judge) -> None:
    target, none = question(Kind.PLAIN, 0).target, np.zeros((1, SIZE, SIZE, 3), np.uint8)
    with pytest.raises(UsageError, match="1 pictures, but 2 scenes"):
        grade(judge, none, [target, target])
    with pytest.raises(UsageError, match="no subject number 1"):
        grade(judge, none, [target], 1)


def _swapped(scene: Scene) -> tuple[Placed, ...]:
    first, second = scene.subjects
    return (
        dataclasses.replace(first, place=second.place),
        dataclasses.replace(second, place=first.place),
    )
