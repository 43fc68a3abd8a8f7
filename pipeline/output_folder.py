"""A folder that a verb writes its result to, of this machine or on a store: nothing that is not such a result is replaced."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.store import Store, check_readable, check_writable, refusals


def of_option(place: str) -> str:
    """The folder that --output names, without a slash at its end."""
    return place.rstrip("/") if storage.is_remote(place) else str(Path(place.removeprefix("file://")))


def check(folder: str, overwrite: bool, ours: re.Pattern[str]) -> None:
    """Raise UsageError unless `folder` does not exist, is empty, or holds an earlier result to overwrite.

    Args:
        ours: the names of the files of such a result.
    """
    check_readable(folder)
    store = Store()
    if store.exists(folder) and not store.is_dir(folder):
        raise UsageError(f"--output: {folder} is a file; name a folder")
    there = _names(folder, store)
    foreign = [name for name in there if not ours.fullmatch(name)]
    if foreign:
        raise UsageError(f"--output: {folder} holds other files ({foreign[0]} ...); name a new folder")
    if there and not overwrite:
        raise UsageError(f"--output: {folder} holds an earlier result; name a new folder, or give --overwrite")
    check_writable(folder)


def write(files: Mapping[str, bytes], folder: str, overwrite: bool, ours: re.Pattern[str]) -> list[str]:
    """Write a result in the place of an earlier one; returns the files' paths or URIs. Raises as `check`."""
    check(folder, overwrite, ours)  # another process may have written there in the meantime
    store = Store()
    for name in _names(folder, store):
        if name not in files:
            store.delete(storage.join(folder, name))
    for name, data in files.items():
        store.write(storage.join(folder, name), data)
    return [storage.join(folder, name) for name in files]


def _names(folder: str, store: Store) -> list[str]:
    """What is directly in it, sorted; of a store the files alone."""
    if storage.is_remote(folder):
        return store.list_names(folder)
    with refusals("read", folder):
        return sorted(path.name for path in Path(folder).iterdir()) if Path(folder).exists() else []
