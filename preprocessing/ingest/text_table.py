"""Tables in text files, compressed or not: CSV, TSV, JSON lines, and lists of one URL a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.ingest import csv_table, json_lines
from realcustom.preprocessing.ingest.compressed import plain_name
from realcustom.store import Store

JSON_LINES = (".jsonl", ".ndjson")
WITH_COLUMNS = (".csv", ".tsv", csv_table.LIST)  # those whose columns a header line names, or a setting
TABLES = (".csv", ".tsv", *JSON_LINES)


def is_text_table(name: str) -> bool:
    """Whether the name is that of a table in a text file."""
    return plain_name(name).endswith((*TABLES, csv_table.LIST))


def read_header(uri: str, store: Store, names: Sequence[str]) -> list[str]:
    """The columns. Raises UsageError as csv_table.read_header; `names`: of a table without a header line."""
    if plain_name(uri).endswith(JSON_LINES):
        return json_lines.read_header(uri, store)
    return csv_table.read_header(uri, store, names)


def read_rows(
    uri: str, store: Store, names: Sequence[str], byte_range: tuple[int, int] | None = None
) -> Iterator[dict[str, Any] | DataError]:
    """The rows, or those in some bytes. Raises UsageError as csv_table.read_rows."""
    if plain_name(uri).endswith(JSON_LINES):
        yield from json_lines.read_rows(uri, store, byte_range)
    else:
        yield from csv_table.read_rows(uri, store, byte_range, names)


def cut_rows(uri: str, store: Store, size: int, names: Sequence[str]) -> list[tuple[int, tuple[int, int]]]:
    """The rows in pieces, as csv_table.cut_rows."""
    if plain_name(uri).endswith(JSON_LINES):
        return json_lines.cut_rows(uri, store, size)
    return csv_table.cut_rows(uri, store, size, names)
