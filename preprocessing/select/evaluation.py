"""Signatures of an evaluation set's pictures, whose copies `select` drops from a corpus."""

from __future__ import annotations

import codecs
import re

import pyarrow as pa

from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.worker import StageJob
from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.hashes import BASE_SIDE, signature
from realcustom.preprocessing.ingest.listing import (
    DANGLING,
    PICTURE_NAME,
    SPECIAL,
    NotRead,
    extension_of,
    is_addressable,
    list_corpus,
    pictures_among,
)
from realcustom.preprocessing.ingest.sample import unsupported
from realcustom.preprocessing.ingest.sidecars import sidecar_name
from realcustom.preprocessing.pictures import FIRST_BYTES, decode, is_decoded, looks_like_picture
from realcustom.preprocessing.select.steps import evaluation_uri
from realcustom.preprocessing.settings import IngestSettings
from realcustom.storage import FileEntry
from realcustom.store import OF_ONE_FILE, Store

_LOOKED = 2**16  # bytes of a file that is no picture in which a text is recognised
_BASE64 = re.compile(rb"[A-Za-z0-9+/\\]{1000}")  # of a picture in a text; slashes in JSON may be escaped


def prepare_evaluation(job: StageJob) -> bytes | None:
    """The signatures of the evaluation folder's pictures as a table's bytes; None without a folder, or if it exists.

    Raises UsageError for a picture that cannot be read: its copies could not be dropped from the corpus.
    """
    folder = job.settings.select.evaluation_folder
    if folder is None or job.store.exists(evaluation_uri(job.directory)):
        return None
    found = []
    for entry in _pictures(folder, job.settings.ingest, job.store):
        try:
            data = job.store.read(entry.uri)
            if not is_decoded(data[:FIRST_BYTES]) and looks_like_picture(data[:FIRST_BYTES]):
                raise unsupported(extension_of(entry.name))
            picture = signature(decode(data, draft_side=BASE_SIDE))
        except DataError as error:
            raise UsageError(
                f"select.evaluation_folder: {entry.uri} cannot be read ({error.fault.value}: {error.message}), and so "
                f"its copies could not be found; repair it or take it away"
            ) from error
        found.append({"name": entry.name, **vars(picture)})
    if not found:
        raise UsageError(f"select.evaluation_folder: no picture in {folder}")
    schema = pa.schema([pa.field("name", pa.string(), nullable=False), *tables.SIGNATURE_FIELDS])
    return tables.to_parquet(pa.Table.from_pylist(found, schema=schema))


class _Links(NotRead):
    """What is left out: refused where it may be a picture."""

    def add(self, kind: str, name: str) -> None:
        if kind in (DANGLING, SPECIAL):
            raise UsageError(
                f"select.evaluation_folder: {name} ({kind}) may stand for a picture, and its copies could not be found: "
                f"repair it or take it away"
            )
        super().add(kind, name)


def _pictures(folder: str, settings: IngestSettings, store: Store) -> list[FileEntry]:
    """The pictures below a folder as `ingest` finds them: by extensions or first bytes, hidden and system files left out.

    Raises UsageError for what may hold pictures and is not looked into.
    """
    pictures, others = list_corpus(folder, store, _Links()).where(PICTURE_NAME)
    rest = [entry for entry in others if not sidecar_name(entry.name, settings)]
    refused = set[str]()
    more = pictures_among(rest, store, refused)
    known = {entry.name for entry in more} | refused
    for entry in rest:
        if entry.name not in known and _may_hold_pictures(entry, store, refused):
            raise UsageError(
                f"select.evaluation_folder: {entry.uri} may hold pictures, and their copies could not be found: unpack it, or "
                f"take it away"
            )
    if refused:
        raise UsageError(
            f"select.evaluation_folder: {min(refused)} may not be read, and if it is a picture its copies could not be found"
        )
    return list(pictures.with_more(more))


def _may_hold_pictures(entry: FileEntry, store: Store, refused: set[str]) -> bool:
    """Whether a file that is no picture is no text either, or one with base64. Of a .csv any encoding is a text."""
    if not entry.size:
        return False
    if not is_addressable(entry.name):
        return True
    try:
        first = store.open(entry.uri, _LOOKED).read(0, _LOOKED)
    except OF_ONE_FILE:
        refused.add(entry.name)
        return False
    is_text = extension_of(entry.name) in ("csv", "tsv") or _is_utf8(first)
    return not is_text or _BASE64.search(first) is not None


def _is_utf8(first: bytes) -> bool:
    """Whether these may be the first bytes of a text."""
    try:
        return "\0" not in codecs.getincrementaldecoder("utf-8")().decode(first)
    except UnicodeDecodeError:
        return False
