"""phrases.tsv: captions and alt texts, each with the words that a person would choose as target words.

A target word is the last word of an English noun phrase that names something that could be pointed at in a picture
(a person, an animal, a thing, a building, the ground or room it is in); not the picture itself, its parts, amounts,
times, events, colours, materials and names. Each line was labelled before any rule was tried on it. Even lines (from 1)
are there to look at while rules are written, odd ones to measure with. The captions up to line 261 were written
together with the rules' word lists, those from 262 on after them: the latter are the fairer measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

FIRST_LATER_LINE = 262


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A caption and its target words, lower case, in the caption's order."""

    line: int
    caption: str
    words: list[str]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of words found, the share that is labelled; of words labelled, that found; of first words found, that labelled."""

    precision: float
    recall: float
    first: float

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / (self.precision + self.recall)


def labelled() -> list[Labelled]:
    """All lines."""
    lines = (Path(__file__).parent / "phrases.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines]
    return [
        Labelled(line=number, caption=caption, words=words.split())
        for number, (caption, words) in enumerate(pairs, start=1)
    ]


def held_out() -> list[Labelled]:
    """The odd lines."""
    return [item for item in labelled() if item.line % 2]


def held_out_later() -> list[Labelled]:
    """The odd lines that were written after the rules' word lists."""
    return [item for item in held_out() if item.line >= FIRST_LATER_LINE]


def agreement(items: Iterable[Labelled], find: Callable[[str], list[str]]) -> Agreement:
    """How the words that `find` finds in captions, lower case and each once, agree with the labels."""
    right = found = wanted = first_right = captions = 0
    for item in items:
        words = find(item.caption)
        right += len(set(words) & set(item.words))
        found += len(words)
        wanted += len(item.words)
        captions += bool(words)
        first_right += bool(words) and words[0] in item.words
    return Agreement(precision=right / found, recall=right / wanted, first=first_right / captions)
