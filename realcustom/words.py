"""Positions of the target word's tokens in the prompt under CLIP's byte-pair rules.

CLIP puts text into Unicode's composed form (NFC), makes all whitespace one space, lowers the case and marks the token
that ends a word with `</w>`. Position 0 is BOS, so token i of the plain prompt is at position i + 1.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from realcustom.errors import UsageError
from realcustom.settings import Occurrence, WordMatching

WORD_END = "</w>"
# the plain text, without truncation
BARE: dict[str, bool] = {"add_special_tokens": False, "truncation": False, "verbose": False}
EDGE = r"(?!(?<=[^\W_])[^\W_])"  # a position that is not between two letters or digits


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
    match: WordMatching = WordMatching.IDS,
) -> WordMatch:
    """Positions of `phrase`, one word or several, in `prompt`; all tokens of all chosen occurrences count.

    Occurrences are counted from the left and do not overlap ("dog dog" is once in "dog dog dog"). `occurrence` selects
    among all of the prompt's; of those selected, the ones that the text encoder reads to their last token are used.
    With `plural`, the first of phrase, phrase + "s" and phrase + "es" that occurs is used.

    `match` says what an occurrence is:
        IDS: a run of the phrase's token ids where the token before it ends a word ("suit" is not in "spacesuit").
        OFFSETS: the phrase's characters, case ignored, as whole words. It differs from IDS where CLIP splits words
            differently: by ids alone, "dog" is in "dog7" and "hot-dog" in "hot - dog".
        RELEASE_COMPAT: the phrase's exact characters, including overlaps and parts of words; an occurrence extends from
            the number of tokens of the text before it to that of the text up to its end, cut off where the encoder
            stops.

    Raises:
        TargetWordNotFound: not there, or no such occurrence.
        TargetWordTruncated: there, but beyond the tokenizer's length.
        UsageError: an empty phrase.
    """
    if not phrase.strip():
        raise UsageError("the target word is empty; name a word of the prompt")
    compat = match is WordMatching.RELEASE_COMPAT
    wanted = phrase if compat else " ".join(phrase.split())
    for candidate in (wanted, wanted + "s", wanted + "es") if plural else (wanted,):
        if not (spans := _spans(tokenizer, prompt, candidate, match)):
            continue
        chosen = _choose(spans, occurrence, candidate, prompt)
        last = tokenizer.model_max_length - 2  # the next one is EOS
        read = {position for span in chosen for position in span if position <= last and (compat or span[-1] <= last)}
        if not read:
            raise TargetWordTruncated(
                f"'{candidate}' stands at token {chosen[0][-1]} of the prompt, the text encoder reads {last}; "
                "move it forward or shorten the prompt"
            )
        return WordMatch(phrase=candidate, positions=tuple(sorted(read)))
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


def words_of(prompt: str) -> list[str]:
    """The prompt's words, each once, in order."""
    return list(dict.fromkeys(re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", prompt)))


def check_tokenizers_agree(tokenizer: Any, tokenizer_2: Any, prompt: str) -> None:
    """Check that a position is the same word in both of SDXL's tokenizers; their padding may differ.

    If one pads with "!", a "!" of the prompt is its padding token, which is accepted for the other's "!</w>".

    Raises:
        UsageError: they read the prompt differently; the message names the first token where they do.
    """
    read = [each(prompt, truncation=True).input_ids for each in (tokenizer, tokenizer_2)]
    for position, (one, two) in enumerate(zip_longest(*read)):
        if one == two:
            continue
        first = "nothing" if one is None else tokenizer.convert_ids_to_tokens(one)
        second = "nothing" if two is None else tokenizer_2.convert_ids_to_tokens(two)
        if not any({first, second} == {pad, pad + WORD_END} for pad in (tokenizer.pad_token, tokenizer_2.pad_token)):
            raise UsageError(
                f"the two tokenizers read the prompt differently from token {position} on: '{first}' ({one}) and "
                f"'{second}' ({two}); rephrase it there, or give tokenizers of one vocabulary"
            )


def _spans(tokenizer: Any, prompt: str, phrase: str, match: WordMatching) -> list[range]:
    """Positions of each occurrence, in order."""
    if match is WordMatching.IDS:
        return _by_ids(tokenizer, prompt, phrase)
    if match is WordMatching.OFFSETS:
        return _by_characters(tokenizer, prompt, phrase)
    starts = [start for start in range(len(prompt)) if prompt.startswith(phrase, start)]
    before, through = ([len(_ids(tokenizer, prompt[: i + n])) for i in starts] for n in (0, len(phrase)))
    return [range(a + 1, b + 1) for a, b in zip(before, through, strict=True) if a < b]


def _by_ids(tokenizer: Any, prompt: str, phrase: str) -> list[range]:
    ids, pattern = _ids(tokenizer, prompt), _ids(tokenizer, phrase)
    added = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}  # textual inversion adds words
    ends = [token.endswith(WORD_END) or token in added for token in tokenizer.convert_ids_to_tokens(ids)]
    spans: list[range] = []
    start = 0
    while pattern and start + len(pattern) <= len(ids):
        stop = start + len(pattern)
        if ids[start:stop] == pattern and (start == 0 or ends[start - 1]):
            spans.append(range(start + 1, stop + 1))
            start = stop
        else:
            start += 1
    return spans


def _by_characters(tokenizer: Any, prompt: str, phrase: str) -> list[range]:
    text = unicodedata.normalize("NFC", prompt)
    words = unicodedata.normalize("NFC", phrase).split()
    hits = re.finditer(EDGE + r"\s+".join(map(re.escape, words)) + EDGE, text, re.IGNORECASE)
    covering = _by_offsets if tokenizer.is_fast else _by_prefixes
    return [span for hit in hits if (span := covering(tokenizer, text, hit.start(), hit.end()))]


def _by_offsets(tokenizer: Any, text: str, start: int, end: int) -> range:
    """Positions of the tokens of `text[start:end]`; none if that cuts a CLIP word (such as "...")."""
    encoded = tokenizer(text, **BARE, return_offsets_mapping=True)
    offsets, words = encoded.offset_mapping, encoded.word_ids()
    touched = {word for word, (first, behind) in zip(words, offsets, strict=True) if first < end and behind > start}
    tokens = [i for i, word in enumerate(words) if word in touched]
    if not tokens or offsets[tokens[0]][0] < start or offsets[tokens[-1]][1] > end:
        return range(0)
    return range(tokens[0] + 1, tokens[-1] + 2)


def _by_prefixes(tokenizer: Any, text: str, start: int, end: int) -> range:
    """The same without offsets: a text that ends at a word's end has the first tokens of the whole text."""
    ids, before, through = (_ids(tokenizer, part) for part in (text, text[:start], text[:end]))
    whole = ids[: len(before)] == before and ids[: len(through)] == through
    return range(len(before) + 1, len(through) + 1) if whole else range(0)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, **BARE).input_ids)


def _choose(spans: list[range], occurrence: Occurrence | int, phrase: str, prompt: str) -> list[range]:
    if isinstance(occurrence, Occurrence):
        return {Occurrence.ALL: spans, Occurrence.FIRST: spans[:1], Occurrence.LAST: spans[-1:]}[occurrence]
    if not 0 <= occurrence < len(spans):
        raise TargetWordNotFound(
            f"'{phrase}' occurs {len(spans)} time(s) in the prompt '{prompt}', there is no occurrence {occurrence} "
            "(counted from 0)"
        )
    return [spans[occurrence]]
