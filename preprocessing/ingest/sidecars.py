"""The texts beside the pictures of a folder: found in one pass over its sorted listing, and held as numbers of files.

Legend: p pictures, t texts, k pairs of them.
"""

from __future__ import annotations

import heapq
import itertools
import posixpath
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from realcustom.entries import Entries
from realcustom.preprocessing.settings import IngestSettings
from realcustom.storage import FileEntry

JSON = "json"
_PIECE = 4096  # pictures whose texts are taken up at a time

WithTexts = tuple[FileEntry, Sequence[FileEntry]]  # a picture and the texts beside it, in the order in which they count


def sidecar_names(picture: str, settings: IngestSettings) -> list[str]:
    """The names under which a picture's captions are looked for, in the order in which they count; then its .json.

    `a.txt` and `a.jpg.txt` of `a.jpg`.
    """
    stem = posixpath.splitext(picture)[0]
    extensions = (*settings.caption_extensions, JSON)
    return list(dict.fromkeys(f"{base}.{extension}" for extension in extensions for base in (stem, picture)))


def sidecar_name(name: str, settings: IngestSettings) -> str:
    """The name that a file beside a picture is looked up by, its extension in lower case; empty for other files."""
    stem, extension = posixpath.splitext(name)
    known = extension.lower().removeprefix(".") in (*settings.caption_extensions, JSON)
    return stem + extension.lower() if known else ""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Which of n files are texts beside pictures, and beside which ones."""

    is_text: np.ndarray  # bool (n,)
    pictures: np.ndarray  # int32 (k,), ascending: places among the pictures
    places: np.ndarray  # int32 (k,): among the texts


class Sidecars:
    """The t texts that are beside pictures, each once."""

    def __init__(self, texts: Entries, pairs: Pairs):
        self.texts, self._pairs = texts, pairs

    def with_pictures(self, pictures: Entries) -> Iterator[WithTexts]:
        """Each of the p pictures with its texts. The listings of both are given up on the way, and empty afterwards."""
        # places after this picture's are of texts that stand behind this one, or are this one
        after = np.minimum.accumulate(self._pairs.places[::-1])[::-1]
        start = forgotten = 0
        while some := pictures[:_PIECE]:
            bounds = np.searchsorted(self._pairs.pictures, np.arange(start, start + len(some) + 1))
            texts = iter(self.texts.at(self._pairs.places[bounds[0] : bounds[-1]] - forgotten))
            for entry, count in zip(some, np.diff(bounds).tolist(), strict=True):
                yield entry, list(itertools.islice(texts, count))
            start += len(some)
            pictures.forget(len(some))
            wanted = int(after[bounds[-1]]) if bounds[-1] < len(after) else forgotten + len(self.texts)
            self.texts.forget(wanted - forgotten)
            forgotten = wanted


def find_pairs(entries: Entries, is_picture: np.ndarray, settings: IngestSettings) -> Pairs:
    """The texts among n files that are beside pictures; `is_picture` is bool (n,)."""
    pairs = array("i")  # a listing of more than 2^31 files is not held in memory
    for pair in _Pairing(settings).run(entries.names(), is_picture) if is_picture.any() else ():
        pairs.extend(pair)
    pictures, rows = np.frombuffer(pairs, np.int32).reshape(-1, 2).T
    order = np.argsort(pictures, kind="stable")
    is_text = np.zeros(len(entries), bool)
    is_text[rows] = True
    places = (np.cumsum(is_text, dtype=np.int32) - 1)[rows[order]]
    return Pairs(is_text=is_text, pictures=pictures[order], places=places)


@dataclass(slots=True)
class _Stem:
    """Files whose names differ after their last dot alone. In a sorted listing, what begins with `prefix` stands together."""

    prefix: str  # the stem and its dot
    pictures: dict[str, int] = field(default_factory=dict)  # name -> its place among the pictures
    texts: dict[str, int] = field(default_factory=dict)  # as `sidecar_name` has it -> its place among all files
    beside: dict[str, dict[str, int]] = field(default_factory=dict)  # picture -> texts named after its whole name


class _Pairing:
    def __init__(self, settings: IngestSettings):
        self._settings = settings
        self._extensions = {*settings.caption_extensions, JSON}
        self._open: list[_Stem] = []  # each one's prefix begins with that of the one before

    def run(self, names: Iterable[str], is_picture: np.ndarray) -> Iterator[tuple[int, int]]:
        """Pairs of a picture's place among the pictures and a text's among all files. Those of a picture are in the order in
        which they count."""
        picture = -1
        for row, (name, is_one) in enumerate(zip(names, is_picture.tolist(), strict=True)):
            picture += is_one
            stem, extension = posixpath.splitext(name)
            lower = extension[1:].lower()
            if not is_one and lower not in self._extensions:
                continue
            prefix = stem + "."
            while self._open and not name.startswith(self._open[-1].prefix):
                yield from self._closed()
            if not self._open or self._open[-1].prefix != prefix:
                self._open.append(_Stem(prefix))
            if is_one:
                self._open[-1].pictures[name] = picture
            else:
                self._open[-1].texts[prefix + lower] = row
        while self._open:
            yield from self._closed()

    def _closed(self) -> Iterator[tuple[int, int]]:
        """The pairs of the last stem, of which no file follows any more."""
        stem = self._open.pop()
        name = stem.prefix[:-1]
        if stem.texts and self._open and name in self._open[-1].pictures:
            self._open[-1].beside[name] = stem.texts
        for picture, place in stem.pictures.items():
            texts = stem.texts | stem.beside.get(picture, {})
            wanted = texts if len(texts) < 2 else sidecar_names(picture, self._settings)
            yield from ((place, texts[text]) for text in wanted if text in texts)


def found_beside(
    pictures: Iterable[FileEntry], texts: Mapping[str, FileEntry], settings: IngestSettings
) -> Iterator[WithTexts]:
    """A few pictures, sorted by name, each with those of some texts, by `sidecar_name`, that are beside it."""
    for entry in pictures:
        yield entry, [texts[name] for name in sidecar_names(entry.name, settings) if name in texts]


def merged(many: Iterable[WithTexts], few: Iterable[WithTexts]) -> Iterator[WithTexts]:
    """Pictures of two listings, sorted by name."""
    return heapq.merge(many, few, key=lambda one: one[0].name.encode("utf-8", "surrogateescape"))
