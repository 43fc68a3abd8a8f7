"""CSV read in pieces: the pieces' rows are the file's, whatever stands in its values, and no more of it is in memory."""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from realcustom import store
from realcustom.preprocessing.errors import DataError, DataFault
from realcustom.preprocessing.ingest import csv_table
from realcustom.preprocessing.ingest.csv_table import cut_rows, read_header, read_rows
from realcustom.retry import RetrySettings
from realcustom.store import ChunkedFile, Store

STORE = Store(RetrySettings(backoff=0.0))
WORDS = ["a", "", "caf\u00e9", 'say "hi"', "two\nlines", "a,b", "carriage\r\nreturn", "\U0001f415", " "]


def rows_of(data: bytes) -> list[dict[str, str | None] | None]:
    """By the csv module, the whole text at once; None for a row of too many values."""
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    header, *lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    return [
        dict(zip(header, [*line, *[None] * len(header)], strict=False)) if len(line) < 3 else None for line in lines
    ]


def plain(found: Iterable[dict[str, str | None] | DataError]) -> list[dict[str, str | None] | None]:
    return [row if isinstance(row, dict) else None for row in found]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_pieces_are_the_whole(end: str, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "_BUFFER", 7)
    rng = random.Random(0)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(["url", "caption"])
    for _ in range(50):
        writer.writerow([rng.choice(WORDS) for _ in range(rng.choice([2, 2, 1, 3]))])
        text.write(rng.choice(["", "", end]))  # a blank line is no row
    data = (start + text.getvalue()).encode() + b"x,\xff\xfe" + end.encode() + b"the last line does not end,y"
    path = tmp_path / "list.csv"
    path.write_bytes(data)
    whole = plain(read_rows(str(path), STORE))
    assert whole == rows_of(data) and len(whole) == 52 and read_header(str(path), STORE) == ["url", "caption"]
    for size in (1, 7, 52, 1000):
        pieces = cut_rows(str(path), STORE, size)
        assert [count for count, _ in pieces] == [min(size, 52 - first) for first in range(0, 52, size)]
        assert [row for _, part in pieces for row in plain(read_rows(str(path), STORE, part))] == whole
        assert pieces[-1][1][1] == len(data)


def test_a_table_without_rows_has_no_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption\n\n")
    assert cut_rows(str(tmp_path / "a.csv"), STORE, 10) == []
    (tmp_path / "b.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.csv is not a CSV with a header line"):
        read_header(str(tmp_path / "b.csv"), STORE)


def test_what_is_no_csv_is_said_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "_FIELD_LIMIT", 100)
    (tmp_path / "a.csv").write_text("url\nx\n" + '"' + "y" * 60 + "\n" + "y" * 60 + '"\n')
    with pytest.raises(ValueError, match=r"a\.csv is not a readable CSV: field larger than field limit .* in line 4"):
        cut_rows(str(tmp_path / "a.csv"), STORE, 10)


def test_names_and_lines_that_no_table_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"url,\xe4,\xf6\nx,one,two\n")
    with pytest.raises(ValueError, match=r"a\.csv: the name of a column is not UTF-8 \('\\udce4'\): save the table as"):
        read_header(str(path), STORE)
    monkeypatch.setattr(csv_table, "_FIELD_LIMIT", 1000)
    path.write_bytes(b"url\n" + b"x" * 5000)  # and no end of the line
    with pytest.raises(ValueError, match=r"a\.csv has a line of more than 1000 characters.*give the table as Parquet"):
        cut_rows(str(path), STORE, 10)


def test_a_piece_fetches_its_own_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("url\n" + "".join(f"http://x/{number:06}\n" for number in range(20_000)))
    pieces = cut_rows(str(path), STORE, 100)
    fetched: list[int] = []

    class Counting(ChunkedFile):
        def read(self, offset: int, count: int) -> bytes:
            before = self._data
            found = super().read(offset, count)
            if self._data is not before:
                fetched.append(len(self._data))
            return found

    monkeypatch.setattr(store, "ChunkedFile", Counting)
    assert len(list(read_rows(str(path), STORE, pieces[50][1]))) == 100
    assert fetched == [2**16, 100 * 16]  # the header's, and the rows'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('url,caption\nx,"a boot\ny,robot\n', "unexpected end of data in line 3; is a quote before it not closed"),
        ('url,caption\nx,"a boot\ny,"robot"\n', "expected after '\"' in line 3; is a quote before it not closed"),
    ],
)
def test_what_would_make_one_row_of_many_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_header(str(path), STORE)
        cut_rows(str(path), STORE, 10)


def test_a_row_of_too_many_values_is_an_error_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("url,caption\nx,a duck, very yellow\ny,b\n")
    fault, row = read_rows(str(path), STORE)
    assert (
        isinstance(fault, DataError) and fault.fault is DataFault.UNREADABLE_ROW and row == {"url": "y", "caption": "b"}
    )
    assert fault.message == "3 values for 2 columns: one that holds a comma must be in quotes"


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("a.csv", 'url;caption\nx;"a toy; red"\n', [{"url": "x", "caption": "a toy; red"}]),
        ("a.csv", '"url";"caption"\n"x";"a toy"\n', [{"url": "x", "caption": "a toy"}]),
        ("a.csv", 'image_name| caption\nx| "a" toy\n', [{"image_name": "x", "caption": '"a" toy'}]),
        ("a.csv", 'url, caption\nx, "a toy, red"\n', [{"url": "x", "caption": "a toy, red"}]),
        ("a.csv", "\n \nurl,caption\nx,a toy\n", [{"url": "x", "caption": "a toy"}]),
        ("a.csv", "http://h/a.jpg;a toy\n", [{"url": "http://h/a.jpg", "caption": "a toy"}]),
        ("a.csv", "http://h/a.jpg;s=1\n", [{"url": "http://h/a.jpg;s=1"}]),
        ("a.txt", "# of 2026\n\nurl\nhttp://h/a,b.jpg\n# http:\n", [{"url": "http://h/a,b.jpg"}]),
    ],
)
def test_tables_as_people_write_them(name: str, text: str, rows: list[dict[str, str]], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert list(read_rows(str(path), STORE)) == rows
    ((count, byte_range),) = cut_rows(str(path), STORE, 10)
    assert count == len(rows) and list(read_rows(str(path), STORE, byte_range)) == rows
