"""Where the target word stands in the prompt: its characters, and the positions of the tokens that they touch."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from realcustom.errors import UsageError
from realcustom.phrases import occurrences, words_of
from realcustom.settings import Occurrence, WordMatching
from realcustom.tokens import bare_ids, position_of, token_spans, tokens_per_chunk, with_all_vectors


class TargetWordNotFound(UsageError):
    """The prompt does not hold the word; the message lists the prompt's words."""


class TargetWordTruncated(UsageError):
    """The word comes after the last token that the text encoder reads."""


@dataclass(frozen=True, kw_only=True)
class WordMatch:
    """A target word in a prompt."""

    phrase: str  # as found; with a plural ending if that was found
    positions: tuple[int, ...]  # of its tokens, ascending, BOS counted as position 0


def find_word(
    tokenizer: Any,
    prompt: str,
    phrase: str,
    occurrence: Occurrence | int = Occurrence.ALL,
    plural: bool = False,
    match: WordMatching = WordMatching.WHOLE_WORDS,
    chunks: int = 1,
) -> WordMatch:
    """Positions of `phrase`, one word or several, in `prompt`; all tokens of all chosen occurrences count.

    Occurrences are counted from the left and do not overlap ("dog dog" is once in "dog dog dog"). `occurrence` selects
    among all of the prompt's; of those selected, the ones that the text encoder reads to their last token are used.
    With `plural`, the first of phrase, phrase + "s" and phrase + "es" that occurs is used. A textual inversion's token
    stands for all its vectors, in the prompt and in the phrase.

    `match` says what an occurrence is:
        WHOLE_WORDS: the phrase's characters as whole words, case and the number of spaces ignored; its tokens are all
            that these characters touch. A word's end is not between two letters or digits ("suit" is not in
            "spacesuit"), nor inside "..." or "'s".
        RELEASE_COMPAT: the phrase's exact characters, including overlaps and parts of words; an occurrence extends from
            the number of tokens of the text before it to that of the text up to its end, cut off where the encoder
            stops.

    Args:
        chunks: how many times the tokenizer's length the text encoder reads.
    Raises:
        TargetWordNotFound: not there, or no such occurrence.
        TargetWordTruncated: there, but after the last token that is read.
        UsageError: an empty phrase.
    """
    if not phrase.strip():
        raise UsageError("the target word is empty; name a word of the prompt")
    compat = match is WordMatching.RELEASE_COMPAT
    spans_of = _released_spans if compat else _whole_words
    text, wanted = with_all_vectors(tokenizer, prompt), phrase if compat else " ".join(phrase.split())
    for candidate in (wanted, wanted + "s", wanted + "es") if plural else (wanted,):
        if not (spans := spans_of(tokenizer, text, with_all_vectors(tokenizer, candidate))):
            continue
        chosen = _choose(spans, occurrence, candidate, prompt)
        limit = chunks * tokens_per_chunk(tokenizer)
        read = {token for span in chosen for token in span if token < limit and (compat or span[-1] < limit)}
        if not read:
            raise TargetWordTruncated(
                f"'{candidate}' stands at token {chosen[0][-1] + 1} of the prompt, the text encoder reads {limit}; "
                "move it forward, shorten the prompt, or have all of it read with long_prompt"
            )
        return WordMatch(phrase=candidate, positions=tuple(position_of(tokenizer, token) for token in sorted(read)))
    rule = "upper and lower case differ" if compat else "only whole words count"
    raise TargetWordNotFound(
        f"the word '{phrase}' is not in the prompt; its words are: {', '.join(words_of(prompt)) or 'none'} ({rule})"
    )


def union(matches: Sequence[WordMatch]) -> WordMatch:
    """One match of several words, for a subject that acts where any of them acts; UsageError where none is given."""
    if not matches:
        raise UsageError("no word to unite; give at least one")
    return WordMatch(
        phrase=", ".join(dict.fromkeys(match.phrase for match in matches)),
        positions=tuple(sorted({position for match in matches for position in match.positions})),
    )


def word_mask(match: WordMatch, length: int) -> Tensor:
    """tau, (length,): 1 at the word's tokens."""
    mask = torch.zeros(length)
    mask[list(match.positions)] = 1
    return mask


def _whole_words(tokenizer: Any, text: str, phrase: str) -> list[range]:
    """The tokens that each occurrence touches, in order; a token that was added to the tokenizer is one word."""
    text = unicodedata.normalize("NFC", text)
    hits = list(occurrences(text, unicodedata.normalize("NFC", phrase)))
    if not hits:
        return []
    spans, added = token_spans(tokenizer, text), set(tokenizer.get_added_vocab().values())
    words = [span for span, number in zip(spans, bare_ids(tokenizer, text), strict=True) if number in added]
    found = []
    for start, end in hits:
        touched = [i for i, (first, behind) in enumerate(spans) if first < end and behind > start]
        cut = any(first < edge < behind for first, behind in words for edge in (start, end))
        if touched and not cut:
            found.append(range(touched[0], touched[-1] + 1))
    return found


def _released_spans(tokenizer: Any, text: str, phrase: str) -> list[range]:
    """The tokens of each occurrence as the released code counts them."""
    starts = [start for start in range(len(text)) if text.startswith(phrase, start)]
    before, through = ([len(bare_ids(tokenizer, text[: i + n])) for i in starts] for n in (0, len(phrase)))
    return [range(a, b) for a, b in zip(before, through, strict=True) if a < b]


def _choose(spans: list[range], occurrence: Occurrence | int, phrase: str, prompt: str) -> list[range]:
    if isinstance(occurrence, Occurrence):
        return {Occurrence.ALL: spans, Occurrence.FIRST: spans[:1], Occurrence.LAST: spans[-1:]}[occurrence]
    if not 0 <= occurrence < len(spans):
        raise TargetWordNotFound(
            f"'{phrase}' occurs {len(spans)} time(s) in the prompt '{prompt}', there is no occurrence {occurrence} "
            "(counted from 0)"
        )
    return [spans[occurrence]]
