"""Which model this is: a hub id with its revision, or a local folder by its name and content, never by its path."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from realcustom import storage


def split_revision(model: str) -> tuple[str, str | None]:
    """`id@revision` -> (id, revision); a folder has no revision."""
    if Path(model).exists() or "@" not in model:
        return model, None
    name, _, revision = model.rpartition("@")
    return name, revision


def model_identity(model: str) -> str:
    """`name@sha256-` and 12 hex digits for a folder, over its files' names and bytes; a hub id as it was given."""
    if not Path(model).is_dir():
        return model
    folder = Path(model).resolve()
    entries = tuple((entry.name, entry.size, entry.version) for entry in storage.list_files(folder))
    return f"{folder.name}@sha256-{_content_hash(str(folder), entries)}"


@functools.lru_cache(maxsize=64)
def _content_hash(folder: str, entries: tuple[tuple[str, int, str], ...]) -> str:
    # the listing is part of the key: a folder that was changed is hashed again
    digest = hashlib.sha256()
    for name, size, _ in entries:
        digest.update(f"{name}\0{size}\0".encode())
        with open(storage.join(folder, name), "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()[:12]
