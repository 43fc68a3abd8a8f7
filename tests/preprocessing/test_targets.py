"""Words that can name a subject, with their place in the caption."""

from __future__ import annotations

import pytest

from realcustom.preprocessing.caption.nouns import find_targets, plain_text
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


@pytest.mark.parametrize(
    ("caption", "nouns", "words"),
    [
        ("a photo of a can", (), ["can"]),
        ("a photo of a dog2", (), ["dog2"]),
        ("a red toy beside a can of beans", (), ["toy", "can", "beans"]),
        ("a photo of a teddy bear", (), ["teddy bear"]),  # not the rule's "bear" as well
        ("a photo of a mug", (), ["mug"]),
        ("a mug, a can and a toy", ("toy",), ["can", "toy"]),
    ],
)
def test_further_words_stand_beside_the_rule_or_the_vocabulary(
    caption: str, nouns: tuple[str, ...], words: list[str]
) -> None:
    found = find_targets(caption, nouns, 9, ("can", "dog2", "teddy bear"))
    assert [target.word for target in found] == words
    assert all(caption[target.start : target.end] == target.word for target in found)


@pytest.mark.parametrize(
    ("caption", "nouns", "words"),
    [
        ("a dog &amp; a cat", (), ["dog", "cat"]),
        ("a caf\u0065\u0301 table", ("caf\u00e9",), ["caf\u00e9"]),
        ("a caf\u00e9 table", ("caf\u0065\u0301",), ["caf\u00e9"]),
        (
            "\u4e00\u53ea\u68d5\u8272\u7684\u72d7\u5728\u8349\u5730\u4e0a",
            ("\u72d7",),
            ["\u72d7"],
        ),  # Chinese: a brown dog
        (
            "\u30e9\u30fc\u30e1\u30f3\u3068\u732b",
            ("\u732b", "\u30e9\u30fc\u30e1\u30f3"),
            ["\u30e9\u30fc\u30e1\u30f3", "\u732b"],
        ),
        (
            "\u0e2a\u0e38\u0e19\u0e31\u0e02\u0e2a\u0e35\u0e19\u0e49\u0e33\u0e15\u0e32\u0e25",
            ("\u0e2a\u0e38\u0e19\u0e31\u0e02",),
            ["\u0e2a\u0e38\u0e19\u0e31\u0e02"],
        ),
        ("\u72d7dog\u72d7", ("dog",), ["dog"]),
        ("a hotdog and dogs", ("dog",), []),
        ("\u0441\u043e\u0431\u0430\u043a\u0438", ("\u0441\u043e\u0431\u0430\u043a",), []),  # Russian has spaces
    ],
)
def test_words_of_any_script_and_of_html(caption: str, nouns: tuple[str, ...], words: list[str]) -> None:
    text = plain_text(caption)
    found = find_targets(text, nouns, 9)
    assert [target.word for target in found] == words
    assert all(text[target.start : target.end] == target.word for target in found)
