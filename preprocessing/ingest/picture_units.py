"""A folder's pictures cut into units that stay as they are where pictures come or go."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from realcustom.preprocessing.engine.unit import PackedFiles, Unit, UnitKind, identity_of
from realcustom.preprocessing.ingest.metadata import Describe
from realcustom.preprocessing.ingest.sidecars import WithTexts

T = TypeVar("T")
_PLAIN = 60  # characters of a picture's name in the name of the unit that begins with it


def picture_units(pictures: Iterable[WithTexts], describe: Describe | None, unit_size: int) -> Iterator[Unit]:
    """The units of pictures that are sorted by name, each with the texts beside its pictures and what tables say of them."""
    for some in cut_by_names(pictures, unit_size, lambda one: one[0].name):
        inputs: list[dict[str, Any]] = []
        identities: list[list[Any]] = []
        for entry, texts in some:
            input = {"name": entry.name, "uri": entry.uri, "size": entry.size}
            identity: list[Any] = [entry.name, entry.size, entry.version]
            if describe is not None:
                said = describe(entry.name)
                input |= {"caption": said.caption, "captions": said.others, "unlisted": said.unlisted}
                identity += [said.caption or "", said.unlisted, *said.others]
            inputs.append(input)
            identities.append(identity)
            for one in texts:
                inputs.append({"name": one.name, "uri": one.uri, "size": one.size, "beside": entry.name})
                identities.append([one.name, one.size, one.version])
        key = some[0][0].name
        plain = re.sub(r"[^A-Za-z0-9_.=-]+", "-", posixpath.splitext(key)[0])[:_PLAIN].strip("-.")
        yield Unit(
            name=f"pictures-{plain}-{identity_of(key)[:8]}",
            identity=identity_of(identities),
            kind=UnitKind.PICTURES,
            files=PackedFiles.of(inputs),
        )


def cut_by_names(items: Iterable[T], size: int, name: Callable[[T], str]) -> Iterator[list[T]]:
    """Cut items that are sorted by name into ranges of at most `size`.

    Where a range begins depends on hashes of names, not on their number: one more name changes the range that it is in.
    """
    bits = size.bit_length()
    zeros = (1 << bits) - 1
    items_of_range: list[T] = []
    hashes: list[int] = []
    for item in items:
        digest = hashlib.sha256(name(item).encode("utf-8", "surrogateescape")).digest()
        hash_ = int.from_bytes(digest[:8], "big")
        if not hash_ & zeros and items_of_range:
            yield from _cut(items_of_range, hashes, size, bits - 1)
            items_of_range, hashes = [], []
        items_of_range.append(item)
        hashes.append(hash_)
    if items_of_range:
        yield from _cut(items_of_range, hashes, size, bits - 1)


def _cut(items: list[T], hashes: list[int], size: int, bits: int) -> Iterator[list[T]]:
    """A range, or if it is too long those in it."""
    if len(items) <= size:
        yield items
        return
    zeros = (1 << bits) - 1  # a range begins at each hash that ends in so many zeros, one in 2^bits
    starts = [0] + [index for index in range(1, len(items)) if not hashes[index] & zeros]
    for start, end in zip(starts, [*starts[1:], len(items)], strict=True):
        yield from _cut(items[start:end], hashes[start:end], size, bits - 1)
