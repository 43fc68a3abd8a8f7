"""Signatures of an evaluation set's pictures, whose copies `select` drops from a corpus."""

from __future__ import annotations

import posixpath

import pyarrow as pa

from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.worker import StageJob
from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.hashes import BASE_SIDE, signature
from realcustom.preprocessing.ingest.folder import SIDECARS
from realcustom.preprocessing.ingest.sample import unsupported
from realcustom.preprocessing.pictures import EXTENSIONS, UNDECODED_EXTENSIONS, decode
from realcustom.preprocessing.select.steps import evaluation_uri


def prepare_evaluation(job: StageJob) -> bytes | None:
    """The signatures of the evaluation folder's pictures as a table's bytes; None without a folder, or if it exists.

    Raises UsageError for a picture that cannot be read: its copies could not be dropped from the corpus.
    """
    folder = job.settings.select.evaluation_folder
    if folder is None or job.store.exists(evaluation_uri(job.directory)):
        return None
    found = []
    for entry in job.store.list_files(folder):
        extension = posixpath.splitext(entry.name)[1].removeprefix(".").lower()
        if posixpath.basename(entry.name).startswith(".") or f".{extension}" in (*SIDECARS, ".csv"):
            continue
        if extension not in (*EXTENSIONS, *UNDECODED_EXTENSIONS):
            raise UsageError(
                f"select.evaluation_folder: {entry.uri} has no picture's extension, and if it is one its copies could "
                f"not be found; rename it or take it away"
            )
        try:
            if extension in UNDECODED_EXTENSIONS:
                raise unsupported(extension)
            picture = signature(decode(job.store.read(entry.uri), draft_side=BASE_SIDE))
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
