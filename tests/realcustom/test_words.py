"""Where a word's tokens are: the table of the method's section 5, on CLIP's own byte-pair rules and ids."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer

from realcustom.phrases import words_of
from realcustom.settings import Occurrence, WordMatching
from realcustom.tokens import check_tokenizers_agree, chunks_of, cut_off, token_spans, tokenize
from realcustom.words import (
    TargetWordNotFound,
    TargetWordTruncated,
    WordMatch,
    find_word,
    union,
    word_mask,
)
from tests.support.clip_bpe import BOS, EOS, clip_tokenizer
from tests.support.tiny import tiny_tokenizer

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
    tokenizer: Any,
    prompt: str,
    phrase: str,
    match: WordMatching = WordMatching.WHOLE_WORDS,
    occurrence: Occurrence | int = Occurrence.ALL,
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
    """inv. 34: ids, our positions from a tokenizer with offsets and one without, and the released code's."""
    assert tuple(tokenizer(prompt).input_ids) == (BOS, *ids, EOS)
    assert found(tokenizer, prompt, phrase) == ours
    assert found(WithoutOffsets(tokenizer), prompt, phrase) == ours
    assert found(tokenizer, prompt, phrase, WordMatching.RELEASE_COMPAT) == released


def test_the_table_s_plural(tokenizer: CLIPTokenizer) -> None:
    """inv. 34: "toys" for "toy" where it is allowed, and said so; the word itself goes before its plural."""
    toys = find_word(tokenizer, "two toys in the jungle", " toy ", plural=True)
    assert toys == WordMatch(phrase="toys", positions=(2,))
    assert find_word(tokenizer, "the boxes", "box", plural=True).phrase == "boxes"
    both = find_word(tokenizer, "toys and a toy", "toy", plural=True)
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
        ("a hat (pink), a dog", "hat (pink)", (2, 3, 4, 5)),
        ('a "dog", hat', '"dog"', (2, 3, 4)),
        ('a "dog", hat', '"dog",', (2, 3, 4, 5)),
        ("a hot-dog, a dog", "hot-dog", (2, 3, 4, 5)),
        ("a dog\u2019s bone", "dog", (2,)),
        ("a dog\u2019s bone", "s", ()),
        ("a dog!!", "dog!", ()),  # "!!" is one mark
        ("a dog?!", "dog?", (2, 3)),
        ("a (((dog)))", "dog", (5,)),
        ("dog:1.2", "dog", (1,)),
        ("a dog7", "dog", ()),  # a digit is CLIP's own word, and a part of the reader's
        ("a cat - dog", "cat-dog", ()),  # CLIP does not see the spaces
        ("a dog\u0323 hat", "dog", ()),  # a letter with an accent that has no composed form
        ("hotdog dog dog", "dog dog", (4, 5)),
    ],
)
def test_whole_words(tokenizer: CLIPTokenizer, prompt: str, phrase: str, positions: tuple[int, ...]) -> None:
    """inv. 34: the phrase's characters, and all tokens that they touch; punctuation ends a word."""
    assert found(tokenizer, prompt, phrase) == positions
    assert found(WithoutOffsets(tokenizer), prompt, phrase) == positions


def test_the_token_that_a_phrase_ends_in_counts_whole() -> None:
    """CLIP has tokens of several marks, such as `",`: a phrase that ends in one of its characters touches all of it."""
    tokenizer = tiny_tokenizer(("a", "dog", "hat", "with", '",', "),"))
    prompt = 'a "dog", with a (hat), a dog'
    assert tokenizer.tokenize(prompt)[3] == '",</w>' and tokenizer.tokenize(prompt)[8] == "),</w>"
    for each in (tokenizer, WithoutOffsets(tokenizer)):
        assert found(each, prompt, '"dog"') == (2, 3, 4) and found(each, prompt, "(hat)") == (7, 8, 9)
        assert found(each, prompt, "dog") == (3, 11) and found(each, prompt, '"dog",') == (2, 3, 4)


def test_without_offsets_the_spans_are_the_same(tokenizer: CLIPTokenizer) -> None:
    """A tokenizer that has none and changes the text besides is refused: no word could be found in it."""
    for text in ("a photo of a 猫, in space!", "the café on\tİstanbul's hat...", "", "  a dog_cat's (pink) hat7 "):
        assert token_spans(WithoutOffsets(tokenizer), text) == token_spans(tokenizer, text)

    class Changing(WithoutOffsets):
        def __call__(self, text: str, **options: Any) -> Any:
            return super().__call__(text.replace("dog", "cat and dog"), **options)

    with pytest.raises(ValueError, match="Changing changes the characters of 'a dog'"):
        find_word(Changing(tokenizer), "a dog", "dog")


def test_a_token_that_pads_ends_a_word() -> None:
    """A "!" of the prompt is one, to a tokenizer that pads with it."""
    tokenizer = clip_tokenizer(pad_token="!")
    assert found(tokenizer, "a cat!dog", "dog") == found(WithoutOffsets(tokenizer), "a cat!dog", "dog") == (4,)


def test_a_textual_inversion_s_word_is_all_its_vectors(tokenizer: CLIPTokenizer) -> None:
    """`<my-toy>` of three vectors is three tokens, and so is the word; before it nothing moves, behind it by two."""
    added = clip_tokenizer()
    added.add_tokens(["<my-toy>", "<my-toy>_1", "<my-toy>_2", "<one>"])
    prompt = "a dog, <my-toy>, and <one> dog with a <my-toy>"
    for each in (added, WithoutOffsets(added)):
        assert found(each, prompt, "<my-toy>") == (4, 5, 6, 13, 14, 15)
        assert found(each, prompt, "dog") == (2, 10) and found(each, prompt, "<one> dog") == (9, 10)
        assert find_word(each, prompt, "a <my-toy>") == WordMatch(phrase="a <my-toy>", positions=(12, 13, 14, 15))
        assert found(each, "a toy and <my-toy>", "toy") == (2,)  # not as a part of the other
    with pytest.raises(TargetWordNotFound, match="its words are: a, <my-toy> "):
        find_word(added, "a <my-toy>", "<one>")
    with pytest.raises(TargetWordTruncated, match="token 77 of the prompt"):
        find_word(added, "a " * 74 + "<my-toy>", "<my-toy>")


def test_long_prompts_in_chunks(tokenizer: CLIPTokenizer) -> None:
    """Token i of chunk c is at position 77 c + 1 + i, where the chunk's own BOS is counted; a word may lie in two."""
    prompt = "a " * 74 + "plushie dog " + "a " * 80 + "toy"
    assert chunks_of(tokenizer, prompt) == 3 and chunks_of(tokenizer, "") == chunks_of(tokenizer, "a " * 75) == 1
    positions = [find_word(tokenizer, prompt, word, chunks=3).positions for word in ("plushie", "dog", "toy")]
    assert positions == [(75, 77 + 1), (77 + 2,), (2 * 77 + 1 + 7,)]
    with pytest.raises(TargetWordTruncated, match="toy' stands at token 158 of the prompt, the text encoder reads 150"):
        find_word(tokenizer, prompt, "toy", chunks=2)
    ids = tokenize(tokenizer, ["a toy", prompt], chunks=3).reshape(2, -1)
    assert ids.shape == (2, 231) and [int(ids[1, at[-1]]) for at in positions] == [26638, 1929, 5988]
    assert ids[:, ::77].eq(BOS).all() and ids[:, 76::77].eq(EOS).all()
    own = tokenizer(["a toy", "", prompt], padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(tokenize(tokenizer, ["a toy", "", prompt]), own)


def test_what_is_cut_off(tokenizer: CLIPTokenizer) -> None:
    prompt = "a " * 74 + "plushie, the DOG"
    assert cut_off(tokenizer, prompt) == "shie, the DOG" and cut_off(tokenizer, prompt, chunks=2) == ""
    assert cut_off(tokenizer, "a " * 75) == cut_off(tokenizer, "") == ""


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
    with pytest.raises(TargetWordTruncated, match="76"):
        find_word(tokenizer, prompt, "plushie")
    assert found(tokenizer, "plushie " + prompt, "plushie") == (1, 2)
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
