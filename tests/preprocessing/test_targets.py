"""Words that can name a subject, with their place in the caption."""

from __future__ import annotations

import pytest

from preprocessing.targets import find_targets


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a red car parked on the street", ["car", "street"]),
        ("A close up of a dog in the grass", ["dog", "grass"]),
        ("a black and white cat sitting on a couch", ["cat", "couch"]),
        ("a pair of pink sunglasses on a table", ["sunglasses", "table"]),
        ("the man's blue back-pack, new", ["back-pack"]),
        ("one small wooden robot toy in front of a white wall", ["toy", "wall"]),
        ("dog running", []),
        ("IMG_2034.JPG", []),
        ("", []),
    ],
)
def test_noun_phrase_rule(caption: str, words: list[str]) -> None:
    found = find_targets(caption, (), 9)
    assert [target.word for target in found] == words
    assert all(caption[target.start : target.end] == target.word for target in found)


def test_vocabulary_is_matched_as_whole_words_longest_first() -> None:
    found = find_targets("Teddy bear, bears and a BEAR; a teddy bear (c++)", ("bear", "teddy bear", "c++"), 9)
    assert [(target.word, target.start) for target in found] == [("Teddy bear", 0), ("BEAR", 24), ("c++", 44)]
    assert len(find_targets("a cat and a dog", ("dog", "cat"), 1)) == 1
