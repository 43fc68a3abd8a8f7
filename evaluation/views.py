"""What of a picture is compared: the whole, its subject cut out on white, or its background with the subject greyed.

Where the subject is comes from the suite's own mask, else from a segmenter, whose masks are kept in the output.
"""

from __future__ import annotations

import enum
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.evaluation.suite import Photo, Photos, decode
from realcustom.reference import cut_out
from realcustom.store import Store

GREY = 128  # of the pixels that a background view leaves out
FOLDER = "masks"


class View(enum.Enum):
    """A part of a picture."""

    WHOLE = "whole"
    SUBJECT = "subject"  # the rest is white, cropped to the subject with a margin of 5 %
    BACKGROUND = "background"  # the subject is grey


class Segmenter(Protocol):
    """Finds what a word names."""

    identity: str  # of its models and thresholds

    def __call__(self, pictures: Sequence[Image.Image], words: Sequence[str]) -> Sequence[np.ndarray]:
        """Masks, bool (H, W), one for each RGB picture and its word; all false where it finds nothing."""
        ...


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A picture in a view."""

    photo: Photo
    word: str = ""  # names the subject, for a segmenter
    view: View = View.WHOLE


class Views:
    """Makes views."""

    def __init__(self, output: str, photos: Photos, segmenter: Segmenter | None, store: Store) -> None:
        self._folder, self._photos = storage.join(output, FOLDER), photos
        self._segmenter, self._store = segmenter, store
        self._keys: dict[tuple[str, str | None, str, View], str] = {}

    def key(self, seen: Seen) -> str:
        """A hash of all that decides the view's pixels, 32 hex digits."""
        asked = (seen.photo.uri, seen.photo.mask, seen.word, seen.view)
        if asked not in self._keys:
            parts = [self._photos.sha256(seen.photo.uri)]
            if seen.view is not View.WHOLE:
                parts += [seen.view.value, self._mask_key(seen)]
            self._keys[asked] = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        return self._keys[asked]

    def picture(self, seen: Seen) -> Image.Image | None:
        """RGB; None for the subject's view where there is no subject."""
        picture = self._photos.picture(seen.photo.uri)
        if seen.view is View.WHOLE:
            return picture
        mask = self.mask(seen)
        if seen.view is View.SUBJECT:
            return cut_out(picture, mask) if mask.any() else None
        return Image.fromarray(np.where(mask[..., None], np.uint8(GREY), np.asarray(picture)))

    def mask(self, seen: Seen) -> np.ndarray:
        """Where the subject is, bool (H, W)."""
        own = self._photos.mask(seen.photo)
        if own is not None:
            return own
        uri = self._mask_uri(seen)
        if self._store.exists(uri):
            return np.asarray(decode(self._store.read(uri), uri).convert("L")) > 0
        assert self._segmenter is not None, "asked for in _mask_key"
        mask = np.asarray(self._segmenter([self._photos.picture(seen.photo.uri)], [seen.word])[0], dtype=bool)
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, "PNG")
        self._store.write(uri, buffer.getvalue())
        return mask

    def masked(self, photo: Photo, word: str) -> Photo:
        """The picture with its mask, found if the suite has none. Raises UsageError where the word is not found in it."""
        if photo.mask is not None:
            return photo
        seen = Seen(photo=photo, word=word, view=View.SUBJECT)
        if not self.mask(seen).any():
            raise UsageError(
                f"the segmenter finds no '{word}' in {photo.uri}: give its mask as a file like 00.mask.png"
            )
        return replace(photo, mask=self._mask_uri(seen))

    def _mask_uri(self, seen: Seen) -> str:
        return storage.join(self._folder, f"{self._mask_key(seen)}.png")

    def _mask_key(self, seen: Seen) -> str:
        if seen.photo.mask is not None:
            return self._photos.sha256(seen.photo.mask)
        if self._segmenter is None:
            raise UsageError(
                f"{seen.photo.uri} has no mask, and there is no segmenter: masks are files like 00.mask.png"
            )
        parts = [self._photos.sha256(seen.photo.uri), seen.word, self._segmenter.identity]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
