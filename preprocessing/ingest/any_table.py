"""Tables that describe pictures, in text files or in Parquet, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from realcustom.errors import UsageError
from realcustom.parquet import ParquetFile
from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.ingest import text_table
from realcustom.preprocessing.ingest.compressed import plain_name
from realcustom.preprocessing.ingest.csv_table import readable
from realcustom.store import Store

PARQUET = ".parquet"


def columns_of(uri: str, store: Store, names: Sequence[str]) -> list[str]:
    """The columns. `names`: of a .csv or .tsv without a header line. Raises UsageError for what is no table."""
    if not plain_name(uri).endswith(PARQUET):
        return text_table.read_header(uri, store, names)
    return list(ParquetFile(uri, store).schema.names)


def rows_of(uri: str, store: Store, names: Sequence[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Some columns of the rows; what a row lacks is None. Raises UsageError that names a row which cannot be read."""
    for number, row in enumerate(_rows(uri, store, names, columns), start=1):
        if isinstance(row, DataError):
            raise UsageError(f"{uri}: row {number} has {row.message}")
        values = {name: row.get(name) for name in columns}
        if not all(readable(value) for value in values.values() if isinstance(value, str)):
            raise UsageError(
                f"{uri}: row {number} ('{ascii(values[columns[0]])[1:-1]}') is not UTF-8; save the table as UTF-8"
            )
        yield values


def _rows(uri: str, store: Store, names: Sequence[str], columns: Sequence[str]) -> Iterator[dict[str, Any] | DataError]:
    if not plain_name(uri).endswith(PARQUET):
        return text_table.read_rows(uri, store, names)
    return iter(ParquetFile(uri, store).read(list(dict.fromkeys(columns)), use_threads=False).to_pylist())
