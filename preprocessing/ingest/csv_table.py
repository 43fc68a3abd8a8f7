"""CSV and TSV files, read row by row: UTF-8, from a disk or an object store, a line in memory at a time.

A table whose first line holds a URL has no header line. Between values stands a tab where the first line has one, else a
comma, or in a first line without a comma `;` or `|`. Tables with tabs or `|` know no line breaks in values, and of quotes
only those around a whole value. A .txt whose first line is a URL and nothing else, without a space, or `url`, has a URL a
line: commas are the URLs' own. Before the first line may stand blank ones, in a .txt comments (`#`) too.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from realcustom.errors import UsageError
from realcustom.preprocessing.errors import DamagedFile, DataError, DataFault
from realcustom.preprocessing.ingest.columns import URLS
from realcustom.preprocessing.ingest.compressed import Bytes, Unpacked, open_plain, plain_name
from realcustom.store import Store

LIST = ".txt"  # of URLs; a table if its first line holds one

_PLAIN = "\t|"  # marks between values that know no quoting
_NAMES = {"\t": "a tab", ",": "a comma"}
_FIELD_LIMIT = 2**24  # characters of one value; the csv module's own limit is smaller than some captions
_CHUNK = 2**23  # bytes that are fetched at a time
_HEADER = 2**16  # and for a header
_BUFFER = 2**16  # bytes that are decoded at a time


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """How a table is written."""

    columns: list[str]
    mark: str  # between values
    spaces: bool  # after it stands a space
    comments: bool  # lines that begin with # and hold no URL are none of the table
    header: bool  # the first line names the columns; else it is a row

    def records(self, lines: Iterator[str], uri: str) -> Iterator[list[str]]:
        """The rows of the table's lines; those of blank lines are empty."""
        if self.comments:
            lines = (line if "://" in line or not line.startswith("#") else "\n" for line in lines)
        return _records(lines, uri, self.mark, self.spaces)


def read_header(uri: str, store: Store, names: Sequence[str] = ()) -> list[str]:
    """The columns of a table. Raises UsageError if there are none, two of one name, or one that is not UTF-8.

    Args:
        names: the columns of a table without a header line. None are needed where its first line holds a URL and at most
            one other value, which then is the caption.
    """
    return _shape(uri, store, names).columns


def read_rows(
    uri: str, store: Store, byte_range: tuple[int, int] | None = None, names: Sequence[str] = ()
) -> Iterator[dict[str, str | None] | DataError]:
    """The rows after the header. Missing values at the end of a row are None; a row that is too long is an error.

    Bytes that are not UTF-8 come as surrogates (`errors="surrogateescape"`), for the caller to check.

    Args:
        byte_range: read only these bytes of the file (the first and the one after the last), as given by `cut_rows`.
        names: as `read_header` takes them.
    Raises:
        UsageError: the text is not a CSV.
    """
    shape = _shape(uri, store, names)
    header = shape.columns
    records = shape.records(Lines(uri, store, byte_range), uri)
    if byte_range is None and shape.header:
        _first(records)
    for record in records:
        if len(record) > len(header):
            name = _NAMES.get(shape.mark, shape.mark)
            why = f"none may hold {name}" if shape.mark in _PLAIN else f"one that holds {name} must be in quotes"
            yield DataError(DataFault.UNREADABLE_ROW, f"{len(record)} values for {len(header)} columns: {why}")
        elif record:
            yield {name: record[index] if index < len(record) else None for index, name in enumerate(header)}


def cut_rows(uri: str, store: Store, size: int, names: Sequence[str] = ()) -> list[tuple[int, tuple[int, int]]]:
    """The rows in pieces of `size`: each piece's number of rows, and its bytes in the file (the first and the one after the last).

    Raises UsageError as `read_rows`.
    """
    lines = Lines(uri, store)
    if lines.is_empty:
        return []
    shape = _shape(uri, store, names)
    records = shape.records(lines, uri)
    if shape.header:
        _first(records)
    return pieces_of(records, lines, size)


def pieces_of(records: Iterator[Any], lines: Lines, size: int) -> list[tuple[int, tuple[int, int]]]:
    """`cut_rows` for records that are made of `lines`; a record that is empty is none."""
    pieces: list[tuple[int, tuple[int, int]]] = []
    start, count = lines.position, 0
    for record in records:
        count += bool(record)
        if count == size:
            pieces.append((count, (start, lines.position)))
            start, count = lines.position, 0
    return [*pieces, (count, (start, lines.position))] if count else pieces


def _shape(uri: str, store: Store, names: Sequence[str]) -> _Shape:
    is_text = plain_name(uri).endswith(LIST)
    lines = (
        line
        for line in Lines(uri, store, chunk=_HEADER)
        if line.strip() and not (is_text and line.startswith("#") and "://" not in line)
    )
    line = next(lines, "")
    mark = _mark(line, names, is_text)
    first = next(_records(itertools.chain([line] if line else [], lines), uri, mark, spaces=False), [])
    spaces = any(value.startswith(" ") for value in first[1:])
    if spaces:
        first = next(_records(itertools.chain([line], lines), uri, mark, spaces))
    if not any(name.strip() for name in first):
        raise UsageError(f"{uri} is not a CSV with a header line: its first line names no column")
    if names and len(names) != len(first):
        raise UsageError(
            f"{uri}: ingest.columns names {len(names)} columns, and its first line has {len(first)} values"
        )
    urls = [is_url(value.strip()) for value in first]
    columns = [name.strip() for name in first]
    has_header = not names and not any(urls)
    if has_header:
        _check_header(columns, uri)
    else:
        columns = list(names) or _assumed(urls, uri)
    return _Shape(columns=columns, mark=mark, spaces=spaces, comments=is_text, header=has_header)


def _mark(line: str, names: Sequence[str], is_text: bool) -> str:
    """What stands between the values, by the first line."""
    one = len(line.split()) == 1 and (is_url(line.lstrip()) or line.strip().lower() in URLS)
    if "\t" in line or (is_text and not names and one):
        return "\t"
    other = max(";|", key=line.count)
    # a URL may hold either
    is_address = is_url(line.lstrip(' "')) and len(names) < 2 and len(line.split()) == 1
    return other if other in line and "," not in line and not is_address else ","


def _first(records: Iterator[list[str]]) -> None:
    """Pass over the header line and blank ones before it."""
    next((record for record in records if any(value.strip() for value in record)), None)


def is_url(value: str) -> bool:
    """Whether a value, or the line that begins with it, is the address of a picture."""
    return value.lower().startswith(("http://", "https://"))


def _assumed(urls: list[bool], uri: str) -> list[str]:
    """The columns of a table without a header line, of one URL and at most one other value."""
    if len(urls) > 2 or urls.count(True) != 1:
        raise UsageError(
            f"{uri} has no header line, for its first line holds a URL: name its {len(urls)} columns, as in "
            f"--set 'preprocess.ingest.columns=[url, caption]'"
        )
    return ["url" if is_url else "caption" for is_url in urls]


def _check_header(first: list[str], uri: str) -> None:
    odd = next((name for name in first if not readable(name)), None)
    if odd is not None:
        raise UsageError(f"{uri}: the name of a column is not UTF-8 ({odd!a}): save the table as UTF-8")
    twice = next((name for name in first if first.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{uri}: two columns are named '{twice}'")


class Lines:
    """A file's lines with their ends, of all its bytes or of some; a byte order mark at its start is left out."""

    def __init__(self, uri: str, store: Store, byte_range: tuple[int, int] | None = None, chunk: int = _CHUNK):
        if byte_range is not None:
            chunk = min(chunk, byte_range[1] - byte_range[0])
        file = open_plain(uri, store, chunk)
        if isinstance(file, Unpacked) and file.damage:
            raise DamagedFile(f"{uri} ends early, {file.damage}: its rows would be missing; get the file again")
        self.is_empty = file.size == 0
        raw = Bytes(file, *(byte_range or (0, file.size)))
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
            raise UsageError(
                f"{self._uri} has a line of more than {_FIELD_LIMIT} characters, and none is read whole: give the table as "
                f"Parquet, or each of very many captions a row of its own"
            )
        begins, self.position = self.position == 0, self.position + len(line.encode("utf-8", "surrogateescape"))
        return line.removeprefix("\ufeff") if begins else line


def _records(lines: Iterator[str], uri: str, mark: str, spaces: bool) -> Iterator[list[str]]:
    if mark in _PLAIN:
        for line in lines:
            plain = line.rstrip("\r\n")
            yield [_unquoted(value.lstrip(" ") if spaces else value) for value in plain.split(mark)] if plain else []
        return
    csv.field_size_limit(_FIELD_LIMIT)
    # strict: else an unclosed quote joins many rows into one
    reader = csv.reader(lines, delimiter=mark, strict=True, skipinitialspace=spaces)
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = "is a quote before it not closed, or one within a value not doubled?"
            raise UsageError(f"{uri} is not a readable CSV: {error} in line {reader.line_num}; {hint}") from error


def _unquoted(value: str) -> str:
    """A value between such marks without the quotes around it, where it is quoted as in a CSV."""
    inner = value[1:-1]
    quoted = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else value


def readable(text: str | None) -> bool:
    """Whether a value was UTF-8 in the file."""
    return text is None or not any("\ud800" <= character <= "\udfff" for character in text)
