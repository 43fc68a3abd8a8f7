"""Where a word's tokens are: the table of the method's section 5, on CLIP's own byte-pair rules."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTokenizer

from realcustom.settings import Occurrence
from realcustom.words import TargetWordNotFound, TargetWordTruncated, find_word, word_mask, words_of
from tests.tiny import tiny_tokenizer

WHOLE = ("a", "toy", "toys", "in", "the", "jungle", "two", "this", "dog", "is", "wearing", "space", "and", "cat", "of")
WHOLE += ("category", "with", "pink", "hat", "runs", "bone", "'s", "on", "sofa", "sits")


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """CLIP's rules with the merges that the table needs: "spacesuit" is space|suit, "plushie" plu|shie, as with CLIP's."""
    whole = tiny_tokenizer((*WHOLE, "suit", "shie"))
    vocabulary, merges = whole.get_vocab(), _merges(whole)
    for word in ("space", "plu", "con", "cat"):  # pieces that do not end a word
        pieces = list(word)
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
                vocabulary.setdefault("".join(pair), len(vocabulary))
            pieces[:2] = ["".join(pair)]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _merges(tokenizer: CLIPTokenizer) -> list[tuple[str, str]]:
    import json

    model = json.loads(tokenizer._tokenizer.to_str())["model"]
    return [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]


@pytest.mark.parametrize(
    ("prompt", "phrase", "positions"),
    [
        ("a toy in the jungle", "toy", {2}),
        ("A Toy in the jungle", "toy", {2}),
        ("a toy in the jungle", "TOY", {2}),
        ("This dog is wearing a spacesuit in space", "spacesuit", {6, 7}),
        ("This dog is wearing a spacesuit in space", "space", {9}),
        ("a plushie on a sofa", "plushie", {2, 3}),
        ("a dog and a dog", "dog", {2, 5}),
        ("category of cat", "cat", {3}),
        ("a dog's bone", "dog", {2}),
        ("dog with the pink hat runs", "dog with the pink hat", {1, 2, 3, 4, 5}),
    ],
)
def test_positions(tokenizer: CLIPTokenizer, prompt: str, phrase: str, positions: set[int]) -> None:
    """inv. 34 (the table's rules; the ids of the real vocabulary are not needed for positions)."""
    assert set(find_word(tokenizer, prompt, phrase).positions) == positions


@pytest.mark.parametrize(
    ("prompt", "phrase"),
    [
        ("two toys in the jungle", "toy"),
        ("This dog is wearing a spacesuit in space", "suit"),
        ("the concatenated dog sits", "cat"),
        ("a toy in the jungle", "cat"),
    ],
)
def test_a_word_that_is_not_there_names_those_that_are(tokenizer: CLIPTokenizer, prompt: str, phrase: str) -> None:
    with pytest.raises(TargetWordNotFound, match=words_of(prompt)[0]):
        find_word(tokenizer, prompt, phrase)


def test_a_piece_before_the_word_does_not_hide_it(tokenizer: CLIPTokenizer) -> None:
    prompt = "the concatenated cat sits"
    found = find_word(tokenizer, prompt, "cat").positions
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)
    assert [tokens[position] for position in found] == ["cat</w>"]


def test_plural_and_occurrence(tokenizer: CLIPTokenizer) -> None:
    match = find_word(tokenizer, "two toys in the jungle", "toy", plural=True)
    assert match.phrase == "toys" and match.positions == (2,)
    prompt = "a dog and a dog"
    chosen = {
        choice: find_word(tokenizer, prompt, "dog", choice).positions
        for choice in (Occurrence.ALL, Occurrence.FIRST, Occurrence.LAST, 0, 1)
    }
    assert list(chosen.values()) == [(2, 5), (2,), (5,), (2,), (5,)]
    with pytest.raises(TargetWordNotFound, match="occurs 2 time"):
        find_word(tokenizer, prompt, "dog", 2)


def test_truncated_and_empty(tokenizer: CLIPTokenizer) -> None:
    with pytest.raises(TargetWordTruncated, match="75"):
        find_word(tokenizer, "a " * 80 + "dog", "dog")
    assert find_word(tokenizer, "a " * 74 + "dog", "dog").positions == (75,)
    for phrase in ("", "  "):
        with pytest.raises(ValueError, match="empty"):
            find_word(tokenizer, "a dog", phrase)


def test_word_mask(tokenizer: CLIPTokenizer) -> None:
    mask = word_mask(find_word(tokenizer, "a dog and a dog", "dog"), 77)
    assert torch.equal(mask.nonzero().flatten(), torch.tensor([2, 5])) and mask.shape == (77,)
