"""CSV files with a header line, read row by row: UTF-8, from a disk or an object store."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from preprocessing.errors import retry
from preprocessing.settings import ExecutionSettings
from realcustom import storage

_FIELD_LIMIT = 2**24  # characters of one value; the csv module's own limit is smaller than some captions


def read_header(uri: str, execution: ExecutionSettings) -> list[str]:
    """The columns of a CSV. Raises ValueError if there are none, or two of one name."""

    def read_start() -> bytes:
        filesystem, path = storage.open_filesystem(uri)
        with filesystem.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read(2**20))

    start = retry(read_start, execution.attempts, execution.backoff)
    first = next(_reader(start.decode("utf-8-sig", "replace"), uri), [])
    if not any(name.strip() for name in first):
        raise ValueError(f"{uri} is not a CSV with a header line: its first line names no column")
    twice = next((name for name in first if first.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{uri}: two columns are named '{twice}'")
    return first


def read_rows(uri: str, execution: ExecutionSettings) -> Iterator[dict[str, str | None]]:
    """The rows after the header. A value that the row is too short for is None; one beyond the header is left out.

    Bytes that are not UTF-8 come as surrogates (`errors="surrogateescape"`), for the caller to judge.
    Raises ValueError where the text is no CSV.
    """
    header = read_header(uri, execution)
    data = retry(lambda: storage.read_bytes(uri), execution.attempts, execution.backoff)
    lines = _reader(data.decode("utf-8", "surrogateescape").removeprefix("\ufeff"), uri)
    next(lines)
    for line in lines:
        if line:
            yield {name: line[index] if index < len(line) else None for index, name in enumerate(header)}


def _reader(text: str, uri: str) -> Iterator[list[str]]:
    csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""))
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{uri} is not a readable CSV: {error} in line {reader.line_num}") from error


def readable(text: str | None) -> bool:
    """Whether a value was UTF-8 in the file."""
    return text is None or not any("\ud800" <= character <= "\udfff" for character in text)
