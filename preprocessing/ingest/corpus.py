"""Units of a corpus, read from its listing, its tables of URLs and its tables of captions."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.stage import StageInput
from realcustom.preprocessing.engine.unit import InputFile, Unit, UnitKind, identity_of
from realcustom.preprocessing.ingest.caption_tables import CaptionTables, read_caption_tables
from realcustom.preprocessing.ingest.columns import by_rule
from realcustom.preprocessing.ingest.compressed import plain_name
from realcustom.preprocessing.ingest.contents import Contents, Source, find_source
from realcustom.preprocessing.ingest.folder import sidecar_name, sidecar_names
from realcustom.preprocessing.ingest.listing import (
    UNNAMED,
    Listing,
    NotRead,
    is_addressable,
    is_picture_name,
    kind_of,
    list_corpus,
    pictures_among,
)
from realcustom.preprocessing.ingest.metadata import Describe, Described, describer
from realcustom.preprocessing.ingest.parquet import check_source_table, table_units
from realcustom.preprocessing.ingest.sample import is_text
from realcustom.preprocessing.ingest.url_units import url_units
from realcustom.preprocessing.inputs import file_unit, sorted_units
from realcustom.preprocessing.settings import IngestSettings, PreprocessSettings, SourceKind
from realcustom.storage import FileEntry
from realcustom.store import Store

_PLAIN = 60  # characters of a picture's name in the name of the unit that begins with it
_FINGERPRINTED = re.compile(r"[a-z_]+@[0-9a-f]{12}")  # the name of a stage's directory


def open_corpus(uri: str, settings: PreprocessSettings, store: Store) -> StageInput:
    """The corpus at `uri` as the input of a source stage.

    Raises:
        UsageError: it holds nothing to read, a mixture, or tables without the columns that the settings name.
    """
    units, account = _open(uri, settings.ingest, store)
    name = settings.ingest.corpus if settings.ingest.corpus is not None else storage.absolute(uri)
    return StageInput(
        units=sorted_units(units), upstream=f"corpus {name}", description=None, finished=True, account=account
    )


def _open(uri: str, settings: IngestSettings, store: Store) -> tuple[list[Unit], dict[str, Any]]:
    listing = list_corpus(uri, store)
    names = {entry.name for entry in listing.files}
    # the shards of `export` are a corpus
    if "stage.json" in names and not any(name.endswith(".tar") for name in names):
        raise UsageError(f"{uri} is what a stage wrote, and ingest reads a corpus: give what that one came from")
    entries = _addressable(_without_stages(listing.files), listing.not_read)
    contents = Contents.of(entries)
    source = find_source(uri, contents, settings, store)
    _check_settings(uri, source, settings)
    if source.kind is SourceKind.PICTURES:
        return _folder(entries, source, settings, store, listing)
    unreadable = next((entry.name for entry in source.files if not is_text(entry.name)), None)
    if unreadable is not None:
        raise UsageError(f"the name of {unreadable!a} in {uri} is not UTF-8: rename it")
    account = _account(entries, source.files, source.beside, listing.not_read)
    if source.kind is SourceKind.URLS:
        return url_units(source.files, settings, store), account
    if source.kind is SourceKind.PARQUET:
        first, schema = tables.first_schema(source.files, store)
        check_source_table(schema, settings, first.name)
        return [unit for entry in source.files for unit in table_units(entry, store)], account
    return [file_unit(entry, UnitKind.TAR) for entry in source.files], account


def _check_settings(uri: str, source: Source, settings: IngestSettings) -> None:
    """Refuse settings for a source of another kind."""
    given = [name for name in ("metadata", "caption_template") if getattr(settings, name)]
    if given and source.kind is not SourceKind.PICTURES:
        raise UsageError(
            f"ingest.{given[0]} describes the pictures of a folder, and {uri} is read as {source.kind.value}"
        )
    members = [name for name in ("image_member", "caption_member") if getattr(settings, name)]
    if members and source.kind is not SourceKind.WEBDATASET:
        raise UsageError(
            f"ingest.{members[0]} is about the members of tar shards, and {uri} is read as {source.kind.value}"
        )


def _without_stages(entries: Sequence[FileEntry]) -> list[FileEntry]:
    """The files that are not in a stage's directory below the corpus: they were not there before a run wrote them."""
    homes = {posixpath.dirname(entry.name) for entry in entries if posixpath.basename(entry.name) == "stage.json"}
    stages = tuple(f"{home}/" for home in homes if _FINGERPRINTED.fullmatch(posixpath.basename(home)))
    return [entry for entry in entries if not entry.name.startswith(stages)]


def _addressable(entries: Sequence[FileEntry], not_read: NotRead) -> list[FileEntry]:
    """The files that can be opened. Of those that cannot, pictures and shards stay: they are quarantined by name."""
    kept = []
    for entry in entries:
        is_row = is_picture_name(entry.name) or plain_name(entry.name).endswith(".tar")
        if is_row or is_addressable(entry.name) or not is_text(entry.name):
            kept.append(entry)
        else:
            not_read.add(UNNAMED, entry.name)
    return kept


def _account(
    entries: Iterable[FileEntry], read: Iterable[FileEntry], beside: Iterable[FileEntry], not_read: NotRead
) -> dict[str, Any]:
    """What report.json says of the files: those that are read, those that belong to them, and all others by kind."""
    reading = {entry.name for entry in read}
    belonging = {entry.name for entry in beside} - reading
    for entry in entries:
        if entry.name not in reading and entry.name not in belonging:
            not_read.add(kind_of(entry.name), entry.name)
    return {"files": {"read": len(reading), "beside": len(belonging)}, "not_read": not_read.to_dict()}


# a folder of pictures


def _folder(
    entries: Sequence[FileEntry], source: Source, settings: IngestSettings, store: Store, listing: Listing
) -> tuple[list[Unit], dict[str, Any]]:
    """The units of a folder of pictures."""
    taken = {entry.name for entry in (*source.files, *source.beside)}
    left = [entry for entry in entries if entry.name not in taken]
    sidecars = {sidecar_name(entry.name, settings): entry for entry in left if sidecar_name(entry.name, settings)}
    more = pictures_among((entry for entry in left if not sidecar_name(entry.name, settings)), store)
    pictures = sorted([*source.files, *more], key=lambda entry: entry.name)
    beside: dict[str, list[FileEntry]] = {}
    for entry in pictures:
        found = [sidecars[name] for name in sidecar_names(entry.name, settings) if name in sidecars]
        if found:
            beside[entry.name] = found
    own = {entry.name for entry in more} | {one.name for found in beside.values() for one in found}
    describe = describer(settings, store)
    captions = CaptionTables()
    if describe is None:
        rest = [entry for entry in left if entry.name not in own]
        captions = read_caption_tables(rest, (entry.name for entry in pictures), settings, store)
        describe = _said_by(captions, settings)
    units = list(_picture_units(pictures, beside, describe, settings.unit_size))
    belonging = [*source.beside, *captions.files, *(one for found in beside.values() for one in found)]
    if settings.metadata is not None:
        own_table = storage.absolute(settings.metadata)
        belonging += [entry for entry in entries if storage.absolute(entry.uri) == own_table]
    return units, {**_account(entries, pictures, belonging, listing.not_read), **captions.account()}


def _said_by(captions: CaptionTables, settings: IngestSettings) -> Describe | None:
    """The captions of the tables that were found. A picture that none of them knows stays, with what lies beside it."""
    if not captions.files:
        return None

    def describe(path: str) -> Described:
        first, others = by_rule(captions.captions.get(path, []), settings.caption_rule)
        return Described(caption=first, others=others)

    return describe


def _picture_units(
    files: Sequence[FileEntry], beside: dict[str, list[FileEntry]], describe: Describe | None, unit_size: int
) -> Iterator[Unit]:
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


def check_tables(units: Sequence[Unit], settings: IngestSettings, store: Store) -> None:
    """Raise UsageError if one of a source's tables lacks a column that the settings name. Reads every footer."""

    def check(unit: Unit) -> None:
        file = unit.files[0]
        try:
            schema = store.call(tables.read_schema, file.uri)
        except pa.ArrowInvalid:  # reported where it is read
            return
        check_source_table(schema, settings, file.name)

    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(check, (unit for unit in units if unit.kind is UnitKind.TABLE and not unit.first)))
