"""The words of a caption that can name a subject."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from realcustom.preprocessing.caption.word_lists import (
    ABLE_NOUNS,
    ADJECTIVES,
    CLOSED,
    COLOURS,
    DETERMINERS,
    ED_NOUNS,
    FOREIGN,
    ING_MODIFIERS,
    ING_NOUNS,
    LY_NOUNS,
    MATERIALS,
    NAMED,
    NO_SUBJECT,
    S_MODIFIERS,
    SINGULAR,
)

_ENGLISH = (CLOSED | DETERMINERS) - FOREIGN
# Scripts that are written without spaces: Thai, Lao, Myanmar, Khmer, Japanese kana, Chinese characters.
_UNSPACED_RANGES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{_UNSPACED_RANGES}]")
_JUNK = re.compile(r"[\d_@#\\]|://|\w\.\w")  # file names, addresses, sizes, numbers
_WORD = re.compile(r"(?P<word>[^\W\d_]+(?:['’-][^\W\d_]+)*)(?:(?<=s)['’]\Z)?|\S")  # or punctuation, without this group


@dataclass(frozen=True, kw_only=True)
class Target:
    """A word and its character span in the caption that holds it."""

    word: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class _Word:
    text: str  # lower case, with the apostrophe of a possessive
    start: int
    end: int
    capital: bool
    opens: bool  # a sentence

    @property
    def name(self) -> bool:
        return self.capital and not self.opens and self.text not in NAMED


def find_targets(caption: str, nouns: Sequence[str], limit: int, more: Sequence[str] = ()) -> list[Target]:
    """At most `limit` target words of `caption`, in its order, each word once.

    Args:
        nouns: vocabulary (a noun may hold spaces); matched as whole words, case ignored, the longest first. Empty:
            the last word of each English noun phrase that names something visible (`_from_phrases`).
        more: a vocabulary beside that.
    """
    named = _from_vocabulary(caption, [*nouns, *more])
    ruled = [] if nouns else _from_phrases(caption)
    found = sorted([*named, *(span for span in ruled if not any(_overlap(span, other) for other in named))])
    targets: dict[str, Target] = {}
    for start, end in found:
        word = caption[start:end]
        targets.setdefault(word.lower(), Target(word=word, start=start, end=end))
    return list(targets.values())[:limit]


def plain_text(caption: str) -> str:
    """A caption as words are looked for in it: HTML's entities as the characters they stand for, in Unicode's form NFC."""
    return unicodedata.normalize("NFC", html.unescape(caption))


def _from_vocabulary(caption: str, nouns: Sequence[str]) -> list[tuple[int, int]]:
    """Spans of the nouns; beside a letter of a script without spaces a word may begin and end anywhere."""
    if not nouns:
        return []
    composed = {unicodedata.normalize("NFC", noun.strip()) for noun in nouns}
    longest_first = sorted(composed, key=lambda noun: (-len(noun), noun))
    pattern = "|".join(_bounded(noun) for noun in longest_first)
    return [match.span() for match in re.finditer(pattern, caption, re.IGNORECASE)]


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _bounded(noun: str) -> str:
    before = "" if _UNSPACED.match(noun[0]) else rf"(?<![^\W{_UNSPACED_RANGES}])"
    after = "" if _UNSPACED.match(noun[-1]) else rf"(?![^\W{_UNSPACED_RANGES}])"
    return before + re.escape(noun) + after


def _from_phrases(caption: str) -> list[tuple[int, int]]:
    """Noun phrases are the runs of words between punctuation, determiners and closed-class words, cut at participles."""
    tokens = _tokens(caption)
    words = [token for token in tokens if token is not None]
    if not _is_english(words):
        return []
    content = [word for word in words if word.text not in CLOSED | DETERMINERS and not word.opens]
    names = not all(word.capital for word in content)  # in a title capitals do not mark names
    found = []
    run: list[_Word] = []
    opener = ""
    for index, token in enumerate([*tokens, None]):
        text = token.text if token else ""
        if text == "and" and run and run[-1].text in COLOURS and _is_colour(tokens, index + 1):
            continue  # black and white cat
        if token is not None and text not in CLOSED and text not in DETERMINERS:
            run.append(token)
            continue
        if text in DETERMINERS and (len(run) > 1 or not opener):
            run = run[:-1]  # the word before a determiner is a verb: "the kids built a castle"
        found += [head for part in _cut_at_verbs(run, opener) if (head := _head(part, names)) is not None]
        run, opener = [], text if text in DETERMINERS else ""
    return [(word.start, word.end) for word in found]


def _tokens(caption: str) -> list[_Word | None]:
    """Words, and None for each thing between them that ends a phrase."""
    tokens: list[_Word | None] = []
    opens = True
    for chunk in re.finditer(r"\S+", caption):
        if _JUNK.search(chunk[0]):
            tokens.append(None)
            continue
        for match in _WORD.finditer(caption, *chunk.span()):
            if match["word"] is None:
                tokens.append(None)
                opens = opens or match[0] in ".!?:"
            else:
                start, end = match.span("word")
                text = match[0].lower().replace("’", "'")
                tokens.append(_Word(text=text, start=start, end=end, capital=match[0][0].isupper(), opens=opens))
                opens = False
    return tokens


def _is_english(words: Sequence[_Word]) -> bool:
    foreign = sum(word.text in FOREIGN for word in words)
    english = sum(word.text in _ENGLISH for word in words)
    return foreign <= english and all(ord(letter) < 0x250 for word in words for letter in word.text)


def _is_colour(tokens: Sequence[_Word | None], index: int) -> bool:
    token = tokens[index] if index < len(tokens) else None
    return token is not None and token.text in COLOURS


def _cut_at_verbs(run: Sequence[_Word], opener: str) -> Iterator[list[_Word]]:
    """A run of words without the verbs and participles in it."""
    part: list[_Word] = []
    for index, word in enumerate(run):
        if _is_verb(word, part[-1] if part else None, last=index == len(run) - 1, singular=opener in SINGULAR):
            yield part
            part, opener = [], ""
        else:
            part.append(word)
    yield part


def _is_verb(word: _Word, before: _Word | None, *, last: bool, singular: bool) -> bool:
    """Whether a word is a verb or participle in its run, not a noun or a word that describes one.

    Args:
        before: the word of the noun phrase before it; None: the phrase begins here.
        last: no word of the run follows: "a dog running", but "a running dog".
        singular: the phrase began as a singular one: "a wolf howls".
    """
    text = word.text
    if text.endswith("ing"):
        follows_noun = before is not None and not _is_adjective(before.text) and "-" not in before.text
        return text not in ING_NOUNS and (last or (follows_noun and text not in ING_MODIFIERS))
    if text.endswith("ed") and len(text) > 4:
        return last and text not in ED_NOUNS
    if _is_plural(text):
        return singular and before is not None
    return before is not None and not before.name and _is_plural(before.text)  # "pigeons gather"


def _is_plural(text: str) -> bool:
    return len(text) > 3 and text not in S_MODIFIERS and re.search(r"[^siu']s$", text) is not None


def _is_adjective(text: str) -> bool:
    described = text in COLOURS | MATERIALS | ADJECTIVES or text.endswith(("ful", "ous", "less"))
    return described or (text.endswith(("able", "ible")) and text not in ABLE_NOUNS)


def _head(part: Sequence[_Word], names: bool) -> _Word | None:
    """The noun of a phrase: its last word that is not an adverb and, where capitals mark names, not a name."""
    left = [word for word in part if not word.text.endswith("ly") or word.text in LY_NOUNS]
    named = False
    while names and left and left[-1].name:
        left.pop()
        named = True
    if not left or (named and len(left) == 1 and left[0].capital):
        return None
    text = left[-1].text
    return None if text in NO_SUBJECT or _is_adjective(text) or len(text) < 2 else left[-1]
