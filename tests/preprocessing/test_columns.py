"""What a source's table holds besides: carried along to the end of a picture's way, and out again."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realcustom.preprocessing.catalogue import CAPTION, EXPORT, INGEST, SCORE, SELECT
from realcustom.preprocessing.ingest.other_columns import to_json
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import (
    CaptionSettings,
    DownloadSettings,
    ExecutionSettings,
    PreprocessSettings,
    SelectSettings,
)
from tests.support.corpora import members_of, picture, png
from tests.support.picture_server import served
from tests.support.stages import excluded_of, ingest, table_of


def test_columns_reach_the_last_table_of_pictures_and_the_exported_shards(tmp_path: Path) -> None:
    settings = PreprocessSettings(
        select=SelectSettings(min_side=16), caption=CaptionSettings(nouns=("toy",)), execution=ExecutionSettings()
    )
    (tmp_path / "src").mkdir()
    source = pa.table(
        {
            "image": [png(picture(seed)) for seed in range(3)],
            "caption": ["a toy"] * 3,
            "license": pa.array(["by", None, "by-sa"]).dictionary_encode(),
            "uid": [7, 8, 9],  # a name that a column of ours has too
            "tags": [["a", "b"], [], None],
        }
    )
    pq.write_table(source, tmp_path / "src/t.parquet")
    directory = str(tmp_path / "src")
    for stage in (INGEST, SCORE, SELECT, CAPTION, EXPORT):
        result = run_stage(stage, directory, str(tmp_path / "out"), settings, executor=InProcess())
        if stage is not EXPORT:
            directory = result.directory
    expected = [
        {"license": "by", "uid": 7, "tags": ["a", "b"]},
        {"license": None, "uid": 8, "tags": []},
        {"license": "by-sa", "uid": 9, "tags": None},
    ]
    table = pq.read_table(Path(directory) / "t.parquet")
    assert [json.loads(text) for text in table["columns"].to_pylist()] == expected
    facts = [data for name, data in members_of((Path(result.directory) / "t.tar").read_bytes()) if ".json" in name]
    assert sorted((json.loads(data)["columns"] for data in facts), key=lambda row: row["uid"]) == expected


def test_a_url_and_what_stands_beside_it_are_kept(tmp_path: Path) -> None:
    with served() as server:
        url = f"{server.url}/picture/1"
        (tmp_path / "list.csv").write_bytes(f"url,caption,note\n{url},a toy,".encode() + b"caf\xe9\n")
        pq.write_table(pa.table({"url": [url], "caption": ["a toy"], "n": [1.5]}), tmp_path / "list.parquet")
        given = {"private_addresses": True, "download": DownloadSettings(timeout=20.0)}
        found = {kind: ingest(tmp_path / f"list.{kind}", tmp_path / kind, **given) for kind in ("csv", "parquet")}
    rows = {kind: json.loads(table_of(result)["columns"][0].as_py()) for kind, result in found.items()}
    assert rows == {"csv": {"url": url, "note": "caf\ufffd"}, "parquet": {"url": url, "n": 1.5}}


def test_only_the_columns_to_keep_are_read(tmp_path: Path) -> None:
    with served() as server:
        url = [f"{server.url}/picture/{index}" for index in range(5)]
        sources = {"image": [png(picture(seed)) for seed in range(5)], "url": url}
        for name, values in sources.items():
            columns = {name: values, "caption": ["a"] * 5, "n": list(range(5)), "embedding": [[0.5] * 8] * 5}
            table = tmp_path / f"{name}.parquet"
            pq.write_table(pa.table(columns), table, row_group_size=3)
            given = {"private_addresses": True, "unit_size": 2}
            for keep, found in ((("n",), [{"n": n} for n in range(5)]), ((), [None] * 5)):
                result = ingest(table, tmp_path / "out", keep_columns=keep, **given)
                texts = table_of(result)["columns"].to_pylist()
                assert [text and json.loads(text) for text in texts] == found
            with pytest.raises(ValueError, match=rf"no column 'm' but {name}, caption.*ingest\.keep_columns"):
                ingest(table, tmp_path / "out", keep_columns=("m",), **given)


def test_without_other_columns_there_is_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(picture(0))], "caption": ["a"]}), tmp_path / "t.parquet")
    assert table_of(ingest(tmp_path, tmp_path / "out"))["columns"].to_pylist() == [None]


def test_a_broken_text_inside_a_list_is_a_fault_of_its_row(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"caf\xe9", b"fine"], pa.binary())
    texts = pa.StringArray.from_buffers(3, *texts.buffers()[1:], texts.buffers()[0])
    tags = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), texts)
    images = [png(picture(seed)) for seed in range(3)]
    pq.write_table(pa.table({"image": images, "caption": ["a"] * 3, "tags": tags}), tmp_path / "t.parquet")
    result = ingest(tmp_path, tmp_path / "out")
    assert table_of(result)["key"].to_pylist() == ["t.parquet#0", "t.parquet#2"]
    assert excluded_of(result)["t.parquet#1"]["reason"] == "unreadable_text"


def test_a_value_that_python_has_no_type_for_stops_nobody(tmp_path: Path) -> None:
    odd = {
        "far": pa.array([0, 2**62], pa.timestamp("us")),
        "zone": pa.array([0, 1], pa.timestamp("ms", "Nowhere/Land")),
        "day": pa.array([0, 2**30], pa.int32()).view(pa.date32()),
    }
    with served() as server:
        url = f"{server.url}/picture/1"
        sources = {"image": [png(picture(seed)) for seed in range(2)], "url": [url, url]}
        for name, values in sources.items():
            pq.write_table(pa.table({name: values, "caption": ["a"] * 2, **odd}), tmp_path / f"{name}.parquet")
            found = ingest(tmp_path / f"{name}.parquet", tmp_path / "out", private_addresses=True)
            first, second = map(json.loads, table_of(found)["columns"].to_pylist())
            assert (first["far"], first["zone"]) == ("1970-01-01T00:00:00", "1970-01-01 00:00:00.000")
            assert str(2**62) in second["far"] and second["zone"] == "1970-01-01 00:00:00.001" and second["day"]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (b"\xff\x00", '"/wA="'),
        (float("nan"), "null"),
        (2**60 + 1, "1152921504606846977"),
        (True, "true"),
        (datetime.datetime(2026, 2, 3, 4, 5, tzinfo=datetime.UTC), '"2026-02-03T04:05:00+00:00"'),
        (decimal.Decimal("1.10"), '"1.10"'),
        ([("a", 1)], '[["a", 1]]'),
        ({"x": {"y": b""}}, '{"x": {"y": ""}}'),
        ("caf\udce9", '"caf\ufffd"'),
    ],
)
def test_any_value_becomes_json(value: object, written: str) -> None:
    assert to_json({"name": value}) == f'{{"name": {written}}}'
    assert to_json({}) is None
