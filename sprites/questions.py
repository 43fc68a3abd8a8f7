"""What an evaluation asks: a scene for the prompt, and pictures of its subjects to take the identities from.

The hard kinds are those that a method can fail by degrees. In all of them the reference contradicts the prompt: another
background, another place. Everything is a pure function of a kind and an index, on identities that no model has met.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

import numpy as np

from realcustom.sprites.world import (
    BACKGROUNDS,
    OPPOSITE,
    PLACES,
    Identity,
    Placed,
    Scene,
    Split,
    identities,
    is_held_out,
    random_for,
    scene,
)

FIRST_SCENE = 2 * 10**9  # apart from the scenes that others measure on
SPAN = 10**6  # scenes of a kind


class Kind(enum.Enum):
    """A kind of question."""

    PLAIN = "plain"  # one subject; the reference has any background and place
    CONTRADICTION = "contradiction"  # one subject; the reference has another background and the opposite place
    UNSEEN = "unseen"  # and the prompt's background and place were left out of corpora beside the noun (`is_held_out`)
    BYSTANDER = "bystander"  # a second object is asked for, which must not take the subject's colours
    TWO_SUBJECTS = "two_subjects"  # two subjects, each with its picture


HARD = tuple(kind for kind in Kind if kind is not Kind.PLAIN)
_SECOND = (Kind.BYSTANDER, Kind.TWO_SUBJECTS)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt and what is given for it."""

    kind: Kind
    target: Scene  # the right answer: its caption is the prompt
    references: tuple[Scene, ...]  # pictures of the first subjects of `target`, one each
    wrong_references: tuple[Scene, ...]  # the same pictures with other identities of the same nouns


def question(kind: Kind, index: int) -> Question:
    """Question `index` of a kind."""
    rng = random_for(Split.EVALUATION, index, purpose=20 + list(Kind).index(kind))
    first = FIRST_SCENE + list(Kind).index(kind) * SPAN
    target = scene(Split.EVALUATION, first + index, second=float(kind in _SECOND))
    if kind is Kind.UNSEEN:
        target = _at_a_held_out_place(target, rng)
    given = target.subjects if kind is Kind.TWO_SUBJECTS else target.subjects[:1]
    references = tuple(_reference(kind, placed, target.background, rng) for placed in given)
    wrong = tuple(_with(reference, _another(reference.subjects[0].identity, rng)) for reference in references)
    return Question(kind=kind, target=target, references=references, wrong_references=wrong)


def other_views(question: Question, count: int) -> list[Scene]:
    """Further pictures of the first subject, each on a background and at a place of its own: what nobody was shown."""
    identity = question.target.subjects[0].identity
    seeds = (question.target.texture_seed + number for number in range(1, count + 1))
    return [_with(scene(Split.EVALUATION, FIRST_SCENE + 10 * SPAN + seed), identity) for seed in seeds]


def stolen(target: Scene) -> Scene:
    """`target` as it must not be: its second object has the first one's colours and pattern."""
    subject, other = target.subjects
    identity = dataclasses.replace(subject.identity, noun=other.identity.noun)
    return dataclasses.replace(target, subjects=(subject, dataclasses.replace(other, identity=identity)))


def _at_a_held_out_place(target: Scene, rng: np.random.Generator) -> Scene:
    placed = target.subjects[0]
    noun = placed.identity.noun
    pairs = [(b, p) for b in BACKGROUNDS for p in PLACES if is_held_out(noun, b, p)]
    background, place = pairs[int(rng.integers(len(pairs)))]
    return dataclasses.replace(target, background=background, subjects=(dataclasses.replace(placed, place=place),))


def _reference(kind: Kind, placed: Placed, background: str, rng: np.random.Generator) -> Scene:
    """A picture of the subject alone; of the hard kinds it contradicts the prompt, and shows nothing that is held out."""
    backgrounds, places = list(BACKGROUNDS), list(PLACES)
    if kind is not Kind.PLAIN:
        backgrounds.remove(background)
        places = [OPPOSITE[placed.place]]
    pairs = [(b, p) for b in backgrounds for p in places if not is_held_out(placed.identity.noun, b, p)]
    behind, place = pairs[int(rng.integers(len(pairs)))]
    dx, dy = (int(value) for value in rng.integers(-1, 2, 2))
    shown = Placed(identity=placed.identity, place=place, jitter=(dx, dy))
    template = "a {subject} on {background}"
    return Scene(subjects=(shown,), background=behind, template=template, texture_seed=int(rng.integers(2**31)))


def _another(identity: Identity, rng: np.random.Generator) -> Identity:
    """Another identity of the same noun, of another body colour."""
    others = [one for one in identities(Split.EVALUATION) if one.noun == identity.noun and one.body != identity.body]
    return others[int(rng.integers(len(others)))]


def _with(item: Scene, identity: Identity) -> Scene:
    return dataclasses.replace(item, subjects=(dataclasses.replace(item.subjects[0], identity=identity),))
