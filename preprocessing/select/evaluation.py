"""Signatures of an evaluation set's pictures, whose copies `select` drops from a corpus."""

from __future__ import annotations

import pyarrow as pa

from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.worker import StageJob
from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.hashes import BASE_SIDE, signature
from realcustom.preprocessing.ingest.compressed import plain_name
from realcustom.preprocessing.ingest.listing import PICTURE_NAME, NotRead, extension_of, list_corpus, pictures_among
from realcustom.preprocessing.ingest.sample import unsupported
from realcustom.preprocessing.pictures import FIRST_BYTES, decode, is_decoded, looks_like_picture
from realcustom.preprocessing.select.steps import evaluation_uri
from realcustom.storage import FileEntry
from realcustom.store import Store

_PACKED = (".tar", ".zip", ".parquet", ".arrow", ".npz", ".npy")  # of files in which pictures may be


def prepare_evaluation(job: StageJob) -> bytes | None:
    """The signatures of the evaluation folder's pictures as a table's bytes; None without a folder, or if it exists.

    Raises UsageError for a picture that cannot be read: its copies could not be dropped from the corpus.
    """
    folder = job.settings.select.evaluation_folder
    if folder is None or job.store.exists(evaluation_uri(job.directory)):
        return None
    found = []
    for entry in _pictures(folder, job.store):
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


def _pictures(folder: str, store: Store) -> list[FileEntry]:
    """The pictures below a folder as `ingest` finds them: by extensions or first bytes, hidden and system files left out.

    Raises UsageError for what may hold pictures and is not looked into.
    """
    pictures, others = list_corpus(folder, store, NotRead()).where(PICTURE_NAME)
    packed = next((entry for entry in others if plain_name(entry.name).endswith(_PACKED)), None)
    if packed is not None:
        raise UsageError(
            f"select.evaluation_folder: {packed.uri} may hold pictures, and their copies could not be found: unpack it, or "
            f"take it away"
        )
    refused = set[str]()
    more = pictures_among(others, store, refused)
    if refused:
        raise UsageError(
            f"select.evaluation_folder: {min(refused)} may not be read, and if it is a picture its copies could not be found"
        )
    return list(pictures.with_more(more))
