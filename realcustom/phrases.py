"""Words and phrases of a text, as characters: of any script, and without a tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

CONTRACTION = re.compile(r"(?:s|t|re|ve|m|ll|d)(?![^\W_])", re.IGNORECASE)  # after an apostrophe: "dog's", "can't"
APOSTROPHES = "'\u2019"
ZERO_WIDTH_JOINER = "\u200d"


def words_of(prompt: str) -> list[str]:
    """The prompt's words, each once, in order; `<this>` is one, as textual inversions are named."""
    return list(dict.fromkeys(re.findall(r"<[^<>\s]+>|[^\W_]+(?:[-'\u2019][^\W_]+)*", prompt)))


def occurrences(text: str, phrase: str) -> Iterator[tuple[int, int]]:
    """Start and end of the phrase in the text, as whole words, case ignored, without overlaps."""
    pattern, start = re.compile(r"\s+".join(map(re.escape, phrase.split())), re.IGNORECASE), 0
    while hit := pattern.search(text, start):
        whole = not _is_inside(text, hit.start()) and not _is_inside(text, hit.end())
        if whole:
            yield hit.span()
        start = hit.end() if whole else hit.start() + 1


def _is_inside(text: str, at: int) -> bool:
    """Whether the place before character `at` is inside a word: between letters, in "..." or in "'s"."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if _is_mark(after) or ZERO_WIDTH_JOINER in (before, after):
        return True
    if before in APOSTROPHES and _in_word(text[at - 2 : at - 1]) and CONTRACTION.match(text, at):
        return True
    return (_in_word(before) and _in_word(after)) or (before == after and not before.isspace() and before != "_")


def _in_word(letter: str) -> bool:
    return letter.isalnum() or _is_mark(letter)


def _is_mark(letter: str) -> bool:
    """An accent or vowel sign that belongs to the letter before it."""
    return unicodedata.category(letter).startswith("M") if letter else False
