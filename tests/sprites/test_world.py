"""The synthetic world: seeded, true to its captions, and split so that nobody is measured on what it was trained on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from realcustom.sprites import shapes, world
from realcustom.sprites.world import Split


def test_a_scene_and_its_drawing_are_functions_of_split_and_index() -> None:
    first, again = world.scene(Split.ZOO, 7, second=0.5), world.scene(Split.ZOO, 7, second=0.5)
    assert first == again
    assert np.array_equal(world.draw(first).image, world.draw(again).image)
    assert world.scene(Split.CORPUS, 7, second=0.5) != first


def test_splits_share_no_identity_and_hold_all_of_them() -> None:
    world.assert_splits_disjoint()
    everything = len(world.NOUNS) * len(world.BODY_COLOURS) * len(world.SECOND_COLOURS) * len(world.PATTERNS)
    assert sum(len(world.identities(split)) for split in Split) == everything
    for split in Split:
        assert {identity.noun for identity in world.identities(split)} == set(world.NOUNS)


def test_views_show_one_subject_in_different_scenes() -> None:
    views = [world.scene(Split.CORPUS, index, views=3) for index in range(3, 6)]
    assert len({view.subjects[0].identity for view in views}) == 1
    assert len({(view.background, view.subjects[0].place, view.texture_seed) for view in views}) == 3


@pytest.mark.parametrize("index", range(20))
def test_mask_and_box_are_where_the_caption_says(index: int) -> None:
    scene = world.scene(Split.JUDGE, index)
    drawing, place = world.draw(scene), scene.subjects[0].place
    ys, xs = np.nonzero(drawing.masks[0])
    x0, y0, x1, y1 = drawing.boxes[0]
    assert (x0, y0, x1, y1) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    beyond = {"left": -xs.mean(), "right": xs.mean(), "top": -ys.mean(), "bottom": ys.mean()}[place]
    assert beyond > (17 if place in ("right", "bottom") else -15)
    assert (
        place in scene.caption
        and scene.background in scene.caption
        and scene.subjects[0].identity.noun in scene.caption
    )


def test_captions_never_tell_the_identity() -> None:
    secrets = {*world.BODY_COLOURS, *world.SECOND_COLOURS, *world.PATTERNS}
    for index in range(200):
        assert secrets.isdisjoint(world.scene(Split.CORPUS, index, second=0.5).caption.split())


def test_an_attribute_caption_tells_the_identity_of_one_subject() -> None:
    item = world.scene(Split.ZOO, 0, second=1.0)
    who = item.subjects[1].identity
    assert f"a {who.body} {who.noun} with {who.second} {who.pattern} at the" in item.attribute_caption(1)
    assert item.attribute_caption(1).replace(who.description, who.noun) == item.caption


def test_two_subjects_are_of_two_nouns_and_their_masks_do_not_overlap() -> None:
    scenes = [world.scene(Split.CORPUS, index, second=1.0) for index in range(30)]
    for scene in scenes:
        drawing = world.draw(scene)
        assert scene.subjects[0].identity.noun != scene.subjects[1].identity.noun
        assert not (drawing.masks[0] & drawing.masks[1]).any() and drawing.masks[1].any()


def test_another_identity_changes_the_subject_and_nothing_else() -> None:
    scene = world.scene(Split.EVALUATION, 3)
    identity = scene.subjects[0].identity
    other = dataclasses.replace(identity, body=next(body for body in world.BODY_COLOURS if body != identity.body))
    before, after = world.draw(scene), world.draw(world.same_scene_with(scene, other))
    changed = (before.image != after.image).any(-1)
    assert changed.any() and not (changed & ~shapes.shrink(~before.masks[0], 0) & ~before.masks[0]).any()
    outside = ~np.pad(before.masks[0], 1)[1:-1, 1:-1]
    assert changed[before.masks[0]].mean() > 0.3 and changed[outside].mean() < 0.05


def test_silhouettes_differ_strongly() -> None:
    masks = {}
    for noun in world.NOUNS:
        identity = next(item for item in world.identities(Split.CORPUS) if item.noun == noun)
        cover, _ = world._subject(identity)
        masks[noun] = cover >= 0.5
    names = list(masks)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            overlap = (masks[first] & masks[second]).sum() / (masks[first] | masks[second]).sum()
            assert overlap < 0.85, (first, second, overlap)
