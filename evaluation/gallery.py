"""Drawn images in the output: a PNG by its key, the film of its mask, and what it cost, written last: then it is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from PIL import Image

from realcustom import storage
from realcustom.evaluation.suite import decode
from realcustom.store import Store

FOLDER, FILMS = "images", "films"
READERS = 16  # threads that read facts


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of one image."""

    sha256: str  # of the PNG's bytes
    forwards: float  # rows that went through the UNet for it
    seconds: float  # its share of the call's
    peak_bytes: int  # of the drawing process (GPU memory where there is a GPU) until then


class Gallery:
    """The images of an output."""

    def __init__(self, output: str, store: Store) -> None:
        self.folder, self.films, self.store = storage.join(output, FOLDER), storage.join(output, FILMS), store

    def done(self) -> set[str]:
        """Keys of the images that are there."""
        return {name.removesuffix(".json") for name in self.store.list_names(self.folder) if name.endswith(".json")}

    def filmed(self) -> set[str]:
        """Keys of the images whose masks were kept."""
        return {name.removesuffix(".png") for name in self.store.list_names(self.films)}

    def keep(
        self, key: str, png: bytes, film: bytes | None = None, *, forwards: float, seconds: float, peak_bytes: int
    ) -> None:
        """Write an image and the film of its mask, if it has one, then its facts."""
        facts = Facts(
            sha256=hashlib.sha256(png).hexdigest(), forwards=forwards, seconds=round(seconds, 6), peak_bytes=peak_bytes
        )
        self.store.write(self.uri(key), png)
        if film is not None:
            self.store.write(storage.join(self.films, f"{key}.png"), film)
        self.store.write(storage.join(self.folder, f"{key}.json"), json.dumps(asdict(facts)).encode())

    def uri(self, key: str) -> str:
        """Of an image's PNG."""
        return storage.join(self.folder, f"{key}.png")

    def image(self, key: str) -> Image.Image:
        """An image, RGB."""
        return decode(self.store.read(self.uri(key)), self.uri(key))

    def facts(self, keys: Iterable[str]) -> dict[str, Facts]:
        """Of images that are done, by key."""
        wanted = list(dict.fromkeys(keys))
        places = [storage.join(self.folder, f"{key}.json") for key in wanted]
        with ThreadPoolExecutor(READERS) as readers:
            read = readers.map(self.store.read, places)
            return {key: Facts(**json.loads(data)) for key, data in zip(wanted, read, strict=True)}
