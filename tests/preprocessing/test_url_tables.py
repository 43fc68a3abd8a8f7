"""Tables of URLs in the forms in which they are published: LAION, CC3M, DataComp, lists; each with the plain command."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realcustom.preprocessing.catalogue import INGEST
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import DataError, DataFault
from realcustom.preprocessing.ingest import row_groups
from realcustom.preprocessing.ingest.url_units import url_units
from realcustom.preprocessing.ingest.urls import read_urls
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.settings import ExecutionSettings, IngestSettings, PreprocessSettings
from realcustom.storage import list_files
from realcustom.store import Store
from tests.support.picture_server import served
from tests.support.stages import table_of

TOLERANT = ExecutionSettings(max_error_fraction=1.0, attempts=1, backoff=0.0)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as server:
        yield server.url


def fetch(source: Path, output: Path, **settings: object) -> StageResult:
    ingest = IngestSettings(private_addresses=True, **settings)  # type: ignore[arg-type]
    given = PreprocessSettings(ingest=ingest, execution=TOLERANT)
    return run_stage(INGEST, str(source), str(output), given, executor=InProcess())


def captions(result: StageResult) -> list[str | None]:
    found: list[str | None] = table_of(result)["alt_text"].to_pylist()
    return found


@pytest.mark.parametrize("names", [("URL", "TEXT", "WIDTH"), ("Url", "Top_Caption", "x"), ("image", "caption", "n")])
def test_parquet_of_laion_and_others(names: tuple[str, str, str], url: str, tmp_path: Path) -> None:
    table = pa.table(dict(zip(names, ([f"{url}/picture/1"], ["a dog"], [320]), strict=True)))
    (tmp_path / "src").mkdir()
    pq.write_table(table, tmp_path / "src/part-00000.snappy.parquet")
    assert captions(fetch(tmp_path / "src", tmp_path / "out")) == ["a dog"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("Train.tsv", 'a "red" bus\t{url}/picture/1\n"a ""big"" singer"\t{url}/picture/2\n', ['a "red" bus', 'a "big" singer']),
        ("no_header.csv", "a red bus, old\t{url}/picture/1\n", ["a red bus, old"]),
        ("no_header.CSV", '{url}/picture/1,"a bus, old"\n', ["a bus, old"]),
        ("list.csv.gz", "URL,TEXT\n" + "{url}/picture/1,a bus\n" * 3, ["a bus"] * 3),
        ("list.jsonl", '{{"url": "{url}/picture/1", "caption": ["a bus", "b"]}}\nno json\n', ["a bus"]),
        ("list.txt", "{url}/picture/1\n\n{url}/picture/2\n", [None, None]),
        ("list.txt", "{url}/picture/1?w_600,h_400\n{url}/picture/2?a,b,c\n", [None, None]),
        ("list.txt", "{url}/picture/1, a bus\n", ["a bus"]),
        ("list.txt", "\n# of 2026\nurl\n{url}/picture/1?a,b\n\n{url}/picture/2\n", [None, None]),
        ("list.csv", "{url}/picture/1;a bus\n", ["a bus"]),
        ("list.csv", "url | caption\n{url}/picture/1 | a bus\n", ["a bus"]),
    ],
)  # fmt: skip
def test_text_tables(name: str, text: str, expected: list[str | None], url: str, tmp_path: Path) -> None:
    data = text.format(url=url).encode()
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    result = fetch(tmp_path / "src", tmp_path / "out", unit_size=2)
    assert captions(result) == expected
    assert result.report["not_read"] == {"first": []} and result.report["files"] == {"read": 1, "beside": 0}
    assert result.report["quarantined"] == ({"unreadable_row": 1} if "no json" in text else {})


def test_columns_without_a_header_line_are_a_setting(url: str, tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text(f"7\ta bus\t{url}/picture/1\n8\ta car\t{url}/picture/2\n")
    with pytest.raises(
        ValueError, match=r"no header line.*name its 3 columns, as in --set 'preprocess\.ingest\.columns="
    ):
        fetch(tmp_path / "list.tsv", tmp_path / "out")
    assert captions(fetch(tmp_path / "list.tsv", tmp_path / "out", columns=("id", "caption", "url"))) == [
        "a bus",
        "a car",
    ]
    with pytest.raises(ValueError, match=r"ingest\.columns names 2 columns, and its first line has 3 values"):
        fetch(tmp_path / "list.tsv", tmp_path / "out", columns=("caption", "url"))


def test_a_row_group_of_many_units_is_decoded_once_in_whatever_order_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"url": f"no url {number}", "caption": f"toy {number}"} for number in range(300)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=200)
    decoded: list[int] = []

    class Counting(pq.ParquetFile):  # type: ignore[misc]
        def iter_batches(self, *given: Any, row_groups: list[int], **options: Any) -> Iterator[pa.RecordBatch]:
            decoded.extend(row_groups)
            yield from super().iter_batches(*given, row_groups=row_groups, **options)

    monkeypatch.setattr(pq, "ParquetFile", Counting)
    settings = IngestSettings(unit_size=30)
    units = url_units(list_files(tmp_path), settings, Store())
    order = [7, 2, 9, 0, 6, 1, 8, 3, 5, 4]  # of row 180 to 209, over both groups, first of all
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(order, pool.map(lambda number: _keys(units[number], settings), order), strict=True))
    assert [key for number in range(10) for key in found[number]] == [f"t.parquet#{number}" for number in range(300)]
    assert sorted(decoded) == [0, 1]


def test_of_a_torn_row_group_the_rows_before_the_tear_are_fetched(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups, "_BATCH", 2)
    urls = [f"{url}/picture/{number % 5}?{'x' * 3000}{number}" for number in range(16)]
    path = tmp_path / "src" / "t.parquet"
    path.parent.mkdir()
    options = {"use_dictionary": False, "compression": "none", "data_page_size": 3000, "write_batch_size": 2}
    pq.write_table(pa.table({"url": urls}), path, **options)
    data = bytearray(path.read_bytes())
    place = data.index(b"x" * 3000 + b"12") - 300  # in the page of rows 12 and 13
    start = data.rindex(b"http", 0, place) - 4
    data[start - 12 : start] = b"\xff" * 12  # in its header
    path.write_bytes(bytes(data))
    result = fetch(tmp_path / "src", tmp_path / "out", unit_size=4, caption_column=None)
    assert result.report["in"] == 16 and 0 < result.report["quarantined"]["torn_table"] < 16
    assert result.report["kept"] == 16 - result.report["quarantined"]["torn_table"]


@pytest.mark.parametrize("name", ["t.csv", "t.txt", "t.parquet"])
def test_a_table_that_can_be_read_again_is_not_called_damaged(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    pq.write_table(pa.table({"url": ["http://a/1"]}), path)
    data = path.read_bytes() if name.endswith(".parquet") else b"url,caption\nhttp://a/1,x\n"
    path.write_bytes(data)
    listed = list_files(tmp_path)
    path.unlink()
    (unit,) = url_units(listed, IngestSettings(), Store())
    path.write_bytes(data)
    ((key, why),) = read_urls(unit, IngestSettings(), Store())
    assert key == name and isinstance(why, DataError) and why.fault is DataFault.UNREADABLE_FILE
    assert "run again" in why.message
    path.write_bytes(data[:-8])
    ((_, why),) = read_urls(unit, IngestSettings(), Store())
    torn = DataFault.TORN_TABLE if name.endswith(".parquet") else DataFault.UNREADABLE_FILE
    assert isinstance(why, DataError) and why.fault is torn


def _keys(unit: Unit, settings: IngestSettings) -> list[str]:
    entries = list(read_urls(unit, settings, Store()))
    assert all(isinstance(entry, DataError) and entry.fault is DataFault.INVALID_URL for _, entry in entries)
    return [key for key, _ in entries]
