"""JSON lines as a table: one object a line, read as csv_table.py reads its lines."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from realcustom.errors import UsageError
from realcustom.preprocessing.errors import DataError, DataFault
from realcustom.preprocessing.ingest.csv_table import Lines, pieces_of
from realcustom.store import Store

_FIRST = 1000  # lines that are looked at for the columns


def read_header(uri: str, store: Store) -> list[str]:
    """The keys of the first objects, which need not have all of them. Raises UsageError if no line is one."""
    first = [row for row in itertools.islice(read_rows(uri, store), _FIRST) if isinstance(row, dict)]
    if not first:
        raise UsageError(f"{uri} is not a table of JSON lines: none of its first {_FIRST} lines is a JSON object")
    return list(dict.fromkeys(key for row in first for key in row))


def read_rows(
    uri: str, store: Store, byte_range: tuple[int, int] | None = None
) -> Iterator[dict[str, Any] | DataError]:
    """The objects; a line that is none is an error. Bytes that are not UTF-8 come as surrogates."""
    for line in Lines(uri, store, byte_range):
        if line.strip():
            yield _object(line)


def cut_rows(uri: str, store: Store, size: int) -> list[tuple[int, tuple[int, int]]]:
    """As csv_table.cut_rows."""
    lines = Lines(uri, store)
    return pieces_of((line.strip() for line in lines), lines, size)


def _object(line: str) -> dict[str, Any] | DataError:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return DataError(DataFault.UNREADABLE_ROW, f"the line is not JSON: {error}")
    return found if isinstance(found, dict) else DataError(DataFault.UNREADABLE_ROW, "the line is no JSON object")
