"""Where a word's tokens are: the table of the method's section 5, on CLIP's own byte-pair rules and ids."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer

from realcustom.settings import Occurrence, WordMatching
from realcustom.words import (
    TargetWordNotFound,
    TargetWordTruncated,
    WordMatch,
    check_tokenizers_agree,
    find_word,
    union,
    word_mask,
    words_of,
)
from tests.support.clip_bpe import BOS, EOS, clip_tokenizer
from tests.support.tiny import tiny_tokenizer

WHOLE_WORDS = (WordMatching.IDS, WordMatching.OFFSETS)
SUIT = "This dog is wearing a spacesuit in space"
SUIT_IDS = (589, 1929, 533, 3309, 320, 7857, 3940, 530, 2138)

# prompt, phrase, ids of the prompt, our positions, the released code's; () where there are none
TABLE = [
    ("a toy in the jungle", "toy", (320, 5988, 530, 518, 10865), (2,), (2,)),
    ("A Toy in the jungle", "toy", (320, 5988, 530, 518, 10865), (2,), ()),
    ("two toys in the jungle", "toy", (1237, 7162, 530, 518, 10865), (), (2,)),
    (SUIT, "spacesuit", SUIT_IDS, (6, 7), (6, 7)),
    (SUIT, "space", SUIT_IDS, (9,), (6, 9)),
    (SUIT, "suit", SUIT_IDS, (), (7,)),
    ("a plushie on a sofa", "plushie", (320, 2052, 26638, 525, 320, 15723), (2, 3), (2, 3)),
    ("a dog and a dog", "dog", (320, 1929, 537, 320, 1929), (2, 5), (2, 5)),
    ("the concatenated cat sits", "cat", (518, 616, 1481, 524, 943, 2368, 12726), (6,), (3, 6)),
    ("category of cat", "cat", (9432, 539, 2368), (3,), (1, 3)),
    ("a dog's bone", "dog", (320, 1929, 568, 6195), (2,), (2,)),
    (
        "dog with the pink hat runs",
        "dog with the pink hat",
        (1929, 593, 518, 3360, 3801, 5586),
        (1, 2, 3, 4, 5),
        (1, 2, 3, 4, 5),
    ),
    ("borzoi", "borzoi", (1141, 4397, 328), (1, 2, 3), (1, 2, 3)),
    ("axolotl", "axolotl", (3165, 78, 5132, 331), (1, 2, 3, 4), (1, 2, 3, 4)),
]


class WithoutOffsets:
    """The same tokenizer as one that has no offset mapping."""

    is_fast = False

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str, **options: Any) -> Any:
        assert "return_offsets_mapping" not in options
        return self._tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return clip_tokenizer()


def found(
    tokenizer: Any, prompt: str, phrase: str, match: WordMatching, occurrence: Occurrence | int = Occurrence.ALL
) -> tuple[int, ...]:
    """The positions; () where there is no such word."""
    try:
        return find_word(tokenizer, prompt, phrase, occurrence, match=match).positions
    except TargetWordNotFound:
        return ()


@pytest.mark.parametrize(("prompt", "phrase", "ids", "ours", "released"), TABLE)
def test_the_table(
    tokenizer: CLIPTokenizer,
    prompt: str,
    phrase: str,
    ids: tuple[int, ...],
    ours: tuple[int, ...],
    released: tuple[int, ...],
) -> None:
    """inv. 34: ids, our positions by ids and by characters, with offsets and without, and the released code's."""
    assert tuple(tokenizer(prompt).input_ids) == (BOS, *ids, EOS)
    assert found(tokenizer, prompt, phrase, WordMatching.IDS) == ours
    assert found(tokenizer, prompt, phrase, WordMatching.OFFSETS) == ours
    assert found(WithoutOffsets(tokenizer), prompt, phrase, WordMatching.OFFSETS) == ours
    assert found(tokenizer, prompt, phrase, WordMatching.RELEASE_COMPAT) == released


@pytest.mark.parametrize("match", WHOLE_WORDS)
def test_the_table_s_plural(tokenizer: CLIPTokenizer, match: WordMatching) -> None:
    """inv. 34: "toys" for "toy" where it is allowed, and said so; the word itself goes before its plural."""
    toys = find_word(tokenizer, "two toys in the jungle", " toy ", plural=True, match=match)
    assert toys == WordMatch(phrase="toys", positions=(2,))
    assert find_word(tokenizer, "the boxes", "box", plural=True, match=match).phrase == "boxes"
    both = find_word(tokenizer, "toys and a toy", "toy", plural=True, match=match)
    assert both == WordMatch(phrase="toy", positions=(4,))


@pytest.mark.parametrize(
    ("prompt", "phrase", "positions"),
    [
        ("a toy in the jungle", "TOY", (2,)),
        ("a toy in the jungle", "  toy\n", (2,)),
        ("a dog, with the hat", "dog", (2,)),
        ('a "dog" with hat.', "dog", (3,)),
        ("a dog, with the hat", "dog with the hat", ()),  # a comma is a token between them
        ("a dog's bone", "dog's bone", (2, 3, 4)),
        ("a dog's bone", "'s", (3,)),
        ("a dog's bone", "s", ()),
        ("a dog-cat", "cat", (4,)),
        ("a dog_cat", "cat", (4,)),
        ("the pink  \t hat", "pink hat", (2, 3)),
        ("the pink hat", "pink   HAT", (2, 3)),
        ("pink hat", "pink hat", (1, 2)),
        ("spacesuit", "SpaceSuit", (1, 2)),
        ("dog dog dog", "dog dog", (1, 2)),  # the second would overlap the first
        ("dog dog dog dog", "dog dog", (1, 2, 3, 4)),
        ("the café on", "CAFÉ", (2,)),
        (unicodedata.normalize("NFD", "the café on"), "café", (2,)),
        ("the CAFÉ on", unicodedata.normalize("NFD", "café"), (2,)),
        ("the café on", "caf", ()),
        ("the café on", "cafe", ()),
        ("the dogs", "dog", ()),
        ("a photo of a 猫 in space", "猫", (5, 6, 7)),  # three bytes, three tokens
        ("a dog...", "dog.", ()),  # "..." is one word to CLIP
        ("a dog.", "dog.", (2, 3)),
        ("a hat (pink) and a (pink) hat", "(PINK)", (3, 4, 5, 8, 9, 10)),
    ],
)
def test_whole_words(tokenizer: CLIPTokenizer, prompt: str, phrase: str, positions: tuple[int, ...]) -> None:
    """inv. 34: text is cleaned as CLIP cleans it, punctuation ends a word, and both ways to match agree."""
    assert found(tokenizer, prompt, phrase, WordMatching.IDS) == positions
    assert found(tokenizer, prompt, phrase, WordMatching.OFFSETS) == positions
    assert found(WithoutOffsets(tokenizer), prompt, phrase, WordMatching.OFFSETS) == positions


@pytest.mark.parametrize(
    ("prompt", "phrase", "by_ids"), [("a dog7", "dog", (2,)), ("a cat - dog", "cat-dog", (2, 3, 4))]
)
def test_where_clip_s_words_are_not_a_reader_s(
    tokenizer: CLIPTokenizer, prompt: str, phrase: str, by_ids: tuple[int, ...]
) -> None:
    """CLIP takes a digit for a word, and does not see the spaces round punctuation."""
    assert found(tokenizer, prompt, phrase, WordMatching.IDS) == by_ids
    assert found(tokenizer, prompt, phrase, WordMatching.OFFSETS) == ()


@pytest.mark.parametrize("match", WHOLE_WORDS)
def test_a_token_that_pads_ends_a_word(match: WordMatching) -> None:
    """A "!" of the prompt is one, to a tokenizer that pads with it."""
    assert found(clip_tokenizer(pad_token="!"), "a cat!dog", "dog", match) == (4,)


@pytest.mark.parametrize(
    ("prompt", "phrase", "positions"),
    [
        ("dog dog dog", "dog dog", (1, 2, 3)),  # overlapping ones too
        ("A Toy in the jungle", "Toy", (2,)),  # case as given
        ("the pink  hat", "pink hat", ()),  # spaces as given
        ("the pink hat", " pink", (2,)),
        ("a spacesuit", "spac", (2, 3, 4)),  # the fragment's own tokens, past those of the word: "sp", "a", "c"
    ],
)
def test_the_released_rule(tokenizer: CLIPTokenizer, prompt: str, phrase: str, positions: tuple[int, ...]) -> None:
    """inv. 34: characters as they stand, tokens counted in the text before and up to the end."""
    assert found(tokenizer, prompt, phrase, WordMatching.RELEASE_COMPAT) == positions
    ends = [(at, at + len(phrase)) for at in range(len(prompt)) if prompt[at : at + len(phrase)] == phrase]
    spans = [[len(tokenizer(prompt[:end]).input_ids) - 1 for end in pair] for pair in ends]
    assert positions == tuple(sorted({position for span in spans for position in range(*span)}))


def test_the_released_rule_marks_no_zero_mask(tokenizer: CLIPTokenizer) -> None:
    """A fragment after which the text has no more tokens than before it: the released code goes on with nothing."""
    assert len(tokenizer("a spa").input_ids) > len(tokenizer("a space").input_ids)
    with pytest.raises(TargetWordNotFound, match=r"its words are: a, space \(upper and lower case differ\)"):
        find_word(tokenizer, "a space", "ce", match=WordMatching.RELEASE_COMPAT)


@pytest.mark.parametrize("match", WordMatching)
@pytest.mark.parametrize("phrase", ["plushie", "pink toy", "cat."])
def test_a_word_that_is_not_there_names_those_that_are(
    tokenizer: CLIPTokenizer, match: WordMatching, phrase: str
) -> None:
    with pytest.raises(TargetWordNotFound, match=rf"'{phrase}' is not .* words are: a, dog's, toy, dog-cat \("):
        find_word(tokenizer, "a dog's toy; a dog-cat", phrase, plural=True, match=match)
    with pytest.raises(TargetWordNotFound, match="words are: none"):
        find_word(tokenizer, "", phrase, match=match)


@pytest.mark.parametrize("match", WordMatching)
@pytest.mark.parametrize("phrase", ["", "  ", "\n"])
def test_an_empty_word(tokenizer: CLIPTokenizer, match: WordMatching, phrase: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        find_word(tokenizer, "a dog", phrase, plural=True, match=match)


@pytest.mark.parametrize("match", WordMatching)
def test_occurrence(tokenizer: CLIPTokenizer, match: WordMatching) -> None:
    prompt = "a plushie on a plushie"
    chosen = [
        found(tokenizer, prompt, "plushie", match, choice)
        for choice in (Occurrence.ALL, Occurrence.FIRST, Occurrence.LAST, 0, 1)
    ]
    assert chosen == [(2, 3, 6, 7), (2, 3), (6, 7), (2, 3), (6, 7)]
    for wrong in (2, -1):
        with pytest.raises(TargetWordNotFound, match=f"occurs 2 time.* no occurrence {wrong}"):
            find_word(tokenizer, prompt, "plushie", wrong, match=match)


@pytest.mark.parametrize("match", WordMatching)
def test_truncated(tokenizer: CLIPTokenizer, match: WordMatching) -> None:
    with pytest.raises(TargetWordTruncated, match="stands at token 76 of the prompt, the text encoder reads 75"):
        find_word(tokenizer, "a " * 75 + "dog", "dog", match=match)
    assert found(tokenizer, "a " * 74 + "dog", "dog", match) == (75,)
    twice = "a dog " + "a " * 80 + "dog"
    for occurrence in (Occurrence.ALL, Occurrence.FIRST, 0):
        assert found(tokenizer, twice, "dog", match, occurrence) == (2,)
    for occurrence in (Occurrence.LAST, 1):
        with pytest.raises(TargetWordTruncated):
            find_word(tokenizer, twice, "dog", occurrence, match=match)


def test_a_word_cut_in_two_is_truncated(tokenizer: CLIPTokenizer) -> None:
    """The encoder reads "plu" of "plushie"; the released code marks that."""
    prompt = "a " * 74 + "plushie"
    for match in WHOLE_WORDS:
        with pytest.raises(TargetWordTruncated, match="76"):
            find_word(tokenizer, prompt, "plushie", match=match)
        assert found(tokenizer, "plushie " + prompt, "plushie", match) == (1, 2)
    assert found(tokenizer, prompt, "plushie", WordMatching.RELEASE_COMPAT) == (75,)


def test_union_and_mask(tokenizer: CLIPTokenizer) -> None:
    dog, hat, again = (find_word(tokenizer, "a dog with pink hat, dog", word) for word in ("dog", "pink hat", "Dog"))
    both = union([hat, dog, dog])
    assert both == WordMatch(phrase="pink hat, dog", positions=(2, 4, 5, 7))
    assert union([dog]) == dog and union([dog, again]).positions == dog.positions
    mask = word_mask(both, 77)
    assert torch.equal(mask.nonzero().flatten(), torch.tensor([2, 4, 5, 7])) and mask.shape == (77,)
    with pytest.raises(ValueError, match="at least one"):
        union([])


def test_words_of() -> None:
    assert words_of("A dog's toy, a hot-dog; the café_bar & a toy") == [
        "A",
        "dog's",
        "toy",
        "a",
        "hot-dog",
        "the",
        "café",
        "bar",
    ]


@pytest.mark.parametrize("prompt", ["a toy in the jungle", "", "a dog! and a cat!", "a " * 90, "a " * 76 + "plushie"])
def test_tokenizers_that_pad_otherwise_agree(tokenizer: CLIPTokenizer, prompt: str) -> None:
    """inv. 34: SDXL's two differ in what they pad with, "!" in the second, and in nothing that the encoders read."""
    check_tokenizers_agree(tokenizer, clip_tokenizer(pad_token="!"), prompt)
    check_tokenizers_agree(clip_tokenizer(pad_token="!"), tokenizer, prompt)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a dog!! and a cat", r"token 3 on: '!!</w>' \(748\) and '!' \(0\)"),
        ("a toy on a sofa", r"token 2 on: 'toy</w>' \(5988\) and 'to' \(580\)"),
    ],
)
def test_tokenizers_that_disagree(tokenizer: CLIPTokenizer, prompt: str, message: str) -> None:
    other = clip_tokenizer(pad_token="!", leave_out=(5988,))
    with pytest.raises(ValueError, match=message):
        check_tokenizers_agree(tokenizer, other, prompt)


def test_tokenizers_of_other_length_or_ids_disagree(tokenizer: CLIPTokenizer) -> None:
    with pytest.raises(ValueError, match=r"token 11 on: 'a</w>' \(320\) and '<\|endoftext\|>'"):
        check_tokenizers_agree(tokenizer, clip_tokenizer(length=12), "a " * 40)
    with pytest.raises(ValueError, match=r"token 0 on: '<\|startoftext\|>' \(49406\) and '<\|startoftext\|>'"):
        check_tokenizers_agree(tokenizer, tiny_tokenizer(), "a toy")
