"""Captions of a folder's pictures: beside them, from a CSV, from a template; and what is refused before work starts."""

from __future__ import annotations

import errno
import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realcustom.preprocessing.ingest.captions import fill, parse_join, template_fields
from realcustom.preprocessing.run import StageResult
from realcustom.store import ChunkedFile, StorageRefused, refusals
from tests.support.corpora import jpeg, picture, sample, tar_bytes
from tests.support.stages import excluded_of, ingest, table_of

# beside the repository, where there is one
DREAMBENCH = Path(__file__).parents[3] / "shared" / "data" / "dreambench"


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """Two folders of pictures that the table knows, one that it does not."""
    source = tmp_path / "toys"
    for number, name in enumerate(["dog2/a.jpg", "dog2/b.jpg", "vase/a.jpg", "lamp/a.jpg"]):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(jpeg(picture(number)))
    (source / "subjects.csv").write_text('subject,class,credit\ndog2,dog,x\nvase,"vase, ""blue""",\nbook,book,y\n')
    return source


def described(toys: Path, output: Path, **settings: object) -> StageResult:
    given = {"metadata": str(toys / "subjects.csv"), "join": "folder=subject", **settings}
    return ingest(toys, output, **given)


def captions(result: StageResult) -> dict[str, str | None]:
    table = table_of(result)
    return dict(zip(table["key"].to_pylist(), table["alt_text"].to_pylist(), strict=True))


def test_a_template_over_a_table(toys: Path, tmp_path: Path) -> None:
    result = described(toys, tmp_path / "out", caption_template="a photo of a {class}")
    assert captions(result) == {
        "dog2/a.jpg": "a photo of a dog",
        "dog2/b.jpg": "a photo of a dog",
        "vase/a.jpg": 'a photo of a vase, "blue"',
    }
    # a table says what the corpus is: what it does not list is left out, with that reason
    assert result.report["in"] == 4 and result.report["dropped"] == {"not_in_metadata": 1}
    assert excluded_of(result)["lamp/a.jpg"]["message"] == "subjects.csv has no row with subject='lamp'"


def test_a_column_is_the_caption_and_an_empty_value_is_none(toys: Path, tmp_path: Path) -> None:
    result = described(toys, tmp_path / "out", caption_column="credit")
    assert captions(result) == {"dog2/a.jpg": "x", "dog2/b.jpg": "x", "vase/a.jpg": None}
    templated = described(toys, tmp_path / "out", caption_template="{class} by {credit}")
    assert captions(templated) == {"dog2/a.jpg": "dog by x", "dog2/b.jpg": "dog by x", "vase/a.jpg": None}


def test_a_template_over_names_alone(toys: Path, tmp_path: Path) -> None:
    result = ingest(toys, tmp_path / "out", caption_template="{stem} of a {folder}")
    assert captions(result)["dog2/b.jpg"] == "b of a dog2" and result.report["kept"] == 4


def test_only_units_whose_captions_change_are_done_again(toys: Path, tmp_path: Path) -> None:
    settings = {"caption_template": "a {class}", "unit_size": 1}
    first = described(toys, tmp_path / "out", **settings)
    assert first.units_run == 4
    (toys / "subjects.csv").write_text("subject,class,credit\ndog2,dog,other\nvase,pot,\n")
    again = described(toys, tmp_path / "out", **settings)
    assert again.directory == first.directory and again.units_run == 1
    assert captions(again)["vase/a.jpg"] == "a pot"


def test_captions_and_groups_beside_the_pictures(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for number, name in enumerate("abcde"):
        (source / f"{name}.jpg").write_bytes(jpeg(picture(number)))
    (source / "a.txt").write_text("from the text")
    (source / "a.json").write_text(json.dumps({"caption": "from the json", "view_group": "g"}))
    (source / "b.json").write_text(json.dumps({"caption": " from the json ", "title": "t"}))
    (source / "c.json").write_text(json.dumps({"caption": 3}))
    (source / "d.txt").write_bytes(b"caf\xe9")
    result = ingest(source, tmp_path / "out")
    rows = {row["key"]: (row["alt_text"], row["view_group"]) for row in table_of(result).to_pylist()}
    assert rows == {"a.jpg": ("from the text", "g"), "b.jpg": ("from the json", None), "e.jpg": (None, None)}
    assert result.report["quarantined"] == {"unreadable_caption": 2}
    titled = ingest(source, tmp_path / "out", caption_column="title")
    assert captions(titled)["b.jpg"] == "t"


def test_captions_are_found_whatever_the_case_of_the_extensions(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for number, name in enumerate(["A.JPG", "b.jpg", "c.Jpeg"]):
        (source / name).write_bytes(jpeg(picture(number)))
    (source / "A.TXT").write_text("a toy")
    (source / "b.Json").write_text(json.dumps({"caption": "a duck", "view_group": "g"}))
    (source / "C.TXT").write_text("of another picture")
    result = ingest(source, tmp_path / "out", unit_size=2)
    assert captions(result) == {"A.JPG": "a toy", "b.jpg": "a duck", "c.Jpeg": None}
    assert result.report["in"] == result.report["kept"] == 3
    (source / "A.TXT").write_text("another toy")
    again = ingest(source, tmp_path / "out", unit_size=2)
    assert again.units_run == 1 and captions(again)["A.JPG"] == "another toy"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"join": "folder=subjct"}, "no column 'subjct'; subjects.csv has the columns subject, class, credit"),
        ({"caption_template": "a {klass}"}, "no column 'klass'; subjects.csv has the columns subject, class, credit"),
        ({}, "no column 'caption'; subjects.csv has the columns subject, class, credit"),
        ({"join": "dir=subject"}, "PART one of folder, stem, file, path"),
        ({"join": None}, r"ingest\.metadata needs ingest\.join"),
        ({"metadata": None}, r"ingest\.join needs ingest\.metadata"),
        ({"metadata": None, "join": None, "caption_template": "a {class}"}, "there is no ingest.metadata"),
        ({"caption_template": "a {class.__doc__}"}, "only plain column names"),
        ({"caption_template": "a {class"}, "expected '}'"),
        ({"metadata": "gone.csv"}, r"ingest\.metadata: no file at gone\.csv"),
    ],
)
def test_what_the_table_lacks_is_said_before_anything_is_written(
    toys: Path, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        described(toys, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"subject,class\ndog2,dog\ndog2,cat\n", "two rows have subject='dog2'"),
        (b"subject,class,class\n", "two columns are named 'class'"),
        (b"", "not a CSV with a header line"),
        (b"subject,class\ndog2,caf\xe9\n", "row 1 .* is not UTF-8"),
    ],
)
def test_a_table_that_cannot_be_joined_is_refused(toys: Path, tmp_path: Path, content: bytes, message: str) -> None:
    (toys / "subjects.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        described(toys, tmp_path / "out", caption_template="a {class}")


def test_a_table_that_may_not_be_read_is_named(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))  # tests may run as one who may read anything

    monkeypatch.setattr("realcustom.store.ChunkedFile", refuse)
    with pytest.raises(ValueError, match=r"cannot read .*/subjects\.csv: no permission"):
        described(toys, tmp_path / "out", caption_template="a {class}")
    assert not (tmp_path / "out").exists()


def test_rows_without_a_picture_are_counted_and_names_compared_in_one_form(toys: Path, tmp_path: Path) -> None:
    (toys / "cafe\u0301").mkdir()  # as a Mac writes it
    (toys / "cafe\u0301/a.jpg").write_bytes(jpeg(picture(9)))
    rows = "dog2,dog\ncaf\u00e9,cup\nbook,book\n,of nothing\nlamp,lamp\nvase,vase\n"
    (toys / "subjects.csv").write_text("subject,class\n" + rows)
    result = described(toys, tmp_path / "out", caption_column="class")
    assert captions(result)["cafe\u0301/a.jpg"] == "cup" and result.report["dropped"] == {}
    assert result.report["table_rows_without_picture"] == {"rows": 2, "first": ["subjects.csv: book", "subjects.csv: "]}


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "tsv"])
def test_a_table_of_any_kind_is_joined(kind: str, toys: Path, tmp_path: Path) -> None:
    rows = [{"place": "dog2\\a.jpg", "captions": ["a dog", "two"], "n": 3}, {"place": "./vase/a.jpg", "captions": None}]
    path = tmp_path / f"table.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "tsv":
        path.write_text("place\tcaptions\tn\ndog2\\a.jpg\ta dog\t3\n./vase/a.jpg\n")
    else:
        data = "\n".join(map(json.dumps, rows)).encode()
        path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    given = {"metadata": str(path), "join": "path=place"}
    assert captions(ingest(toys, tmp_path / "out", **given)) == {"dog2/a.jpg": "a dog", "vase/a.jpg": None}
    templated = ingest(toys, tmp_path / "out", **given, caption_template="{n} toys")
    assert captions(templated) == {"dog2/a.jpg": "3 toys", "vase/a.jpg": None}


def test_a_table_without_a_header_line_is_named_by_a_setting(toys: Path, tmp_path: Path) -> None:
    (toys / "captions.csv").write_text("dog2/a.jpg,a dog\nvase/a.jpg,a vase\ngone.jpg,a toy\n")
    (toys / "subjects.csv").unlink()
    hint = r"captions\.csv has no header line.*names the picture dog2/a\.jpg.*ingest\.columns=\[file_name, caption\]"
    with pytest.raises(ValueError, match=hint):
        ingest(toys, tmp_path / "out")
    columns = ("file_name", "caption")
    result = ingest(toys, tmp_path / "out", columns=columns)
    assert captions(result)["dog2/a.jpg"] == "a dog" and result.report["table_rows_without_picture"]["rows"] == 1
    metadata = {"metadata": str(toys / "captions.csv"), "join": "path=file_name"}
    joined = ingest(toys, tmp_path / "joined", columns=columns, **metadata)
    assert captions(joined) == {"dog2/a.jpg": "a dog", "vase/a.jpg": "a vase"}
    with pytest.raises(ValueError, match=r"ingest\.columns=\['a', 'b', 'c'\] names the columns of no \.csv"):
        ingest(toys, tmp_path / "out", columns=("a", "b", "c"))


@pytest.mark.parametrize(
    ("rows", "sidecar"),
    [
        ("dog2/a.jpg,3\nvase/a.jpg,7\n", False),  # labels
        ("dog2/a.jpg,dog\nvase/a.jpg,vase\n", False),
        ("dog2/a.jpg\t10 20 30 40\nvase/a.jpg\t1 2 3 4\n", False),  # boxes
        ("dog2/a.jpg,a dog\n", True),
        ('dog2/a.jpg,3\nvase/a.jpg,"7" x\n', False),  # no CSV
    ],
)
def test_a_table_without_a_header_line_is_not_read_where_it_gives_no_captions(
    rows: str, sidecar: bool, toys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (toys / "list.csv").write_text(rows)
    if sidecar:
        (toys / "vase/a.txt").write_text("a vase")
    result = ingest(toys, tmp_path / "out")
    assert captions(result)["dog2/a.jpg"] is None
    assert captions(result)["vase/a.jpg"] == ("a vase" if sidecar else None)
    assert result.report["not_read"][".csv"] == 2
    assert "list.csv has no header line" in caplog.text and "columns=[file_name, caption]" in caplog.text


@pytest.mark.parametrize("caption", ["a dog", "\u8349\u4e0a\u7684\u5c0f\u72d7"])
def test_the_captions_of_a_table_without_a_header_line_are_told_from_its_labels(
    caption: str, toys: Path, tmp_path: Path
) -> None:
    (toys / "list.csv").write_text(f"3,vase/a.jpg,vase\n4,dog2/a.jpg,{caption}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"ingest\.columns=\[column1, file_name, caption\]"):
        ingest(toys, tmp_path / "out")


@pytest.mark.parametrize("setting", ["columns", "keep_columns"])
@pytest.mark.parametrize("kind", ["tar", "parquet", "jsonl", "pictures", "template"])
def test_a_setting_that_would_do_nothing_is_refused(setting: str, kind: str, tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    given: dict[str, object] = {setting: ("url", "caption")}
    if kind == "tar":
        (source / "s.tar").write_bytes(tar_bytes(sample("a", jpeg(picture(0)))))
    elif kind == "parquet":
        pq.write_table(pa.table({"image": [jpeg(picture(0))], "url": ["x"], "caption": ["a"]}), source / "t.parquet")
    elif kind == "jsonl":
        (source / "t.jsonl").write_text(json.dumps({"url": "no url", "caption": "a"}))
    else:
        (source / "a.jpg").write_bytes(jpeg(picture(0)))
    if kind == "template":
        given["caption_template"] = "a toy"
    if setting == "keep_columns" and kind in ("parquet", "jsonl"):
        assert ingest(source, tmp_path / "out", **given).report["in"] == 1
        return
    with pytest.raises(ValueError, match=rf"ingest\.{setting}"):
        ingest(source, tmp_path / "out", **given)


def test_a_store_that_fails_at_a_table_of_captions_stops_the_plan(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (toys / "captions.csv").write_text("file_name,caption\ndog2/a.jpg,a dog\n")
    read = ChunkedFile.read

    def refuse(self: ChunkedFile, offset: int, count: int) -> bytes:
        if self._uri.endswith("captions.csv"):
            with refusals("read", self._uri):
                raise OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body.")
        return read(self, offset, count)

    monkeypatch.setattr(ChunkedFile, "read", refuse)
    with pytest.raises(StorageRefused, match=r"cannot read .*captions\.csv: access denied"):
        ingest(toys, tmp_path / "out")


@pytest.mark.parametrize("cut", ["images", "annotations", "list"])
def test_a_torn_table_of_captions_is_refused_and_another_document_left(cut: str, toys: Path, tmp_path: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(40)]
    said = [{"image_id": number, "caption": "a toy"} for number in range(40)]
    whole = json.dumps(said if cut == "list" else {"images": images, "annotations": said})
    (toys / "list.json").write_text(whole[: 200 if cut == "images" else -20])
    (toys / "other.json").write_text("no json")
    with pytest.raises(ValueError, match=r"list\.json is not JSON, and may hold captions: repair it or take it away"):
        ingest(toys, tmp_path / "out")
    (toys / "list.json").unlink()
    assert ingest(toys, tmp_path / "out").report["not_read"][".json"] == 1


def test_a_table_whose_first_objects_lack_the_caption_is_one(toys: Path, tmp_path: Path) -> None:
    rows = [{"file_name": "lamp/a.jpg"}, 3, {"file_name": "dog2/a.jpg", "text": "a dog"}]
    (toys / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows if row != 3))
    assert captions(ingest(toys, tmp_path / "out"))["dog2/a.jpg"] == "a dog"
    (toys / "metadata.jsonl").unlink()
    (toys / "list.json").write_text(json.dumps(rows))
    result = ingest(toys, tmp_path / "out")
    assert captions(result)["dog2/a.jpg"] == "a dog"
    first = ["list.json: (int, no object)"]
    assert result.report["table_rows_without_picture"] == {"rows": 1, "first": first}


def test_a_table_of_captions_is_for_folders_only(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url,caption\nhttp://x,y\n")
    with pytest.raises(ValueError, match=r"ingest\.caption_template describes the pictures of a folder, and .* urls"):
        ingest(tmp_path / "list.csv", tmp_path / "out", caption_template="x")


def test_templates_take_any_name_and_no_code() -> None:
    assert template_fields("{a b} {{x}} {0}") == ("a b", "0")
    assert fill("{a b} {{x}} {0}", {"a b": "1 ", "0": "{2}"}) == "1 {x} {2}"
    for wrong in ("{}", "{a!r}", "{a:>9}", "{a[0]}", "}"):
        with pytest.raises(ValueError, match="caption_template"):
            template_fields(wrong)
    assert parse_join("stem=file name").column == "file name"


@pytest.mark.skipif(not DREAMBENCH.is_dir(), reason="the photographs of shared/data are not here")
def test_the_photographs_of_dreambench(tmp_path: Path) -> None:
    given = {"metadata": str(DREAMBENCH / "subjects.csv"), "join": "folder=subject"}
    result = ingest(DREAMBENCH, tmp_path / "out", **given, caption_template="a photo of a {class}")
    assert result.report["in"] == result.report["kept"] > 100
    assert captions(result)["duck_toy/00.jpg"] == "a photo of a toy"
