"""A folder of pictures as a source, their captions beside them (.txt, .json) or given by a table."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from realcustom.preprocessing.engine.unit import InputFile, Unit
from realcustom.preprocessing.errors import DataError, DataFault, RowDropped, RowExcluded
from realcustom.preprocessing.ingest.sample import (
    Entry,
    Sample,
    beside,
    is_text,
    too_large,
    unsupported,
)
from realcustom.preprocessing.pictures import UNDECODED_EXTENSIONS
from realcustom.preprocessing.settings import IngestSettings
from realcustom.store import Store

SIDECARS = (".txt", ".json")
UNLISTED = "not_in_metadata"


def sidecar_name(name: str) -> str:
    """The name that a file beside a picture is looked up by, its extension in lower case; empty for other files."""
    stem, extension = posixpath.splitext(name)
    return stem + extension.lower() if extension.lower() in SIDECARS else ""


def read_pictures(unit: Unit, settings: IngestSettings, store: Store) -> Iterator[Entry]:
    """The unit's pictures, each with the texts beside it. A caption from a table wins over one from a sidecar."""
    sidecars = {sidecar_name(file.name): file for file in unit.files if sidecar_name(file.name)}
    for file in unit.files:
        if sidecar_name(file.name):
            continue
        if file.unlisted:
            yield file.name, RowDropped(UNLISTED, file.unlisted)
            continue
        try:
            yield file.name, _sample(file, sidecars, settings, store)
        except RowExcluded as why:
            yield file.name, why


def _sample(file: InputFile, sidecars: dict[str, InputFile], settings: IngestSettings, store: Store) -> Sample:
    if not is_text(file.name):  # Arrow could not open it
        raise DataError(DataFault.UNREADABLE_TEXT, f"the file's name, {file.name!a}, is not UTF-8; rename it")
    stem, extension = posixpath.splitext(file.name)
    extension = extension.removeprefix(".").lower()
    if extension in UNDECODED_EXTENSIONS:
        raise unsupported(extension)
    if file.size > settings.max_bytes:
        raise too_large(file.size, settings)
    files = (sidecars.get(f"{stem}{kind}") for kind in SIDECARS)
    txt, json_ = (store.read(sidecar.uri) if sidecar is not None else None for sidecar in files)
    alt_text, view_group = beside(txt, json_, settings)
    if file.caption is not None:
        alt_text = file.caption
    return Sample(data=store.read(file.uri), alt_text=alt_text, view_group=view_group)
