"""The judge and the similarity measure: what they say of pictures whose truth is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from realcustom.sprites import ZOO, defects, judge, shapes, similarity, zoo_path
from realcustom.sprites.judge import Judge, Verdict
from realcustom.sprites.world import BACKGROUNDS, NOUNS, PATTERNS, SIZE, Identity, Split, draw, identities, scene

FIRST = 3 * 10**9  # apart from the scenes that others measure on
SHIPPED = (ZOO / "judge").is_dir()


def truth_as_verdict(identities_: list[Identity], masks: list[np.ndarray]) -> Verdict:
    none = np.zeros((len(masks), 1))
    pattern = np.eye(len(PATTERNS))[[PATTERNS.index(identity.pattern) for identity in identities_]]
    return Verdict(noun=none, background=none, place=none, pattern=pattern, mask=np.stack(masks).astype(float))


def drawn(count: int) -> tuple[np.ndarray, list[Identity], list[np.ndarray]]:
    scenes = [scene(Split.EVALUATION, FIRST + i) for i in range(count)]
    drawings = [draw(item) for item in scenes]
    return (
        np.stack([drawing.image for drawing in drawings]),
        [item.subjects[0].identity for item in scenes],
        [drawing.masks[0] for drawing in drawings],
    )


def other_identity(identity: Identity) -> Identity:
    return next(o for o in identities(Split.EVALUATION) if o.noun == identity.noun and o.body != identity.body)


def test_lab_of_known_colours() -> None:
    # CIE Lab (D65) of sRGB red, white, black and mid grey, as published tables have them
    pixels = np.array([[255, 0, 0], [255, 255, 255], [0, 0, 0], [119, 119, 119]], np.uint8)
    wanted = np.array([[53.24, 80.09, 67.20], [100, 0, 0], [0, 0, 0], [50.03, 0, 0]])
    np.testing.assert_allclose(similarity.to_lab(pixels), wanted, atol=0.05)
    np.testing.assert_allclose(similarity.to_lab(pixels / 255.0), wanted, atol=0.05)


def test_histogram_is_a_distribution_and_smooth() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (200, 3)).astype(np.uint8)
    histogram = similarity.colour_histogram(pixels)
    assert histogram.sum() == pytest.approx(1.0)
    assert histogram.min() >= 0
    nudged = similarity.colour_histogram(np.clip(pixels.astype(int) + 2, 0, 255).astype(np.uint8))
    assert np.minimum(histogram, nudged).sum() > 0.93


def test_similarity_is_near_one_for_the_subject_itself_and_low_for_another() -> None:
    images, who, masks = drawn(40)
    verdict = truth_as_verdict(who, masks)
    right = similarity.similarity(images, verdict, who)
    assert right.min() > 0.85
    assert right.max() <= 1 + 1e-9
    colours = [dataclasses.replace(other_identity(identity), pattern=identity.pattern) for identity in who]
    wrong = similarity.similarity(images, verdict, colours)  # same pattern, other colours
    assert (right > wrong).all()
    assert (right - wrong).mean() > 0.3


def test_similarity_takes_colour_and_pattern_three_to_one() -> None:
    images, who, masks = drawn(6)
    verdict = truth_as_verdict(who, masks)
    patternless = dataclasses.replace(verdict, pattern=np.zeros_like(verdict.pattern))
    both = similarity.similarity(images, verdict, who)
    colour_only = similarity.similarity(images, patternless, who)
    np.testing.assert_allclose(both - colour_only, 0.25)
    np.testing.assert_allclose(
        similarity.similarity(images / 255.0, verdict, who), both, atol=1e-9
    )  # float pictures are the same pictures


def test_similarity_is_zero_where_no_object_is_found() -> None:
    images, who, masks = drawn(3)
    verdict = truth_as_verdict(who, [np.zeros_like(mask) for mask in masks])
    assert similarity.similarity(images, verdict, who).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="3 pictures, but 2 identities"):
        similarity.similarity(images, verdict, who[:2])


def test_recipe_saves_what_loads_and_draws_the_same_from_any_step(tmp_path: Path) -> None:
    judge.train(tmp_path / "judge", tmp_path / "work", steps=2)
    pictures = drawn(2)[0]
    verdict = Judge.load(str(tmp_path / "judge"))(pictures)
    assert verdict.mask.shape == (2, SIZE, SIZE)
    np.testing.assert_allclose(verdict.noun.sum(1), 1.0, atol=1e-5)
    settings = judge.JudgeSettings(steps=3, batch_size=4)
    straight, resumed = list(judge._batches(settings, 0)), list(judge._batches(settings, 2))
    assert all((one == other).all() for one, other in zip(straight[2], resumed[0], strict=True))


def test_judge_of_another_world_is_refused(tmp_path: Path) -> None:
    judge._save(judge.JudgeNet(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["noun"] = ["boat", *config["noun"][1:]]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="boat"):
        Judge.load(str(tmp_path))


def test_judge_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match=r"\(B, 32, 32, 3\)"):
        Judge(judge.JudgeNet())(np.zeros((1, 3, 32, 32), np.uint8))


@pytest.mark.skipif(not SHIPPED, reason="the judge is not trained yet")
def test_shipped_judge_sees_through_mild_defects() -> None:
    eye = Judge.load(zoo_path("judge"))
    scenes = [scene(Split.EVALUATION, FIRST + i) for i in range(96)]
    drawings = [draw(item) for item in scenes]
    images = np.stack([drawing.image for drawing in drawings])
    rng = np.random.default_rng(0)
    for pictures in (images, np.stack([defects.noise(defects.blur(image, 0.5), 10, rng) for image in images])):
        verdict = eye(pictures)
        nouns = [NOUNS.index(item.subjects[0].identity.noun) for item in scenes]
        assert (verdict.noun.argmax(1) == nouns).mean() >= 0.98
        assert (verdict.background.argmax(1) == [BACKGROUNDS.index(item.background) for item in scenes]).mean() >= 0.98
        found, true = verdict.mask > 0.5, np.stack([drawing.masks[0] for drawing in drawings])
        assert ((found & true).sum((1, 2)) / (found | true).sum((1, 2))).mean() >= 0.9


def test_of_two_subjects_both_are_object_and_neither_is_named() -> None:
    settings = judge.JudgeSettings(second=1.0, empty=0.0)
    for index in range(5):
        item = scene(Split.JUDGE, index, second=1.0)
        _, targets, mask = judge._example(index, settings)
        assert targets.tolist() == [-100, BACKGROUNDS.index(item.background), -100, -100]
        assert (mask == np.logical_or(*draw(item).masks)).all()


def test_pictures_without_an_object_have_empty_masks() -> None:
    settings = judge.JudgeSettings(empty=1.0)
    examples = [judge._example(index, settings) for index in range(20)]
    assert not any(mask.any() for _, _, mask in examples)
    assert all(targets[0] == -100 and targets[1] >= 0 for _, targets, _ in examples)


@pytest.mark.skipif(not SHIPPED, reason="the judge is not trained yet")
def test_shipped_judge_takes_no_blurred_spot_for_an_object() -> None:
    rng, ground = np.random.default_rng(0), np.full((SIZE, SIZE, 3), 128, np.uint8)
    textures = [np.clip(texture(rng, SIZE), 0, 255).astype(np.uint8) for texture in shapes.BACKGROUNDS.values()]
    spots = [defects.add_blob(texture, rng) for texture in textures for _ in range(10)]
    images, _, masks = drawn(40)
    molten = [defects.melt(image, mask, ground, 3.0) for image, mask in zip(images, masks, strict=True)]
    for pictures in (spots, molten):
        found = (Judge.load(ZOO / "judge")(np.stack(pictures)).mask > 0.5).sum((1, 2))
        assert (found >= similarity.SMALLEST_OBJECT).mean() <= 0.05


@pytest.mark.skipif(not SHIPPED, reason="the judge is not trained yet")
def test_shipped_judge_finds_nothing_on_a_bare_background() -> None:
    bare = [np.clip(texture(np.random.default_rng(5), SIZE), 0, 255) for texture in shapes.BACKGROUNDS.values()]
    verdict = Judge.load(zoo_path("judge"))(np.stack(bare).astype(np.uint8))
    assert ((verdict.mask > 0.5).sum((1, 2)) < similarity.SMALLEST_OBJECT).all()
