"""CSV files with a header line, read row by row: UTF-8, from a disk or an object store, a line in memory at a time."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from realcustom.errors import UsageError
from realcustom.preprocessing.errors import DataError, DataFault
from realcustom.store import ChunkedFile, Store

_FIELD_LIMIT = 2**24  # characters of one value; the csv module's own limit is smaller than some captions
_CHUNK = 2**23  # bytes that are fetched at a time
_HEADER = 2**16  # and for a header
_BUFFER = 2**16  # bytes that are decoded at a time


def read_header(uri: str, store: Store) -> list[str]:
    """The columns of a CSV. Raises UsageError if there are none, two of one name, or one that is not UTF-8."""
    first = next(_records(_Lines(uri, store, chunk=_HEADER), uri), [])
    if not any(name.strip() for name in first):
        raise UsageError(f"{uri} is not a CSV with a header line: its first line names no column")
    odd = next((name for name in first if not readable(name)), None)
    if odd is not None:
        raise UsageError(f"{uri}: the name of a column is not UTF-8 ({odd!a}): save the table as UTF-8")
    other = next((mark for mark in (";", "\t", "|") if len(first) == 1 and mark in first[0]), None)
    if other is not None:
        raise UsageError(f"{uri}: its only column is {first[0]!r}: between values stands a comma, not {other!r}")
    twice = next((name for name in first if first.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{uri}: two columns are named '{twice}'")
    return first


def read_rows(
    uri: str, store: Store, byte_range: tuple[int, int] | None = None
) -> Iterator[dict[str, str | None] | DataError]:
    """The rows after the header. Missing values at the end of a row are None; a row that is too long is an error.

    Bytes that are not UTF-8 come as surrogates (`errors="surrogateescape"`), for the caller to check.

    Args:
        byte_range: read only these bytes of the file (the first and the one after the last), as given by `cut_rows`.
    Raises:
        UsageError: the text is not a CSV.
    """
    header = read_header(uri, store)
    records = _records(_Lines(uri, store, byte_range), uri)
    if byte_range is None:
        next(records)
    for record in records:
        if len(record) > len(header):
            message = f"{len(record)} values for {len(header)} columns: one that holds a comma must be in quotes"
            yield DataError(DataFault.UNREADABLE_ROW, message)
        elif record:
            yield {name: record[index] if index < len(record) else None for index, name in enumerate(header)}


def cut_rows(uri: str, store: Store, size: int) -> list[tuple[int, tuple[int, int]]]:
    """Cut the rows into pieces of `size`: yields each piece's number of rows and its bytes in the file.

    Raises UsageError as `read_rows`.
    """
    lines = _Lines(uri, store)
    records = _records(lines, uri)
    next(records, None)
    pieces: list[tuple[int, tuple[int, int]]] = []
    start, count = lines.position, 0
    for record in records:
        count += bool(record)
        if count == size:
            pieces.append((count, (start, lines.position)))
            start, count = lines.position, 0
    return [*pieces, (count, (start, lines.position))] if count else pieces


class _Lines:
    """A file's lines with their ends, of all its bytes or of some; a byte order mark at its start is left out."""

    def __init__(self, uri: str, store: Store, byte_range: tuple[int, int] | None = None, chunk: int = _CHUNK):
        if byte_range is not None:
            chunk = min(chunk, byte_range[1] - byte_range[0])
        file = store.open(uri, chunk)
        raw = _Bytes(file, *(byte_range or (0, file.size)))
        buffered = io.BufferedReader(raw, _BUFFER)
        self._uri = uri
        self._text = io.TextIOWrapper(buffered, "utf-8", "surrogateescape", newline="")
        self.position = raw.position  # byte after the last line that was returned

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(_FIELD_LIMIT)
        if not line:
            raise StopIteration
        if len(line) == _FIELD_LIMIT:
            raise UsageError(f"{self._uri} is not a readable CSV: a line of more than {_FIELD_LIMIT} characters")
        begins, self.position = self.position == 0, self.position + len(line.encode("utf-8", "surrogateescape"))
        return line.removeprefix("\ufeff") if begins else line


class _Bytes(io.RawIOBase):
    """Some of a file's bytes as Python's stream of them."""

    def __init__(self, file: ChunkedFile, start: int, end: int):
        self._file = file
        self.position, self._end = start, end

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """As io.RawIOBase has it."""
        data = self._file.read(self.position, min(len(buffer), self._end - self.position))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def _records(lines: Iterator[str], uri: str) -> Iterator[list[str]]:
    csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader(lines, strict=True)  # else an unclosed quote joins many rows into one
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = "is a quote before it not closed, or one within a value not doubled?"
            raise UsageError(f"{uri} is not a readable CSV: {error} in line {reader.line_num}; {hint}") from error


def readable(text: str | None) -> bool:
    """Whether a value was UTF-8 in the file."""
    return text is None or not any("\ud800" <= character <= "\udfff" for character in text)
