"""Model folders of an object store, fetched once for all processes of a machine.

A fetched folder lies below a name that is a hash of the store's listing: another content is another folder, and one that is
there is whole. A reader holds a shared lock until its process ends; whoever fetches or removes a folder needs it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from realcustom.errors import UsageError
from realcustom.storage import FileEntry
from realcustom.store import Store, check_readable, refusals

FOLDER_VARIABLE = "REALCUSTOM_CACHE"  # where fetched models are kept
LIMIT_VARIABLE = "REALCUSTOM_CACHE_GB"  # how much of them, before those not used for longest are removed
DEFAULT_GB = 100.0
REVISION_DIGITS = 16
PIECE = 16 * 2**20  # bytes fetched and written at once
_held: dict[str, int] = {}  # locks that this process holds to its end, by their path


def is_stored(model: str) -> bool:
    """Whether a model is named by the URI of an object store."""
    return model.startswith("s3://")


def local(model: str) -> str:
    """`model`, or the local copy of one in a store, as `fetch`."""
    return fetch(model) if is_stored(model) else model


def pin(model: str) -> str:
    """`s3://bucket/folder@REVISION`, by what the store lists there now; one that names a revision stays as it is.

    Raises UsageError where the store has no files there.
    """
    uri, revision = split_pin(model)
    return model if revision is not None else f"{uri}@{_revision(_first_listing(uri))}"


def split_pin(model: str) -> tuple[str, str | None]:
    """`s3://bucket/folder@REVISION` -> (URI, revision); without one: (URI, None)."""
    uri, _, revision = model.rpartition("@")
    known = len(revision) == REVISION_DIGITS and not set(revision) - set("0123456789abcdef")
    return (uri.rstrip("/"), revision) if known else (model.rstrip("/"), None)


def fetch(model: str) -> str:
    """The local copy of a stored model's folder, which no other process changes or removes while this one runs.

    Args:
        model: `s3://bucket/folder`, with or without `@REVISION`.
    Raises:
        UsageError: nothing is there, it is not what the revision says, or it is larger than the cache.
    """
    uri, revision = split_pin(model)
    folder = cache_folder()
    if revision is not None and (found := _open(folder, revision, uri)) is not None:
        return found
    entries = _first_listing(uri) if revision is None else _listing(uri)
    now = _revision(entries)
    if revision not in (None, now):
        raise UsageError(
            f"{uri} has changed since this run began (it was {revision}, it is {now}): start the run again"
        )
    found = _open(folder, now, uri)
    if found is None:
        _fetch(folder, now, uri, entries)
        found = _open(folder, now, uri)
        assert found is not None, f"{uri} was fetched, and is not in {folder}"
    return found


def cache_folder() -> Path:
    """Where fetched models are kept: $REALCUSTOM_CACHE, else `realcustom/models` below the user's cache folder."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "realcustom" / "models"


def _first_listing(uri: str) -> list[FileEntry]:
    """`_listing` before a run has begun that could wait for the store: one that is away is said at once."""
    check_readable(uri)
    return _listing(uri)


def _listing(uri: str) -> list[FileEntry]:
    try:
        entries = Store().list_files(uri)
    except FileNotFoundError as error:
        raise UsageError(f"no model folder at {uri}: the store has no file there") from error
    return entries


def _revision(entries: Sequence[FileEntry]) -> str:
    lines = "".join(f"{entry.name}\0{entry.size}\0{entry.version}\n" for entry in entries)
    return hashlib.sha256(lines.encode()).hexdigest()[:REVISION_DIGITS]


def _open(folder: Path, revision: str, uri: str) -> str | None:
    """The copy, if it is there; from then on nobody removes it."""
    copy = folder / revision / _name(uri)
    lock = folder / f"{revision}.lock"
    if str(lock) in _held:
        return str(copy)
    if not lock.exists():
        return None
    handle = os.open(lock, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_SH)
    if not copy.is_dir():
        os.close(handle)
        return None
    os.utime(lock)  # when it was last used
    _held[str(lock)] = handle
    return str(copy)


def _name(uri: str) -> str:
    """The folder's own name, which is part of a model's identity."""
    return uri.rpartition("/")[2]


def _fetch(folder: Path, revision: str, uri: str, entries: Sequence[FileEntry]) -> None:
    with refusals("write", str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{revision}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            whole, partial = folder / revision, folder / f".tmp-{revision}"
            if (whole / _name(uri)).is_dir():  # another process was faster
                return
            _make_room(folder, sum(entry.size for entry in entries), uri)
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            try:
                for entry in entries:
                    _fetch_file(entry, partial / _name(uri) / entry.name)
                whole.mkdir(exist_ok=True)  # the same files under another name may be there
                os.replace(partial / _name(uri), whole / _name(uri))
            finally:
                shutil.rmtree(partial, ignore_errors=True)


def _fetch_file(entry: FileEntry, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not entry.size:
        path.touch()
        return
    source = Store().open(entry.uri, PIECE)
    with path.open("wb") as file:
        for start in range(0, entry.size, PIECE):
            file.write(source.read(start, PIECE))
    if path.stat().st_size != entry.size:
        raise UsageError(f"{entry.uri} has {path.stat().st_size} bytes, and {entry.size} were listed: it was changed")


def _make_room(folder: Path, size: int, uri: str) -> None:
    """Remove what killed processes left, then the copies that were not used for longest and that no process holds, until `size`
    bytes fit below the limit."""
    limit = _limit()
    if size > limit:
        raise UsageError(
            f"{uri} has {size / 1e9:.1f} GB, and the cache of models holds {limit / 1e9:g}: set {LIMIT_VARIABLE} higher"
        )
    for partial in folder.glob(".tmp-*"):
        with (
            (folder / f"{partial.name.removeprefix('.tmp-')}.lock").open("a") as file,
            contextlib.suppress(BlockingIOError),
        ):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(partial)  # of a process that was killed
    locks = sorted(folder.glob("*.lock"), key=lambda lock: lock.stat().st_mtime)
    used = {lock: _size(folder / lock.stem) for lock in locks}
    excess = sum(used.values()) + size - limit
    for lock in locks:
        if excess <= 0:
            return
        if not used[lock]:
            continue
        with lock.open("a") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder / lock.stem)
            excess -= used[lock]


def _limit() -> float:
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_GB)
    try:
        return float(text) * 1e9
    except ValueError as error:
        raise UsageError(f"{LIMIT_VARIABLE}={text!r} is no number of gigabytes") from error


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
