"""The files of a sample sheet: written where it is drawn, read where a page shows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from realcustom import storage
from realcustom.store import Store


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A sample sheet; it may have no rows."""

    png: bytes
    captions: Sequence[tuple[str, str]]  # the target word and the caption of each row, from above

    def write(self, output: str, step: int, store: Store) -> None:
        """Write it to the folder `samples` of a run, unless it has no rows. The captions are a file of their own: pages read
        them without the picture, which may be large.
        """
        if self.captions:
            captions = json.dumps(self.captions, ensure_ascii=False).encode()
            store.write(storage.join(output, "samples", f"step-{step:08d}.json"), captions)
            store.write(storage.join(output, "samples", f"step-{step:08d}.png"), self.png)


def read_captions(output: str, name: str, store: Store) -> list[tuple[str, str]]:
    """`Sheet.captions` of the sheet with that file name; none beside a sheet of an earlier version."""
    uri = storage.join(output, "samples", name.removesuffix(".png") + ".json")
    return [(word, caption) for word, caption in json.loads(store.read(uri))] if store.exists(uri) else []
