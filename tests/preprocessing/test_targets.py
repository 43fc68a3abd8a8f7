"""Words that can name a subject, with their place in the caption."""

from __future__ import annotations

import pytest

from realcustom.preprocessing.caption.nouns import find_targets
from tests.support.phrases import Labelled, agreement, held_out, held_out_later, labelled


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a red car parked on the street", ["car", "street"]),
        ("a pair of pink sunglasses on a table", ["sunglasses", "table"]),
        ("the man's blue back-pack, new", ["back-pack"]),
        ("A black and white cat, and a dog running", ["cat", "dog"]),
        ("one small wooden robot toy in front of a white wall", ["toy", "wall"]),
        ("Red ceramic coffee mug, 300 ml", ["mug"]),
        ("The girls' shoes", ["shoes"]),
        ("An old sewing machine; a woman holding curtains", ["machine", "woman", "curtains"]),
        ("a wolf howls at three owls", ["wolf", "owls"]),
        ("the Golden Gate Bridge and my cat Felix", ["Bridge", "cat"]),
        ("Ein Hund mit einem Ball", []),
        ("IMG_2034.JPG", []),
        ("", []),
    ],
)
def test_noun_phrase_rule(caption: str, words: list[str]) -> None:
    found = find_targets(caption, (), 9)
    assert [target.word for target in found] == words
    assert all(caption[target.start : target.end] == target.word for target in found)


def _found(caption: str) -> list[str]:
    return [target.word.lower() for target in find_targets(caption, (), 99)]


@pytest.mark.parametrize(
    ("items", "precision", "recall", "first"),
    [(held_out(), 0.88, 0.95, 0.86), (held_out_later(), 0.80, 0.92, 0.75)],
    ids=["all", "later"],
)
def test_held_out_captions(items: list[Labelled], precision: float, recall: float, first: float) -> None:
    measured = agreement(items, _found)
    assert measured.precision >= precision and measured.recall >= recall and measured.first >= first, measured


def test_labels_are_words_of_their_captions() -> None:
    items = labelled()
    assert len({item.caption for item in items}) == len(items) > 400
    assert all(word in item.caption.lower() for item in items for word in item.words)


def test_vocabulary_is_matched_as_whole_words_longest_first() -> None:
    found = find_targets("Teddy bear, bears and a BEAR; a teddy bear (c++)", ("bear", "teddy bear", "c++"), 9)
    assert [(target.word, target.start) for target in found] == [("Teddy bear", 0), ("BEAR", 24), ("c++", 44)]
    assert len(find_targets("a cat and a dog", ("dog", "cat"), 1)) == 1
