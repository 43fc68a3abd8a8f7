"""The pictures of a corpus by the names that tables and documents give them."""

from __future__ import annotations

import functools
import posixpath
import re
import unicodedata
from collections.abc import Iterable

from realcustom.errors import UsageError
from realcustom.preprocessing.ingest.compressed import plain_name
from realcustom.preprocessing.ingest.listing import extension_of
from realcustom.preprocessing.pictures import EXTENSIONS, UNDECODED_EXTENSIONS

NAME = "metadata"  # of imagefolder's tables: one that cannot be read is an error, another is no table of captions

_NUMBERED = re.compile(r"#\d+$")  # Flickr: `1.jpg#0` is the first caption of 1.jpg
_ABSOLUTE = re.compile(r"^(?:/|[A-Za-z]:[\\/])")  # on the machine that wrote a table
_LONG_STEM = 6  # characters: a shorter name without an extension may be any word


class Places:
    """Finds the picture that a name means."""

    def __init__(self, pictures: Iterable[str]):
        self._pictures = pictures
        self._from_elsewhere: dict[tuple[str, str], str] = {}  # table and picture -> its path on another machine

    def find(self, name: str, table: str) -> str | None:
        """The picture of that name: relative to the table's folder; for a table of another name than imagefolder's also
        to one above it; for a .json, and for a path on another machine, also the only picture whose path ends so. The
        extension may be missing.

        Raises UsageError if it is the name of several pictures.
        """
        name = name.strip()
        numbered = _NUMBERED.sub("", name)
        return self._find(name, table) or (self._find(numbered, table) if numbered != name else None)

    def knows(self, name: str, table: str) -> bool:
        """Whether it is the name of a picture, or of several."""
        try:
            return self.find(name, table) is not None
        except UsageError:
            return True

    def has_file(self, name: str) -> bool:
        """Whether a picture is called so, wherever it is, with its extension or by a name that is no usual word."""
        file = posixpath.basename(name.strip().replace("\\", "/"))
        return (has_extension(file) or len(file) >= _LONG_STEM) and _NUMBERED.sub("", file) in self._by_file

    def _find(self, name: str, table: str) -> str | None:
        folder, file = posixpath.split(table)
        own = posixpath.splitext(plain_name(file))
        while True:
            path = self._picture(posixpath.join(folder, name))
            if path is not None:
                return path
            if not folder or own[0] == NAME:
                break
            folder = posixpath.dirname(folder)
        is_absolute = _ABSOLUTE.match(name) is not None
        found = self._ending(name, is_absolute) if own[1] == ".json" or is_absolute else []
        if len(found) > 1:  # COCO: captions_train2017.json is about the pictures in train2017
            found = [path for path in found if posixpath.dirname(path).endswith(own[0].partition("_")[2])]
        if len(found) > 1:
            raise UsageError(
                f"{table}: '{name}' is the name of {found[0]} and of {found[1]}: write their paths relative to the table"
            )
        if found and is_absolute:  # two of whose folders we have one
            other = self._from_elsewhere.setdefault((table, found[0]), name)
            if other != name:
                raise UsageError(f"{table}: {found[0]} may be '{other}' or '{name}': write paths relative to the table")
        return found[0] if found else None

    @functools.cached_property
    def _names(self) -> set[str]:
        """Made where there is a table to be joined."""
        return set(self._pictures)

    def _picture(self, path: str) -> str | None:
        """The picture at a path, written with slashes or as on Windows, with composed characters or as on a Mac."""
        for way in (path, path.replace("\\", "/")):
            found = posixpath.normpath(way)
            if found in self._names:
                return found
        form = unicodedata.normalize("NFC", found)
        if form in self._names or form in self._composed:
            return form if form in self._names else self._composed[form]
        named = [] if has_extension(form) else self._stems.get(form, [])
        if len(named) > 1:
            raise UsageError(f"'{form}' is the name of {named[0]} and of {named[1]}: write it with its extension")
        return named[0] if named else None

    @functools.cached_property
    def _composed(self) -> dict[str, str]:
        """The pictures by their names in form NFC, where that is another."""
        forms = ((unicodedata.normalize("NFC", name), name) for name in self._names)
        return {form: name for form, name in forms if form != name}

    @functools.cached_property
    def _stems(self) -> dict[str, list[str]]:
        """The pictures by their names without the extension."""
        found: dict[str, list[str]] = {}
        for name in sorted(self._names):
            found.setdefault(unicodedata.normalize("NFC", posixpath.splitext(name)[0]), []).append(name)
        return found

    @functools.cached_property
    def _by_file(self) -> dict[str, list[str]]:
        """The pictures by the last part of their paths, with the extension and without."""
        found: dict[str, list[str]] = {}
        for path in sorted(self._names):
            file = posixpath.basename(path)
            for name in dict.fromkeys((file, posixpath.splitext(file)[0])):
                found.setdefault(name, []).append(path)
        return found

    def _ending(self, name: str, is_absolute: bool) -> list[str]:
        """The pictures whose paths end with a name; or those with whose paths a name on another machine ends."""
        name = posixpath.normpath(name.replace("\\", "/"))
        found = self._by_file.get(posixpath.basename(name), [])
        if not is_absolute:
            return [path for path in found if _stem(f"/{path}").endswith(_stem(f"/{name}"))]
        ending = [path for path in found if _stem(f"/{name}").endswith(_stem(f"/{path}"))]
        return ending or (found if len(found) == 1 else [])


def has_extension(name: str) -> bool:
    """Whether a name ends as a picture's does, or as one of a picture and a number (`1.jpg#0`)."""
    return extension_of(_NUMBERED.sub("", name)) in (*EXTENSIONS, *UNDECODED_EXTENSIONS)


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0] if has_extension(name) else name
