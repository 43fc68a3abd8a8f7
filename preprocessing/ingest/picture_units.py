"""A folder's pictures cut into units that stay as they are where pictures come or go."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from realcustom.preprocessing.engine.unit import InputFile, Unit, UnitKind, identity_of
from realcustom.preprocessing.ingest.metadata import Describe, Described
from realcustom.storage import FileEntry

_PLAIN = 60  # characters of a picture's name in the name of the unit that begins with it


def picture_units(
    files: Sequence[FileEntry], beside: Mapping[str, Sequence[FileEntry]], describe: Describe | None, unit_size: int
) -> Iterator[Unit]:
    """The units of pictures that are sorted by name, each with the files beside its pictures and what tables say of them."""
    for first, last in cut_by_names([entry.name for entry in files], unit_size):
        inputs: list[InputFile] = []
        identities: list[list[Any]] = []
        for entry in files[first:last]:
            said = describe(entry.name) if describe is not None else Described()
            inputs.append(
                InputFile(
                    name=entry.name,
                    uri=entry.uri,
                    size=entry.size,
                    caption=said.caption,
                    captions=said.others,
                    unlisted=said.unlisted,
                )
            )
            identities.append([entry.name, entry.size, entry.version])
            if describe is not None:
                identities[-1] += [said.caption or "", said.unlisted, *said.others]
            for one in beside.get(entry.name, []):
                inputs.append(InputFile(name=one.name, uri=one.uri, size=one.size, beside=entry.name))
                identities.append([one.name, one.size, one.version])
        key = files[first].name
        plain = re.sub(r"[^A-Za-z0-9_.=-]+", "-", posixpath.splitext(key)[0])[:_PLAIN].strip("-.")
        name = f"pictures-{plain}-{identity_of(key)[:8]}"
        yield Unit(name=name, identity=identity_of(identities), kind=UnitKind.PICTURES, files=tuple(inputs))


def cut_by_names(names: Sequence[str], size: int) -> list[tuple[int, int]]:
    """Cut sorted names into ranges of at most `size`: the first index of each, and the one after its last.

    Where a range begins depends on hashes of names, not on their number: one more name changes the range that it is in.
    """
    hashes = [
        int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") for name in names
    ]
    found: list[tuple[int, int]] = []
    pending = [(0, len(names), size.bit_length())]
    while pending:
        first, last, bits = pending.pop()
        if last - first <= size and bits < size.bit_length():
            found.append((first, last))
            continue
        # a range begins at each name whose hash ends in so many zeros: one in 2^bits
        starts = [first] + [index for index in range(first + 1, last) if hashes[index] & ((1 << bits) - 1) == 0]
        pending += [(start, end, bits - 1) for start, end in zip(starts, [*starts[1:], last], strict=True)]
    return sorted(found)
