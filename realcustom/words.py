"""Where the target word stands in the prompt: token positions, whole words only, case ignored (CLIP's byte-pair rules)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from realcustom.settings import Occurrence

WORD_END = "</w>"


class TargetWordNotFound(ValueError):
    """The prompt does not hold the word; the message lists the words that are there."""


class TargetWordTruncated(ValueError):
    """The word stands behind the last token that the text encoder reads."""


@dataclass(frozen=True, kw_only=True)
class WordMatch:
    """A target word in a prompt."""

    phrase: str  # as it was found; another than asked for where a plural was
    positions: tuple[int, ...]  # of its tokens, BOS counted as position 0


def find_word(
    tokenizer: Any, prompt: str, phrase: str, occurrence: Occurrence | int = Occurrence.ALL, plural: bool = False
) -> WordMatch:
    """Positions of `phrase` in `prompt`, tokenised once each.

    A run of the phrase's ids is a hit where the token before it ends a word ("suit" is not in "spacesuit"). Several
    tokens and several occurrences all count; `occurrence` selects.

    Raises:
        TargetWordNotFound: not there (or only as part of another word), or no such occurrence.
        TargetWordTruncated: there, but beyond the tokenizer's length.
        ValueError: an empty phrase.
    """
    if not phrase.strip():
        raise ValueError("the target word is empty; name a word of the prompt")
    ids = _ids(tokenizer, prompt)
    candidates = [phrase, phrase + "s", phrase + "es"] if plural else [phrase]
    for candidate in candidates:
        pattern = _ids(tokenizer, candidate)
        starts = _hits(tokenizer, ids, pattern)
        if starts:
            chosen = _choose(starts, occurrence, candidate, prompt)
            positions = tuple(start + 1 + i for start in chosen for i in range(len(pattern)))
            last = tokenizer.model_max_length - 2
            if max(positions) > last:
                raise TargetWordTruncated(
                    f"'{candidate}' stands at token {max(positions)} of the prompt, the text encoder reads {last}; "
                    "move it forward or shorten the prompt"
                )
            return WordMatch(phrase=candidate, positions=positions)
    raise TargetWordNotFound(f"the word '{phrase}' is not in the prompt; its words are: {', '.join(words_of(prompt))}")


def word_mask(match: WordMatch, length: int) -> Tensor:
    """tau, (length,): 1 at the word's tokens."""
    mask = torch.zeros(length)
    mask[list(match.positions)] = 1
    return mask


def words_of(prompt: str) -> list[str]:
    """The prompt's words, each once, in order."""
    return list(dict.fromkeys(re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", prompt)))


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)


def _hits(tokenizer: Any, ids: Sequence[int], pattern: Sequence[int]) -> list[int]:
    starts = []
    for start in range(len(ids) - len(pattern) + 1):
        if list(ids[start : start + len(pattern)]) == list(pattern):
            before = tokenizer.convert_ids_to_tokens(ids[start - 1]) if start else WORD_END
            if before.endswith(WORD_END):
                starts.append(start)
    return starts


def _choose(starts: list[int], occurrence: Occurrence | int, phrase: str, prompt: str) -> list[int]:
    if occurrence is Occurrence.ALL:
        return starts
    if occurrence is Occurrence.FIRST:
        return starts[:1]
    if occurrence is Occurrence.LAST:
        return starts[-1:]
    assert isinstance(occurrence, int)
    if not 0 <= occurrence < len(starts):
        raise TargetWordNotFound(
            f"'{phrase}' occurs {len(starts)} time(s) in the prompt '{prompt}', there is no occurrence {occurrence} "
            "(counted from 0)"
        )
    return [starts[occurrence]]
