"""What a Parquet table holds of its pictures: their bytes, their URLs, or the names of files."""

from __future__ import annotations

import base64
import enum
import logging

import pyarrow as pa
import pyarrow.parquet as pq

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.preprocessing.ingest.columns import FILES, URLS, find_column
from realcustom.preprocessing.ingest.csv_table import is_url
from realcustom.preprocessing.ingest.parquet import holds_bytes, image_column
from realcustom.preprocessing.ingest.table_rows import is_text_type
from realcustom.preprocessing.pictures import looks_like_picture
from realcustom.preprocessing.settings import IngestSettings
from realcustom.storage import FileEntry
from realcustom.store import OF_ONE_FILE, Store

logger = logging.getLogger(__name__)


class Holds(enum.Enum):
    """What stands for a picture in a table."""

    BYTES = "encoded pictures"
    BASE64 = "pictures in base64"
    URLS = "URLs"
    NAMES = "names of files"
    NOTHING = "no pictures"


def what_it_holds(entry: FileEntry, schema: pa.Schema, settings: IngestSettings, store: Store) -> Holds:
    """By the types of its columns, and where these are text by the first value. Bytes win over URLs beside them."""
    image = image_column(schema, settings)
    url = find_column(schema.names, settings.url_column, URLS)
    if image is not None and holds_bytes(schema.field(image).type):
        return Holds.BYTES
    if image is not None and is_text_type(schema.field(image).type):
        found = _of_text(_first_text(entry, image, store))
        if found is Holds.BASE64 or url is None:
            logger.info("%s: the column '%s' is read as %s", entry.name, image, found.value)
            return found
    if url is not None:
        return Holds.URLS
    names = find_column(schema.names, FILES[0], FILES)
    return Holds.NAMES if names is not None and is_text_type(schema.field(names).type) else Holds.NOTHING


def refuse_names(entry: FileEntry) -> None:
    """Raise UsageError for a table of names of files that do not lie beside it."""
    raise UsageError(
        f"{entry.name} holds the names of files, and no pictures lie beside it: give the folder of these as --input, with "
        f"the table in it"
    )


def _first_text(entry: FileEntry, column: str, store: Store) -> str:
    def read(uri: str) -> str:
        filesystem, path = storage.open_filesystem(uri)
        with filesystem.open_input_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(16, columns=[column], use_threads=False):
                values = batch.column(0).drop_null().cast(pa.large_binary())
                if len(values):
                    return str(values[0].as_py().decode("utf-8", "replace"))
        return ""

    try:
        return store.call(read, entry.uri)
    except (pa.ArrowInvalid, *OF_ONE_FILE):  # reported where it is read
        return ""


def _of_text(text: str) -> Holds:
    if is_url(text):
        return Holds.URLS
    if text.startswith("data:"):
        return Holds.BASE64
    try:
        first = base64.b64decode(text[:64], validate=True)  # 48 bytes
    except ValueError:
        return Holds.NAMES
    return Holds.BASE64 if looks_like_picture(first) else Holds.NAMES
