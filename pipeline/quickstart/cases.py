"""Evaluation cases of the synthetic world, whose ground truth is known, and its judge in the form that evaluation takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from realcustom.evaluation.table import Case, Scores
from realcustom.sprites import similarity, world, zoo_path
from realcustom.sprites.judge import Judge as SpritesJudge


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The judge's data about a case."""

    identity: world.Identity
    background: str
    reference: world.Scene  # the identity that the reference shows


def drawn_cases(count: int, first: int = 0) -> list[Case]:
    """`count` cases on identities and seeds that no model was trained on.

    The reference is a whole picture of the subject with its own background and place; the wrong reference is the same
    picture with another identity of the same noun; the oracle is the prompt's scene drawn with the right one.
    """
    return [_case(index) for index in range(first, first + count)]


def _case(index: int) -> Case:
    rng = world.random_for(world.Split.EVALUATION, index, purpose=7)
    target = world.scene(world.Split.EVALUATION, 2 * index)
    identity = target.subjects[0].identity
    reference = world.same_scene_with(world.scene(world.Split.EVALUATION, 2 * index + 1), identity)
    others = [
        other
        for other in world.identities(world.Split.EVALUATION)
        if other.noun == identity.noun and other.body != identity.body
    ]
    wrong = world.same_scene_with(reference, others[int(rng.integers(len(others)))])
    return Case(
        uid=f"case-{index}",
        prompt=target.caption,
        target_word=identity.noun,
        reference=picture(reference),
        wrong_reference=picture(wrong),
        oracle=picture(target),
        seed=10_000 + index,
        truth=Truth(identity=identity, background=target.background, reference=reference),
    )


def picture(scene: world.Scene) -> Image.Image:
    """A scene as a PIL image."""
    return Image.fromarray(world.draw(scene).image)


class DrawnJudge:
    """The judge that was trained on ground truth, as `evaluation` takes it."""

    def __init__(self) -> None:
        self.judge = SpritesJudge.load(zoo_path("judge"))

    def __call__(self, images: Sequence[Image.Image], cases: Sequence[Case]) -> list[Scores]:
        """Score images of any size against their cases' truth, in order."""
        side = (world.SIZE, world.SIZE)
        pixels = np.stack([np.asarray(image.convert("RGB").resize(side)) for image in images])
        verdict = self.judge(pixels)
        similarities = similarity.similarity(pixels, verdict, [case.truth.identity for case in cases])
        nouns = verdict.noun.argmax(1)
        backgrounds = verdict.background.argmax(1)
        return [
            Scores(
                similarity=float(similarities[i]),
                background=world.BACKGROUNDS[int(backgrounds[i])] == case.truth.background,
                noun=world.NOUNS[int(nouns[i])] == case.truth.identity.noun,
            )
            for i, case in enumerate(cases)
        ]
