"""A folder of pictures as a source, their captions beside them (.txt, .caption, .json) or given by a table."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from realcustom.preprocessing.engine.unit import InputFile, Unit
from realcustom.preprocessing.errors import DataError, DataFault, RowDropped, RowExcluded
from realcustom.preprocessing.ingest.columns import by_rule
from realcustom.preprocessing.ingest.listing import is_addressable
from realcustom.preprocessing.ingest.sample import (
    Entry,
    Sample,
    beside,
    file_faults,
    is_text,
    too_large,
    unreadable_name,
    unsupported,
)
from realcustom.preprocessing.ingest.sidecars import JSON
from realcustom.preprocessing.pictures import FIRST_BYTES, UNDECODED_EXTENSIONS, is_decoded, looks_like_picture
from realcustom.preprocessing.settings import IngestSettings
from realcustom.store import Store

UNLISTED = "not_in_metadata"


def read_pictures(unit: Unit, settings: IngestSettings, store: Store) -> Iterator[Entry]:
    """The unit's pictures, each with the texts beside it. A caption from a table wins over one from a sidecar."""
    sidecars: dict[str, list[InputFile]] = {}
    for file in unit.files:
        if file.beside:
            sidecars.setdefault(file.beside, []).append(file)
    for file in unit.files:
        if file.beside:
            continue
        if file.unlisted:
            yield file.name, RowDropped(UNLISTED, file.unlisted)
            continue
        try:
            yield file.name, _sample(file, sidecars.get(file.name, []), settings, store)
        except RowExcluded as why:
            yield file.name, why


def _sample(file: InputFile, sidecars: list[InputFile], settings: IngestSettings, store: Store) -> Sample:
    if not is_text(file.name):  # Arrow could not open it
        raise DataError(DataFault.UNREADABLE_TEXT, f"the file's name, {file.name!a}, is not UTF-8; rename it")
    if not is_addressable(file.name):
        raise unreadable_name()
    if file.size > settings.max_bytes:
        raise too_large(file.size, settings)
    texts = {_kind(sidecar): sidecar for sidecar in reversed(sidecars)}  # the first of a kind wins
    json_ = texts.pop(JSON, None)
    txt = next((texts[kind] for kind in settings.caption_extensions if kind in texts), None)
    captions, view_group, keys = beside(
        _read(txt, store) if txt is not None else None, _read(json_, store) if json_ is not None else None, settings
    )
    if file.caption is not None:
        captions = [file.caption, *file.captions]
    data = _read(file, store)
    extension = posixpath.splitext(file.name)[1].removeprefix(".").lower()
    if not is_decoded(data[:FIRST_BYTES]) and (
        extension in UNDECODED_EXTENSIONS or looks_like_picture(data[:FIRST_BYTES])
    ):
        raise unsupported(extension)
    alt_text, others = by_rule(captions, settings.caption_rule)
    return Sample(data=data, alt_text=alt_text, captions=others, view_group=view_group, keys=keys)


def _kind(sidecar: InputFile) -> str:
    return posixpath.splitext(sidecar.name)[1].removeprefix(".").lower()


def _read(file: InputFile, store: Store) -> bytes:
    """A file's bytes. Raises DataError where this one cannot be read, though its storage can."""
    with file_faults(file.name):
        return store.read(file.uri)
