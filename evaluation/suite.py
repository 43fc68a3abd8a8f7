"""What a suite is: cases, each a prompt with the subjects that its words are narrowed to, and a seed.

A suite is read from a folder in the layout in which it is distributed (`suites.py`, `published.py`) or made by a
program. Pictures are named by path or URI and read when they are needed.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageOps

from realcustom.errors import UsageError
from realcustom.reference import on_white
from realcustom.store import Store

FORMATS = ("JPEG", "PNG", "WEBP")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
MASK_ENDING = ".mask.png"  # 00.mask.png is where the subject is in 00.jpg
KEPT = 64  # decoded pictures that are kept; each is compared with many images


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A real picture of a subject."""

    uri: str
    mask: str | None = None  # URI of a grey picture of its size: non-zero = subject; None = the suite has none


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A subject in a prompt."""

    subject: str  # its id
    word: str  # the prompt's word that is narrowed to it
    given: Photo  # what the method is shown
    photos: tuple[Photo, ...]  # all real pictures of the subject: images are compared with each
    wrong: Photo | None = None  # another subject, for the row of the wrong reference


@dataclass(frozen=True, kw_only=True)
class SuiteCase:
    """One image to draw."""

    references: tuple[Reference, ...]
    prompt: str
    prompt_id: str  # unique within the subjects
    seed: int  # of the starting noise
    number: int = 0  # of the image among those of its prompt
    group: str = ""  # the suite's own kind of subject or task
    truth: Photo | None = None  # the right answer, where it is known

    @functools.cached_property
    def subject(self) -> str:
        """The subjects' ids: what statistics take as one cluster."""
        return "+".join(reference.subject for reference in self.references)

    @property
    def uid(self) -> str:
        """Unique within a suite."""
        return f"{self.subject}/{self.prompt_id}/{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Cases, and what was counted while reading them."""

    name: str
    cases: tuple[SuiteCase, ...]
    counts: str  # one line for people

    def __post_init__(self) -> None:
        twice = [uid for uid, number in Counter(case.uid for case in self.cases).items() if number > 1]
        if twice:
            raise UsageError(f"suite {self.name}: the case {twice[0]} is there twice")

    def photos(self) -> dict[str, Photo]:
        """Every picture that is named, by its URI, in the order of the cases."""
        found: dict[str, Photo] = {}
        for case in self.cases:
            for reference in case.references:
                wrong = () if reference.wrong is None else (reference.wrong,)
                found |= {photo.uri: photo for photo in (reference.given, *reference.photos, *wrong)}
            if case.truth is not None:
                found[case.truth.uri] = case.truth
        return found

    def limited(self, limit: int | None) -> Suite:
        """At most `limit` cases, taken in turn from the subjects. Raises UsageError if a subject would have none."""
        subjects: dict[str, list[SuiteCase]] = {}
        for case in self.cases:
            subjects.setdefault(case.subject, []).append(case)
        if len(subjects) < 2:
            raise UsageError(f"suite {self.name} has {len(subjects)} subject(s); an interval over subjects needs 2")
        if limit is None or limit >= len(self.cases):
            return self
        if limit < len(subjects):
            raise UsageError(
                f"--limit {limit} leaves {len(subjects) - limit} of the {len(subjects)} subjects without an image; give "
                f"at least {len(subjects)}, or a suite of fewer subjects"
            )
        turns = sorted(
            ((turn, case.uid) for cases in subjects.values() for turn, case in enumerate(cases)),
            key=lambda entry: entry[0],
        )
        kept = {uid for _, uid in turns[:limit]}
        cases = tuple(case for case in self.cases if case.uid in kept)
        return Suite(name=self.name, cases=cases, counts=f"{self.counts}; limited to {limit} images")


class Photos:
    """Reads pictures and masks through a store; a few stay decoded."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sha256: dict[str, str] = {}
        self.picture = functools.lru_cache(KEPT)(self._picture)

    def sha256(self, uri: str) -> str:
        """Of a file's bytes, 64 hex digits."""
        if uri not in self._sha256:
            self._sha256[uri] = hashlib.sha256(self._store.read(uri)).hexdigest()
        return self._sha256[uri]

    def remember(self, sha256: Mapping[str, str]) -> None:
        """Hashes that are known, by URI: such files are not read for them."""
        self._sha256 |= sha256

    def identity(self, photo: Photo) -> str:
        """Of the picture's and its mask's content."""
        mask = "" if photo.mask is None else f"+{self.sha256(photo.mask)}"
        return self.sha256(photo.uri) + mask

    def _picture(self, uri: str) -> Image.Image:
        return decode(self._store.read(uri), uri)

    def mask(self, photo: Photo) -> np.ndarray | None:
        """Where the subject is, bool (H, W); None where the suite has no mask. Raises UsageError for another size."""
        if photo.mask is None:
            return None
        picture, mask = self.picture(photo.uri), self.picture(photo.mask)
        if mask.size != picture.size:
            raise UsageError(
                f"the mask {photo.mask} is {mask.width} x {mask.height}, its picture {picture.width} x {picture.height}"
            )
        return np.asarray(mask.convert("L")) > 0

    def check(self, photos: Sequence[Photo]) -> None:
        """Decode all of them. Raises UsageError for the first that is no picture, or whose mask has another size."""
        for photo in photos:
            self.picture(photo.uri)
            self.mask(photo)


def photos_among(uris: Sequence[str]) -> list[Photo]:
    """The pictures among files, in their order, each with the mask beside it, where there is one."""
    there = set(uris)
    photos = []
    for uri in uris:
        if uri.lower().endswith(EXTENSIONS) and not uri.endswith(MASK_ENDING):
            mask = uri.rpartition(".")[0] + MASK_ENDING
            photos.append(Photo(uri=uri, mask=mask if mask in there else None))
    return photos


def decode(data: bytes, name: str) -> Image.Image:
    """RGB, upright. Raises UsageError where the bytes are no complete picture of `FORMATS`."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            return on_white(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{name} does not decode as a picture ({' '.join(str(error).split())[:120]})") from error


def with_wrong_references(cases: Sequence[SuiteCase]) -> tuple[SuiteCase, ...]:
    """Each case with another subject's picture as the wrong reference: the next of the same word, else the next one."""
    given = {reference.subject: reference for case in cases for reference in case.references}
    order = sorted(given)

    def wrong(reference: Reference, others: set[str]) -> Photo | None:
        place = order.index(reference.subject)
        turned = [name for name in order[place + 1 :] + order[:place] if name not in others]
        same = [name for name in turned if given[name].word == reference.word]
        return given[(same or turned)[0]].given if turned else None

    def changed(case: SuiteCase) -> Iterator[Reference]:
        others = {reference.subject for reference in case.references}
        for reference in case.references:
            yield replace(reference, wrong=wrong(reference, others))

    return tuple(replace(case, references=tuple(changed(case))) for case in cases)
