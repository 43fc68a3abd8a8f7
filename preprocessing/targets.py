"""The words of a caption that can name a subject."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# The rule for captions when no vocabulary is given: a noun phrase opens with a determiner (or "of" after a word that
# is no subject itself: "a pair of") and runs to the next word of a closed class (preposition, conjunction, auxiliary,
# pronoun), a participle, or punctuation, after at most six words; "and" between colours does not end it. The last word
# of the run is its noun: "a red car parked on the street" gives "car" and "street".
_LONGEST = 6
_DETERMINERS = "a an the this that these those my your his her its our their one two three four five some"
_CLOSED = (
    "of on in at by with without from to into onto over under above below behind beside between near next against "
    "along around across through for and or but while as is are was were be being been has have had does do that which "
    "who it he she they there up down out off inside outside front during after before like very parked seen shown "
    "taken made placed filled covered surrounded dressed hidden stacked mounted worn held"
)
_COLOURS = "black white grey gray red green blue yellow orange pink purple brown golden silver"
# Nouns that are no subject: they speak of the picture, of amounts, or of places in it.
_VAGUE = (
    "photo photograph picture image view shot close closeup portrait painting drawing illustration background "
    "foreground front back side top bottom left right middle center centre corner edge end part piece pair group "
    "couple bunch lot number set row variety kind type way day night time air other one two"
)
_OPEN, _CLOSE = frozenset(_DETERMINERS.split()), frozenset(_CLOSED.split())
_COLOUR = frozenset(_COLOURS.split())
_NO_SUBJECT = frozenset(_VAGUE.split()) | _COLOUR
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A word and its character span in the caption that holds it."""

    word: str
    start: int
    end: int


def find_targets(caption: str, nouns: Sequence[str], limit: int) -> list[Target]:
    """At most `limit` target words of `caption`, in its order, each word once.

    Args:
        nouns: vocabulary (a noun may hold spaces); matched as whole words whatever the case, the longest first. Empty:
            the noun-phrase rule above.
    """
    found = _from_vocabulary(caption, nouns) if nouns else _from_phrases(caption)
    targets: list[Target] = []
    for start, end in found:
        word = caption[start:end]
        if word.lower() not in [target.word.lower() for target in targets]:
            targets.append(Target(word=word, start=start, end=end))
    return targets[:limit]


def _from_vocabulary(caption: str, nouns: Sequence[str]) -> list[tuple[int, int]]:
    longest_first = sorted({noun.strip() for noun in nouns}, key=lambda noun: (-len(noun), noun))
    pattern = "|".join(re.escape(noun) for noun in longest_first)
    return [match.span() for match in re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", caption, re.IGNORECASE)]


def _from_phrases(caption: str) -> list[tuple[int, int]]:
    words = [match.span() for match in _WORD.finditer(caption)]
    texts = [caption[start:end].lower() for start, end in words]
    spans = []
    for position, text in enumerate(texts):
        if text in _OPEN or (text == "of" and position and texts[position - 1] in _NO_SUBJECT):
            last = _end_of_run(caption, words, texts, position)
            if last > position and texts[last] not in _NO_SUBJECT:
                spans.append(words[last])
    return spans


def _end_of_run(caption: str, words: Sequence[tuple[int, int]], texts: Sequence[str], opening: int) -> int:
    """Index of the last word of the phrase that the word `opening` opens; `opening` where there is none."""
    last = opening
    for index in range(opening + 1, min(len(words), opening + 1 + _LONGEST)):
        gap = caption[words[index - 1][1] : words[index][0]].strip()
        if gap:
            break
        if texts[index] == "and" and texts[last] in _COLOUR and last > opening:
            continue
        if texts[index] in _OPEN or texts[index] in _CLOSE or (last > opening and texts[index].endswith("ing")):
            break
        last = index
    return last
