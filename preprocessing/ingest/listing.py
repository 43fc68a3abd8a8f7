"""The files of a corpus, and the account of those that are not read: nothing beside what was read disappears.

Hidden files and folders and those that systems put beside pictures are left out, links are followed once; both are counted.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from realcustom import storage
from realcustom.entries import Entries
from realcustom.errors import UsageError
from realcustom.preprocessing.inputs import files_of
from realcustom.preprocessing.pictures import EXTENSIONS, FIRST_BYTES, UNDECODED_EXTENSIONS, looks_like_picture
from realcustom.storage import FileEntry
from realcustom.store import OF_ONE_FILE, Store, refusals

FIRST = 10  # names that are kept of what is counted
_SYSTEM_FOLDERS = ("@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
HIDDEN, SYSTEM, LINK, DANGLING, SPECIAL, UNNAMED, UNREADABLE = (
    "hidden",
    "system",
    "link",
    "dangling link",
    "no file",
    "unreadable name",
    "unreadable",
)
# Files that are no pictures whatever their number: they are not opened to look at their first bytes.
_NO_PICTURES = (
    *("txt", "caption", "json", "jsonl", "csv", "tsv", "gz", "parquet", "arrow", "tar", "tgz", "zip", "md"),
    *("npz", "npy", "pt", "safetensors", "yaml", "yml", "xml", "html", "py"),
)


# A picture's name, whatever the case of its extension; of `.jpg` it is none. A regular expression of Arrow's.
PICTURE_NAME = rf"(?i)[^/.][^/]*\.(?:{'|'.join((*EXTENSIONS, *UNDECODED_EXTENSIONS))})$"
_MAYBE_HIDDEN = re.compile(
    "(?:^|/)(?:[.]|" + "|".join(map(re.escape, (*_SYSTEM_FOLDERS, *_SYSTEM_FILES))) + ")", re.IGNORECASE | re.MULTILINE
)


@dataclass(kw_only=True)
class NotRead:
    """Files that are not read, by their kind: an extension, `hidden`, `system`, `link`, `dangling link` ..."""

    kinds: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def add(self, kind: str, name: str) -> None:
        """Count a file."""
        self.kinds[kind] += 1
        if len(self.first) < FIRST:
            self.first.append(shown(name))

    def to_dict(self) -> dict[str, Any]:
        """As `not_read` in report.json: kind -> number, and `first`: the first names."""
        return {**dict(sorted(self.kinds.items())), "first": self.first}


def list_corpus(uri: str, store: Store, not_read: NotRead) -> Entries:
    """The files of a folder, or the one file at `uri`; those that are left out are counted in `not_read`.

    Raises UsageError that names a folder which may not be read.
    """
    if not store.is_dir(uri):
        return Entries.of("", files_of(uri, store))
    base = storage.absolute(uri).rstrip("/") + "/"
    if not storage.is_remote(uri):
        return Entries.of(base, _Walk(uri, not_read).files())

    with refusals("list", uri):
        pages = (
            page if _none_hidden(page) else [row for row in page if _visible(row[0], not_read)]
            for page in storage.object_pages(uri, attempt=store.attempt)
        )
        return Entries.of_pages(base, pages)


class _Walk:
    """A walk over a local folder that follows each link once."""

    def __init__(self, root: str, not_read: NotRead):
        self._top = storage.absolute(root)
        self._root = os.path.realpath(self._top)
        self._not_read = not_read
        self._links: list[tuple[str, str]] = []  # name and path
        self._followed: set[str] = set()  # targets

    def files(self) -> Iterator[FileEntry]:
        """All files; those behind links after the others."""
        yield from self._below(self._top, "")
        while self._links:
            links, self._links = sorted(self._links), []
            for name, path in links:
                yield from self._follow(name, path)

    def _below(self, folder: str, prefix: str) -> Iterator[FileEntry]:
        for item in _scan(folder):
            name = prefix + item.name
            hidden = hidden_kind(item.name)
            if hidden and item.is_dir(follow_symlinks=False):
                for path in _files_below(item.path):
                    self._not_read.add(hidden, name + path.removeprefix(item.path))
            elif hidden:
                self._not_read.add(hidden, name)
            elif item.is_symlink():
                self._links.append((name, item.path))
            elif item.path in self._followed:  # listed by another link
                self._not_read.add(LINK, name)
            elif item.is_dir():
                yield from self._below(item.path, name + "/")
            elif not item.is_file():  # a pipe, a socket: opening one may wait for ever
                self._not_read.add(SPECIAL, name)
            else:
                with contextlib.suppress(FileNotFoundError):  # removed while we looked
                    yield _entry(name, item.path, item.stat())

    def _follow(self, name: str, path: str) -> Iterator[FileEntry]:
        target = os.path.realpath(path)
        if not os.path.exists(target):
            self._not_read.add(DANGLING, name)
        elif self._is_listed(target) or self._root.startswith(target.rstrip(os.sep) + os.sep):
            self._not_read.add(LINK, name)
        elif os.path.isdir(target):
            self._followed.add(target)
            yield from self._below(target, name + "/")
        elif not os.path.isfile(target):
            self._not_read.add(SPECIAL, name)
        else:
            self._followed.add(target)
            yield _entry(name, path, os.stat(path))

    def _is_listed(self, target: str) -> bool:
        """Whether what a link leads to is listed by another way."""
        if any(target == other or target.startswith(other + os.sep) for other in self._followed):
            return True
        inside = target == self._root or target.startswith(self._root + os.sep)
        return inside and not any(hidden_kind(part) for part in target[len(self._root) :].split(os.sep) if part)


def hidden_kind(name: str) -> str:
    """`hidden` or `system` for the name of such a file or folder; empty for others."""
    if name in _SYSTEM_FOLDERS or name.lower() in _SYSTEM_FILES:
        return SYSTEM
    return HIDDEN if name.startswith(".") and name not in (".", "..") else ""


def extension_of(name: str) -> str:
    """The extension in lower case without its dot; empty for none."""
    return posixpath.splitext(name)[1].removeprefix(".").lower()


def kind_of(name: str) -> str:
    """The kind by which a file that is not read is counted."""
    return f".{extension_of(name)}" if extension_of(name) else "no extension"


def pictures_among(entries: Iterable[FileEntry], store: Store, refused: set[str]) -> list[FileEntry]:
    """Those that are pictures by their first bytes; a file whose extension says that it is none is not opened. The names of files
    that are gone or may not be read are added to `refused`."""
    candidates = [entry for entry in entries if extension_of(entry.name) not in _NO_PICTURES and entry.size]

    def look(entry: FileEntry) -> bool:
        if not is_addressable(entry.name):
            return False
        try:
            return looks_like_picture(store.open(entry.uri, FIRST_BYTES).read(0, FIRST_BYTES))
        except OF_ONE_FILE:
            refused.add(entry.name)
            return False

    with ThreadPoolExecutor(max_workers=16) as pool:
        return [entry for entry, found in zip(candidates, pool.map(look, candidates), strict=True) if found]


def is_addressable(name: str) -> bool:
    """Whether an object of that name can be asked for: object stores take keys in which no path can be read."""
    return not any(part in ("", ".", "..") for part in name.split("/")) and shown(name) == name


def shown(name: str) -> str:
    """A name that is not UTF-8 with its broken bytes written out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _none_hidden(page: Sequence[tuple[str, int, str]]) -> bool:
    """Whether a page of a listing has no hidden name; quick for the many that have none."""
    return not _MAYBE_HIDDEN.search("\n".join(row[0] for row in page))


def _visible(name: str, not_read: NotRead) -> bool:
    kind = next((kind for kind in map(hidden_kind, name.split("/")) if kind), "")
    if kind:
        not_read.add(kind, name)
    return not kind


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda item: item.name)
    except PermissionError as error:
        raise UsageError(
            f"cannot list {folder}: no permission. What is in it would be missing from the corpus"
        ) from error


def _files_below(folder: str) -> Iterator[str]:
    for top, folders, names in os.walk(folder):
        folders.sort()
        yield from (os.path.join(top, name) for name in sorted(names))


def _entry(name: str, path: str, stat: os.stat_result) -> FileEntry:
    return FileEntry(name=name, uri=path, size=stat.st_size, version=str(stat.st_mtime_ns))
