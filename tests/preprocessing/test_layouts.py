"""Corpora as tools and people write them: what is read of each with the plain command, and the account of every file."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from realcustom import storage
from realcustom.errors import MissingFile
from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.ingest import caption_documents, parquet
from realcustom.preprocessing.ingest.columns import find_column
from realcustom.preprocessing.ingest.corpus import open_corpus
from realcustom.preprocessing.ingest.picture_units import cut_by_names
from realcustom.preprocessing.ingest.sources import read_source
from realcustom.preprocessing.ingest.table_rows import TableReader
from realcustom.preprocessing.run import StageResult
from realcustom.preprocessing.settings import CaptionRule, IngestSettings, PreprocessSettings, SourceKind
from realcustom.store import ChunkedFile, Store, refusals
from tests.support.corpora import encoded, jpeg, picture, png, sample, tar_bytes
from tests.support.stages import excluded_of, ingest, table_of


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def captions(result: StageResult) -> dict[str, str | None]:
    table = table_of(result)
    return dict(zip(table["key"].to_pylist(), table["alt_text"].to_pylist(), strict=True))


def accounted(folder: Path, report: dict[str, Any]) -> None:
    """Every file of a plain walk is read, belongs to one that is, or is counted."""
    walked = sum(len(names) for _, _, names in os.walk(folder, followlinks=False))
    walked += sum(os.path.islink(os.path.join(top, name)) for top, names, _ in os.walk(folder) for name in names)
    kinds = {kind: number for kind, number in report["not_read"].items() if kind != "first"}
    assert sum(report["files"].values()) + sum(kinds.values()) == walked
    assert report["in"] == report["kept"] + sum(report["dropped"].values()) + sum(report["quarantined"].values())


def not_read(report: dict[str, Any]) -> dict[str, int]:
    return {kind: number for kind, number in report["not_read"].items() if kind != "first"}


P = [jpeg(picture(number)) for number in range(8)]


# files


def test_compressed_shards_and_extensions_of_any_case_are_read(tmp_path: Path) -> None:
    shard = [tar_bytes(sample("000", P[number], f"toy {number}")) for number in range(4)]
    source = write(
        tmp_path / "src",
        {
            "a.tar.gz": gzip.compress(shard[0]),
            "b.tgz": gzip.compress(shard[1]),
            "c.tar": shard[2],
            "D.TAR": shard[3],
            "e.tar.zst": pa.compress(shard[0], codec="zstd", asbytes=True),
            "torn.tar.gz": gzip.compress(shard[1])[:-60],
            "notes.md": "read me",
        },
    )
    result = ingest(source, tmp_path / "out")
    assert set(captions(result)) == {
        *("a.tar.gz/000.jpg", "b.tgz/000.jpg", "c.tar/000.jpg", "D.TAR/000.jpg", "e.tar.zst/000.jpg")
    }
    assert result.report["quarantined"] == {"torn_tar": 1} and not_read(result.report) == {".md": 1}
    accounted(source, result.report)


def test_every_picture_by_its_first_bytes_is_a_row_and_every_other_file_is_counted(tmp_path: Path) -> None:
    pictures = ["a.jpg", "b.jpg_large", "c.jpg?w=640", "d", "e.JPG.1", "f.jpg.webp", "g.pjpeg", "i.jpg~", "j.image"]
    files: dict[str, bytes | str] = {name: jpeg(picture(number)) for number, name in enumerate(pictures)}
    files |= {
        "h.apng": png(picture(20)),
        "wrong.tiff": P[0],
        "k.bin": b"BMW is a car maker",
        "l": "text",
        "m.npz": b"PK",
    }
    source = write(tmp_path / "src", files)
    result = ingest(source, tmp_path / "out")
    assert set(captions(result)) == {*pictures, "h.apng", "wrong.tiff"}
    assert result.report["not_read"] == {".bin": 1, ".npz": 1, "no extension": 1, "first": ["k.bin", "l", "m.npz"]}
    accounted(source, result.report)


def test_pictures_of_unknown_extensions_alone_are_a_folder_of_pictures(tmp_path: Path) -> None:
    source = write(tmp_path / "src", {"a": P[0], "b.image": P[1]})
    assert ingest(source, tmp_path / "out").report["kept"] == 2


def test_hidden_and_system_files_are_left_out_and_counted(tmp_path: Path) -> None:
    junk = [
        "Thumbs.db",
        ".DS_Store",
        "._a.jpg",
        "@eaDir/a.jpg/SYNOPHOTO.jpg",
        "__MACOSX/b.jpg",
        ".ipynb_checkpoints/a.jpg",
    ]
    source = write(tmp_path / "src", {name: P[0] for name in ("a.jpg", *junk)})
    result = ingest(source, tmp_path / "out")
    assert list(captions(result)) == ["a.jpg"] and not_read(result.report) == {"hidden": 3, "system": 3}
    assert set(result.report["not_read"]["first"]) == set(junk)  # and of a hidden folder no file ten times
    accounted(source, result.report)


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", {"x.jpg": P[0], "deep/y.jpg": P[1], "z.jpg": P[4]})
    source = write(tmp_path / "src", {"a.jpg": P[2], "in/b.jpg": P[3]})
    (source / "folder").symlink_to(elsewhere)
    (source / "again").symlink_to(elsewhere / "deep")  # what is followed once is there once
    (source / "file.jpg").symlink_to(elsewhere / "x.jpg")
    (source / "own.jpg").symlink_to(source / "a.jpg")
    (source / "in/loop").symlink_to(source)
    (source / "gone.jpg").symlink_to(tmp_path / "nothing")
    (elsewhere / "back").symlink_to(tmp_path)
    result = ingest(source, tmp_path / "out")
    assert set(captions(result)) == {"a.jpg", "in/b.jpg", "again/y.jpg", "file.jpg", "folder/z.jpg"}
    assert not_read(result.report) == {"dangling link": 1, "link": 5}
    assert set(result.report["not_read"]["first"]) == {
        *("folder/back", "folder/deep", "folder/x.jpg", "gone.jpg", "in/loop", "own.jpg")
    }


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    source = write(tmp_path / "src", {"a.jpg": P[0]})
    os.mkfifo(source / "pipe")
    os.mkfifo(tmp_path / "outside.jpg")
    (source / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (source / "zeros.jpg").symlink_to("/dev/zero")
    assert not_read(ingest(source, tmp_path / "out").report) == {"no file": 3}


def test_a_file_of_an_unknown_extension_that_may_not_be_read_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "src", {"a.jpg": P[0], "b.unknown": P[1], "c.gone": P[2]})
    read = ChunkedFile.read

    def refuse(self: ChunkedFile, offset: int, count: int) -> bytes:
        if self._uri.endswith("unknown"):
            with refusals("read", self._uri):
                raise PermissionError(13, "Permission denied")  # tests may run as one who may read anything
        if self._uri.endswith("gone"):
            raise MissingFile("gone")
        return read(self, offset, count)

    monkeypatch.setattr(ChunkedFile, "read", refuse)
    result = ingest(source, tmp_path / "out")
    assert not_read(result.report) == {"unreadable": 2} and result.report["kept"] == 1
    accounted(source, result.report)


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "src", {"a.jpg": P[0], "private/b.jpg": P[1]})
    scan = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied")  # tests may run as one who may read anything
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(ValueError, match=r"cannot list .*/src/private: no permission"):
        ingest(source, tmp_path / "out")


def test_files_of_one_picture_that_cannot_be_read_are_its_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "src", {"a.jpg": P[0], "b.jpg": P[1], "c.jpg": P[2]})
    read = Store.read

    def refuse(self: Store, uri: str) -> bytes:
        if uri.endswith("b.jpg"):
            os.unlink(uri)
        return read(self, uri)

    monkeypatch.setattr(Store, "read", refuse)
    result = ingest(source, tmp_path / "out")
    assert list(captions(result)) == ["a.jpg", "c.jpg"] and result.report["quarantined"] == {"unreadable_file": 1}


@pytest.mark.parametrize("denied", [False, True])
@pytest.mark.parametrize("kind", ["tar", "parquet", "large parquet", "urls", "csv", "jpg"])
def test_a_file_that_is_not_given_is_one_fault_and_the_others_are_read(
    kind: str, denied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src").mkdir()
    for name in ("a", "b"):
        path = tmp_path / "src" / f"{name}.{kind.split()[-1]}"
        if kind == "tar":
            path.write_bytes(tar_bytes(sample("0", P[0])))
        elif kind == "csv":
            path.write_text("url,caption\nno url,a\n")
        elif kind == "jpg":
            path.write_bytes(P[0])
        else:
            column = {"url": ["no url"]} if kind == "urls" else {"image": [P[0]]}
            pq.write_table(pa.table({**column, "caption": ["a"]}), path.with_suffix(".parquet"))
    if kind == "large parquet":
        monkeypatch.setattr(parquet, "UNIT_BYTES", 100)
    lost = next((tmp_path / "src").glob("a.*"))
    open_filesystem = storage.open_filesystem
    if denied:

        class Denied(fs.LocalFileSystem):  # type: ignore[misc]
            def open_input_file(self, path: str) -> pa.NativeFile:
                if path == str(lost):
                    raise OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body.")
                return super().open_input_file(path)

        monkeypatch.setattr(storage, "open_filesystem", lambda uri: (Denied(), open_filesystem(uri)[1]))
    units = open_corpus(str(tmp_path / "src"), PreprocessSettings(), Store()).units
    if not denied:
        lost.unlink()
    entries = [pair for unit in units for pair in read_source(unit, IngestSettings(), Store(), TableReader(Store()))]
    faults = {key: entry for key, entry in entries if key.startswith(lost.name)}
    assert len(entries) == 2 and len(faults) == 1
    assert all(isinstance(entry, DataError) and entry.reason == "unreadable_file" for entry in faults.values())


# folders with captions


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_imagefolder(kind: str, tmp_path: Path) -> None:
    rows = [{"file_name": f"{number}.jpg", "text": f"a dog {number}"} for number in range(3)]
    rows += [{"file_name": f"metadata.{kind}", "text": "itself"}, {"file_name": "gone.jpg", "text": "no picture"}]
    for split in ("train", "test"):
        source = write(tmp_path / "src", {f"{split}/{number}.jpg": P[number] for number in range(4)})
        own = [{**row, "text": f"{split} {row['text']}"} for row in rows]
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(own), source / split / "metadata.parquet")
        else:
            lines = [json.dumps(row) for row in own]
            if kind == "csv":
                lines = ["file_name,text", *(",".join(row.values()) for row in own)]
            write(source, {f"{split}/metadata.{kind}": "\n".join(lines)})
    result = ingest(source, tmp_path / "out")
    assert captions(result) == {
        f"{split}/{number}.jpg": f"{split} a dog {number}" if number < 3 else None
        for split in ("test", "train")
        for number in range(4)
    }
    assert result.report["table_rows_without_picture"]["rows"] == 4
    assert result.report["noted"] == {"without_caption": 2}
    assert result.report["first"] == {"without_caption": ["test/3.jpg", "train/3.jpg"]}
    accounted(source, result.report)


def test_names_in_a_table_as_other_systems_write_them(tmp_path: Path) -> None:
    rows = [{"file_name": "in\\a.jpg", "text": "a"}, {"file_name": "caf\u00e9.jpg", "text": "b"}]
    files: dict[str, bytes | str] = {
        "in/a.jpg": P[0],
        "cafe\u0301.jpg": P[1],
        "metadata.jsonl": "\n".join(map(json.dumps, rows)),
    }
    result = ingest(write(tmp_path / "src", files), tmp_path / "out")
    assert captions(result) == {"in/a.jpg": "a", "cafe\u0301.jpg": "b"}


def test_two_tables_that_disagree_are_named_and_two_that_agree_are_one(tmp_path: Path) -> None:
    line = json.dumps({"file_name": "0.jpg", "text": "a dog"})
    source = write(
        tmp_path / "src", {"0.jpg": P[0], "metadata.jsonl": line, "metadata.csv": "file_name,text\n0.jpg,a dog\n"}
    )
    assert captions(ingest(source, tmp_path / "out")) == {"0.jpg": "a dog"}
    write(source, {"metadata.csv": "file_name,text\n0.jpg,a cat\n"})
    with pytest.raises(ValueError, match=r"metadata\.csv and metadata\.jsonl give 0\.jpg different captions"):
        ingest(source, tmp_path / "out")


def test_one_row_for_two_pictures_names_both(tmp_path: Path) -> None:
    source = write(tmp_path / "src", {"a/0.jpg": P[0], "b/0.jpg": P[1], "list.csv": "picture,text\n0.jpg,a dog\n"})
    with pytest.raises(ValueError, match=r"is about both a/0\.jpg and b/0\.jpg: join by path=picture"):
        ingest(source, tmp_path / "out", metadata=str(source / "list.csv"), join="file=picture", caption_column="text")
    write(source, {"list.json": json.dumps([{"image": "0.jpg", "text": "a dog"}])})
    with pytest.raises(ValueError, match=r"list\.json: '0\.jpg' is the name of a/0\.jpg and of b/0\.jpg"):
        ingest(source, tmp_path / "out")


def test_kohya(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "10_dog/IMG 0.JPG": P[0],
        "10_dog/IMG 0.txt": "a dog",
        "5_cat/c.png": png(picture(1)),
    }
    files |= {"5_cat/c.caption": "a cat", "5_cat/c.npz": b"PK", "5_cat/d.jpg": P[2], "5_cat/d.jpg.txt": "whole name"}
    files |= {"5_cat/e.jpg": P[3], "5_cat/e.tags": "1girl", "5_cat/e.txt": ""}
    source = write(tmp_path / "src", files)
    result = ingest(source, tmp_path / "out")
    assert captions(result) == {
        "10_dog/IMG 0.JPG": "a dog",
        "5_cat/c.png": "a cat",
        "5_cat/d.jpg": "whole name",
        "5_cat/e.jpg": "",
    }
    assert not_read(result.report) == {".npz": 1, ".tags": 1} and result.report["noted"] == {"without_caption": 1}
    accounted(source, result.report)
    tagged = ingest(source, tmp_path / "tags", caption_extensions=("tags", "txt"))
    assert captions(tagged)["5_cat/e.jpg"] == "1girl" and captions(tagged)["10_dog/IMG 0.JPG"] == "a dog"


def test_coco_captions(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {f"train2017/{number:012d}.jpg": P[number] for number in range(3)}
    files |= {"val2017/000000000000.jpg": P[4]}
    images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in range(3)]
    said = [{"image_id": number, "caption": text} for number in range(2) for text in ("a dog", "a large brown dog")]
    files["annotations/captions_train2017.json"] = json.dumps({"images": images, "annotations": said})
    files["annotations/instances_train2017.json"] = json.dumps(
        {"images": images, "annotations": [{"bbox": [0, 0, 1, 1]}]}
    )
    source = write(tmp_path / "src", files)
    result = ingest(source, tmp_path / "out")
    assert captions(result)["train2017/000000000001.jpg"] == "a dog"
    assert captions(result)["train2017/000000000002.jpg"] is captions(result)["val2017/000000000000.jpg"] is None
    assert not_read(result.report) == {".json": 1} and result.report["noted"] == {"without_caption": 2}
    accounted(source, result.report)
    longest = ingest(source, tmp_path / "out", caption_rule=CaptionRule.LONGEST)
    assert captions(longest)["train2017/000000000000.jpg"] == "a large brown dog"
    each = ingest(source, tmp_path / "out", caption_rule=CaptionRule.EACH)
    assert each.report["in"] == each.report["kept"] == 6
    assert captions(each)["train2017/000000000000.jpg#caption1"] == "a large brown dog"


def test_lists_of_pictures_and_texts(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a dog"}]
    rows = [{"image": "img/1.jpg", "conversations": turns}, {"image": "img/9.jpg", "conversations": turns}]
    files: dict[str, bytes | str] = {f"img/{number}.jpg": P[number] for number in range(3)}
    files["data.jsonl"] = (
        '{"images": ["img/0.jpg"], "text": "<__dj__image> a cat"}\n{"images": ["a", "b"], "text": "x"}\n'
    )
    source = write(
        tmp_path / "src", {**files, "llava.json": json.dumps(rows), "other.json": "{}", "labels.csv": "x,y\n1,2\n"}
    )
    result = ingest(source, tmp_path / "out")
    assert captions(result) == {"img/0.jpg": "a cat", "img/1.jpg": "a dog", "img/2.jpg": None}
    assert not_read(result.report) == {".csv": 1, ".json": 1}
    assert result.report["table_rows_without_picture"]["rows"] == 2
    accounted(source, result.report)


DOCUMENTS = [
    # Karpathy's splits
    ("dataset_coco.json", {"images": [{"filepath": "val2014", "filename": "COCO_1.jpg", "sentences": [{"raw": "a dog"}]}]}),
    # kohya's, by name, by stem and with the paths of the machine that wrote it
    ("meta_cap.json", {"val2014/COCO_1.jpg": {"caption": "a dog"}}),
    ("meta_cap.json", {"val2014/COCO_1": {"tags": "a dog"}}),
    ("meta_cap.json", {"/home/me/train/val2014/COCO_1": {"caption": "a dog"}}),
    ("meta_cap.json", {"C:\\train\\COCO_1.jpg": {"caption": "a dog"}}),
    ("captions.json", {"COCO_1.jpg": "a dog"}),
    ("captions.json", {"COCO_1.jpg": ["a dog", "a large dog"]}),
    ("captions.json", [{"image_id": 1, "caption": "another"}, {"image_id": "COCO_1", "caption": "a dog"}]),
    ("captions.json", {"version": 1, "data": [{"image_name": "COCO_1", "caption": "a dog"}]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "document"), DOCUMENTS)
def test_documents_of_captions(name: str, document: Any, tmp_path: Path) -> None:
    source = write(
        tmp_path / "src", {"val2014/COCO_1.jpg": P[0], "val2014/COCO_2.jpg": P[1], name: json.dumps(document)}
    )
    result = ingest(source, tmp_path / "out")
    assert captions(result) == {"val2014/COCO_1.jpg": "a dog", "val2014/COCO_2.jpg": None}
    assert result.report["caption_tables"] == [name] and not_read(result.report) == {}
    accounted(source, result.report)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.txt", "image,caption\n1.jpg,a dog\n1.jpg,a large dog\n"),  # Flickr 8k
        ("results.csv", "image_name| comment_number| comment\n1.jpg| 0| a dog\n"),  # Flickr 30k
        ("list.csv", "file;text\n1.jpg;a dog\n"),
        ("narratives.jsonl", '{"dataset_id": "x", "image_id": "1", "caption": "a dog"}\n'),
    ],
)
def test_tables_of_captions_as_corpora_have_them(name: str, text: str, tmp_path: Path) -> None:
    source = write(tmp_path / "src", {"1.jpg": P[0], name: text})
    result = ingest(source, tmp_path / "out")
    assert captions(result) == {"1.jpg": "a dog"} and result.report["caption_tables"] == [name]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["/a/1.jpg", "/b/1.jpg"], r"x/1\.jpg may be '/a/1\.jpg' or '/b/1\.jpg'"),  # of one of these folders
        (["2"], r"'2' is the name of 2\.jpg and of 2\.png"),
    ],
)
def test_a_name_that_may_be_of_several_pictures_is_refused(names: list[str], said: str, tmp_path: Path) -> None:
    pictures: dict[str, bytes | str] = {"x/1.jpg": P[0], "2.jpg": P[1], "2.png": png(picture(2))}
    captions_of = json.dumps(dict.fromkeys(names, "a dog"))
    with pytest.raises(ValueError, match=said):
        ingest(write(tmp_path / "src", {**pictures, "captions.json": captions_of}), tmp_path / "out")


def test_a_list_of_numbered_captions_without_a_header_line_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "src", {"1.jpg": P[0], "Flickr8k.token.txt": "1.jpg#0\ta dog\n1.jpg#1\ta large dog\n"})
    with pytest.raises(ValueError, match=r"no header line.*ingest\.columns=\[file_name, caption\]"):
        ingest(source, tmp_path / "out")
    assert captions(ingest(source, tmp_path / "out", columns=("file_name", "caption"))) == {"1.jpg": "a dog"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metadata.jsonl", '{"file_name": "picture.jpg", "additional_feature": "a dog"}\n', "'additional_feature'"),
        ("textcaps.json", '{"data": [{"image_id": "picture", "caption_str": "a dog"}]}', "'caption_str'"),
        ("classes.csv", "picture,class\npicture.jpg,dog\n", "'picture', 'class'"),
        ("pairs.json", '[["picture.jpg", "a dog"]]', "no names for its values"),
        ("boxes.json", '{"picture.jpg": [1, 2, 3, 4]}', "'picture.jpg'"),
    ],
)
def test_a_file_that_names_pictures_and_is_not_read_is_warned_of(
    name: str, text: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "src", {"picture.jpg": P[0], name: text})
    result = ingest(source, tmp_path / "out")
    assert f"{name} names pictures and is not read" in caplog.text and said in caplog.text
    assert "--set preprocess.ingest.caption_column=NAME" in caplog.text
    assert sum(not_read(result.report).values()) == 1
    caplog.clear()
    ingest(source, tmp_path / "none", caption_column=None)
    assert "names pictures" not in caplog.text


def test_boxes_lists_and_the_like_are_no_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    boxes = {"images": [{"id": 1, "file_name": "picture.jpg"}], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}
    files: dict[str, bytes | str] = {"picture.jpg": P[0], "split.txt": "picture.jpg\npicture.jpg\n"}
    files |= {"instances.json": json.dumps(boxes), "README.txt": "Pictures, taken by me.\n", "config.json": '{"a": 1}'}
    result = ingest(write(tmp_path / "src", files), tmp_path / "out")
    assert captions(result) == {"picture.jpg": None} and "names pictures" not in caplog.text


def test_a_large_document_of_boxes_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_documents, "_LARGE", 10)
    files: dict[str, bytes | str] = {"1.jpg": P[0], "instances.json": '{"images": [], "annotations": [{"bbox": [0'}
    assert captions(ingest(write(tmp_path / "src", files), tmp_path / "out")) == {"1.jpg": None}
    files = {"1.jpg": P[0], "captions.json": '{"images": [], "annotations": [{"bbox": [0], "caption": "a'}
    with pytest.raises(ValueError, match=r"captions\.json is not JSON, and may hold captions"):
        ingest(write(tmp_path / "other", files), tmp_path / "out")


def test_captions_are_looked_for_at_the_top_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files: dict[str, bytes | str] = {f"labels/x/{number}.json": "{}" for number in range(100)}
    files |= {"1.jpg": P[0], "zz.json": json.dumps({"1.jpg": "a dog"})}
    assert captions(ingest(write(tmp_path / "src", files), tmp_path / "out")) == {"1.jpg": "a dog"}
    assert "101 .json files describe no picture beside them" in caplog.text


def test_of_two_columns_of_captions_the_one_that_is_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "src", {"1.jpg": P[0], "metadata.csv": "file_name,text,caption\n1.jpg,a,b\n"})
    assert captions(ingest(source, tmp_path / "out")) == {"1.jpg": "b"}
    assert "metadata.csv: the column 'caption' is read, and not 'text'" in caplog.text
    caplog.clear()
    assert captions(ingest(source, tmp_path / "out", caption_column="text")) == {"1.jpg": "a"}
    assert "is read, and not" not in caplog.text


# shards


def shard(folder: Path, members: list[tuple[str, bytes]]) -> Path:
    return write(folder, {"s.tar": tar_bytes(members)})


def test_captions_in_json_by_their_usual_keys(tmp_path: Path) -> None:
    said: list[Any] = [
        {"prompt": "a"},
        {"text": "b"},
        {"caption": ["c", "d"]},
        {"caption": 5},
        {"caption": None, "id": 1},
        ["x"],
    ]
    said += [{"conversations": [{"from": "gpt", "value": "e"}]}, {"title": "f"}]
    members = [
        pair for n, one in enumerate(said) for pair in ((f"{n}.jpg", P[n]), (f"{n}.json", json.dumps(one).encode()))
    ]
    result = ingest(shard(tmp_path / "src", members), tmp_path / "out")
    assert [captions(result).get(f"s.tar/{n}.jpg", "quarantined") for n in range(8)] == [
        *("a", "b", "c", "quarantined", None, None, "e", None)
    ]
    assert result.report["noted"] == {"without_caption": 3}
    assert result.report["first"]["without_caption"] == [
        "s.tar/4.jpg (its .json has 'caption', 'id')",
        "s.tar/5.jpg",
        "s.tar/7.jpg (its .json has 'title')",
    ]
    titled = ingest(tmp_path / "src", tmp_path / "out", caption_column="title")
    assert captions(titled)["s.tar/7.jpg"] == "f"


def test_dots_in_names_lose_no_picture(tmp_path: Path) -> None:
    members = [
        pair for n in range(4) for pair in ((f"photo v1.5_{n}.jpg", P[n]), (f"photo v1.5_{n}.txt", b"toy %d" % n))
    ]
    result = ingest(shard(tmp_path / "src", members), tmp_path / "out")
    assert captions(result) == {f"s.tar/photo v1.5_{n}.jpg": f"toy {n}" for n in range(4)}


def test_which_member_is_the_picture_is_a_setting_that_the_message_names(tmp_path: Path) -> None:
    members = [("0.left.jpg", P[0]), ("0.right.jpg", P[1]), ("0.json", b'{"caption": "a toy"}')]
    members += [("1.input.jpg", P[2]), ("1.outputs.txt", b"a boot")]
    source = shard(tmp_path / "src", members)
    result = ingest(source, tmp_path / "out")
    assert result.report["quarantined"] == {"ambiguous_image": 3} and result.report["in"] == 3
    message = excluded_of(result)["s.tar/0.left.jpg"]["message"]
    assert message.startswith(
        "the sample has the members .left.jpg, .right.jpg, .json: say which is its picture with --set"
    )
    assert "preprocess.ingest.image_member=left.jpg" in message
    left = ingest(source, tmp_path / "out", image_member="left.jpg")
    assert captions(left) == {"s.tar/0.left.jpg": "a toy"} and left.report["quarantined"] == {"missing_image": 1}
    given = ingest(source, tmp_path / "out", image_member="*.jpg", caption_member="outputs.txt")
    assert captions(given) == {"s.tar/1.input.jpg": "a boot"} and given.report["quarantined"] == {"ambiguous_image": 2}
    with pytest.raises(ValueError, match=r"ingest\.image_member is about the members of tar shards"):
        ingest(write(tmp_path / "folder", {"a.jpg": P[0]}), tmp_path / "out", image_member="left.jpg")


def test_of_two_formats_none_is_taken_by_its_order(tmp_path: Path) -> None:
    members = [
        ("0.png", png(picture(9))),
        ("0.jpg", P[0]),
        ("0.txt", b"a toy"),
        ("1.jpg", P[1]),
        ("1.png", png(picture(8))),
    ]
    source = shard(tmp_path / "src", members)
    result = ingest(source, tmp_path / "out")
    assert result.report["quarantined"] == {"ambiguous_image": 4} == {"ambiguous_image": result.report["in"]}
    chosen = ingest(source, tmp_path / "out", image_member="jpg")
    assert table_of(chosen)["image"].to_pylist() == [P[0], P[1]]


def test_a_picture_beside_the_one_that_is_read_is_counted(tmp_path: Path) -> None:
    members = [("a.jpg", P[0]), ("a.seg.jpg", P[1]), ("a.raw", P[4])]
    members += [("b.jpg", P[2]), ("b.tiff", b"II*\0"), ("c.jpg", P[3])]
    source = shard(tmp_path / "src", members)
    report = ingest(source, tmp_path / "out", caption_column=None).report
    assert report["kept"] == 3 and report["noted"]["with_another_picture"] == 3
    others = ["s.tar/a.jpg (and .raw)", "s.tar/a.jpg (and .seg.jpg)", "s.tar/b.jpg (and .tiff)"]
    assert report["first"]["with_another_picture"] == others
    chosen = ingest(source, tmp_path / "out", image_member="jpg").report
    assert chosen["kept"] == 3 and "with_another_picture" not in chosen["noted"]


def test_numbered_pictures_are_samples_of_their_own(tmp_path: Path) -> None:
    members = [("photo.jpg", P[0]), ("photo.txt", b"a toy")]
    members += [pair for n in range(1, 6) for pair in ((f"photo.{n}.jpg", P[n]), (f"photo.{n}.txt", b"a boot"))]
    result = ingest(shard(tmp_path / "src", members), tmp_path / "out")
    assert captions(result) == {
        "s.tar/photo.jpg": "a toy",
        **{f"s.tar/photo.{n}.jpg": "a boot" for n in range(1, 6)},
    }


@pytest.mark.parametrize("setting", ["jpg", "*.jpg"])
def test_names_with_dots_have_a_setting_that_the_message_names(tmp_path: Path, setting: str) -> None:
    members = [
        pair
        for n in range(4)
        for pair in ((f"v1.5_{n}.jpg", P[n]), (f"v1.5_{n}.png", png(picture(9))), (f"v1.5_{n}.txt", b"a toy"))
    ]
    source = shard(tmp_path / "src", members)
    result = ingest(source, tmp_path / "out")
    assert result.report["quarantined"] == {"ambiguous_image": 8} == {"ambiguous_image": result.report["in"]}
    message = excluded_of(result)["s.tar/v1.5_0.jpg"]["message"]
    assert "the members .jpg, .png, .txt" in message and "image_member=jpg," in message
    chosen = ingest(source, tmp_path / "out", image_member=setting)
    assert captions(chosen) == {f"s.tar/v1.5_{n}.jpg": "a toy" for n in range(4)}
    one_format = shard(tmp_path / "jpg", [member for member in members if not member[0].endswith("png")])
    assert captions(ingest(one_format, tmp_path / "out", image_member=setting)) == captions(chosen)


def test_pictures_of_a_shard_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    members = [("0", P[0]), ("0.txt", b"a toy"), ("1.bin", P[1]), ("1.txt", b"a boot"), ("README", b"read me")]
    members += [("2.v1.bin", P[2]), ("2.v1.txt", b"a star")]
    result = ingest(shard(tmp_path / "src", members), tmp_path / "out")
    assert captions(result) == {"s.tar/0": "a toy", "s.tar/1.bin": "a boot", "s.tar/2.v1.bin": "a star"}
    assert result.report["dropped"] == {"no_extension": 1} and result.report["in"] == 4


def test_captions_named_after_the_whole_name_of_the_picture(tmp_path: Path) -> None:
    members = [
        ("0.jpg", P[0]),
        ("0.jpg.txt", b"a toy"),
        ("1.png", png(picture(1))),
        ("1.png.json", b'{"text": "a boot"}'),
    ]
    result = ingest(shard(tmp_path / "src", members), tmp_path / "out")
    assert captions(result) == {"s.tar/0.jpg": "a toy", "s.tar/1.png": "a boot"}


def test_what_systems_put_into_a_shard_is_no_picture(tmp_path: Path) -> None:
    members = [("a/0.jpg", P[0]), ("a/0.txt", b"a toy"), ("a/Thumbs.db", P[1]), ("a/@eaDir/0.jpg", P[2])]
    members += [("__MACOSX/a/._0.jpg", b"\0\5\x16\7"), ("a/.thumbnails/0.jpg", P[3]), ("a/.DS_Store", b"x")]
    result = ingest(shard(tmp_path / "src", members), tmp_path / "out")
    assert captions(result) == {"s.tar/a/0.jpg": "a toy"}
    assert result.report["dropped"] == {"system_file": 3, "hidden_file": 2} and result.report["in"] == 6


def test_each_of_two_pictures_of_one_name_is_counted(tmp_path: Path) -> None:
    members = [("0.JPG", P[0]), ("0.jpg", P[1]), ("0.txt", b"a toy"), ("1.jpg", P[2]), ("1.txt", b"a"), ("1.txt", b"b")]
    result = ingest(shard(tmp_path / "src", members), tmp_path / "out")
    assert result.report["quarantined"] == {"duplicate_key": 3} and result.report["in"] == 3
    messages = [row["message"] for row in excluded_of(result).values()]
    assert messages.count("the sample has 2 members .jpg") == 2


def test_members_of_a_sample_that_stand_apart_are_joined(tmp_path: Path) -> None:
    members = [(f"{n}.jpg", P[n]) for n in range(4)] + [(f"{n}.txt", b"toy %d" % n) for n in range(4)]
    result = ingest(shard(tmp_path / "src", members), tmp_path / "out")
    assert captions(result) == {f"s.tar/{n}.jpg": f"toy {n}" for n in range(4)}


def test_a_picture_of_an_unknown_extension_in_a_sample(tmp_path: Path) -> None:
    members = [("0.image", P[0]), ("0.txt", b"a toy"), ("1.cls", b"7")]
    result = ingest(shard(tmp_path / "src", members), tmp_path / "out")
    assert captions(result) == {"s.tar/0.image": "a toy"} and result.report["quarantined"] == {"missing_image": 1}


# what img2dataset writes


def test_img2dataset_shards(tmp_path: Path) -> None:
    source = write(
        tmp_path / "src", {"00000.tar": tar_bytes(sample("000000000", P[0], "a dog")), "00000_stats.json": "{}"}
    )
    pq.write_table(
        pa.table({"url": ["http://x"], "caption": ["a dog"], "key": ["000000000"]}), source / "00000.parquet"
    )
    result = ingest(source, tmp_path / "out")
    assert captions(result) == {"00000.tar/000000000.jpg": "a dog"} and result.report["files"] == {
        "read": 1,
        "beside": 2,
    }
    accounted(source, result.report)
    (source / "00000.parquet").rename(source / "extra.parquet")
    with pytest.raises(
        ValueError, match=r"1 of webdataset, 1 of parquet: .* --set preprocess\.ingest\.source=webdataset or"
    ):
        ingest(source, tmp_path / "out")
    named = ingest(source, tmp_path / "out", source=SourceKind.WEBDATASET)
    assert not_read(named.report) == {".parquet": 1}
    accounted(source, named.report)


def test_img2dataset_files(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"00000/0.jpg": P[0], "00000/0.txt": "a dog", "00000/0.json": '{"caption": "x"}'}
    source = write(tmp_path / "src", {**files, "00000_stats.json": "{}"})
    pq.write_table(pa.table({"url": ["http://x"], "caption": ["a dog"], "key": ["0"]}), source / "00000.parquet")
    result = ingest(source, tmp_path / "out")
    assert captions(result) == {"00000/0.jpg": "a dog"} and not_read(result.report) == {}
    accounted(source, result.report)


def test_bytes_win_over_a_url_beside_them(tmp_path: Path) -> None:
    source = write(tmp_path / "src", {"00000_stats.json": "{}"})
    table = pa.table({"key": ["0"], "caption": ["a dog"], "jpg": [P[0]], "url": ["http://127.0.0.1:9/0.jpg"]})
    pq.write_table(table, source / "00000.parquet")
    result = ingest(source, tmp_path / "out")
    assert captions(result) == {"00000.parquet#0": "a dog"}
    accounted(source, result.report)


# tables of pictures


def test_several_captions_of_a_row(tmp_path: Path) -> None:
    table = pa.table({"image": [{"bytes": P[0], "path": None}] * 2, "caption": [["a", "a longer one"], []]})
    source = write(tmp_path / "src", {"x": ""})
    pq.write_table(table, source / "t.parquet")
    assert captions(ingest(source, tmp_path / "out")) == {"t.parquet#0": "a", "t.parquet#1": None}
    each = ingest(source, tmp_path / "out", caption_rule=CaptionRule.EACH)
    assert captions(each) == {"t.parquet#0": "a", "t.parquet#0#caption1": "a longer one", "t.parquet#1": None}


@pytest.mark.parametrize("rule", list(CaptionRule))
def test_a_list_of_a_million_captions(rule: CaptionRule, tmp_path: Path) -> None:
    texts = [f"toy {number}" for number in range(1_000_000)]
    table = pa.table({"image": [P[0], P[1]], "caption": pa.array([texts, ["one"]])})
    (tmp_path / "src").mkdir()
    pq.write_table(table, tmp_path / "src/t.parquet")
    result = ingest(tmp_path / "src", tmp_path / "out", caption_rule=rule)
    many = rule is CaptionRule.EACH
    assert result.report["in"] == 2 and result.report["quarantined"] == ({"too_many_captions": 1} if many else {})
    assert captions(result)["t.parquet#1"] == "one"
    assert many or captions(result)["t.parquet#0"] == ("toy 0" if rule is CaptionRule.FIRST else "toy 100000")


def test_pictures_in_base64(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = [base64.b64encode(P[0]).decode(), "data:image/jpeg;base64," + base64.b64encode(P[1]).decode(), "no base64!"]
    source = write(tmp_path / "src", {"x": ""})
    pq.write_table(
        pa.table({"image": texts, "caption": list("abc"), "url": ["http://127.0.0.1:9/x"] * 3}), source / "t.parquet"
    )
    with caplog.at_level("INFO"):
        result = ingest(source, tmp_path / "out")
    assert table_of(result)["image"].to_pylist() == P[:2] and result.report["quarantined"] == {"unreadable_image": 1}
    assert "t.parquet: the column 'image' is read as pictures in base64" in caplog.text


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (pa.binary_view(), pa.string_view()),  # as Polars writes them
        (pa.dictionary(pa.int32(), pa.binary()), pa.dictionary(pa.int32(), pa.string())),
        (pa.large_binary(), pa.large_string()),
    ],
)
def test_columns_of_any_type_of_bytes_and_text(image: pa.DataType, text: pa.DataType, tmp_path: Path) -> None:
    source = write(tmp_path / "src", {"x": ""})
    columns = {"jpg": pa.array(P[:2], image), "txt": pa.array(["a dog", "a cat"], text)}
    pq.write_table(pa.table(columns), source / "t.parquet")
    result = ingest(source, tmp_path / "out")
    assert table_of(result)["image"].to_pylist() == P[:2]
    assert captions(result) == {"t.parquet#0": "a dog", "t.parquet#1": "a cat"}


def test_names_of_files_in_a_table(tmp_path: Path) -> None:
    source = write(tmp_path / "src", {"img/0.jpg": P[0]})
    pq.write_table(pa.table({"image": ["img/0.jpg", "img/9.jpg"], "caption": ["a dog", "b"]}), source / "meta.parquet")
    result = ingest(source, tmp_path / "out")
    assert captions(result) == {"img/0.jpg": "a dog"} and result.report["table_rows_without_picture"]["rows"] == 1
    accounted(source, result.report)
    with pytest.raises(ValueError, match=r"meta\.parquet holds the names of files, and no pictures lie beside it"):
        ingest(source / "meta.parquet", tmp_path / "out")


def test_usual_names_of_columns_are_found_in_any_case() -> None:
    usual = ("caption", "text")
    assert find_column(["URL", "TEXT"], "caption", usual) == "TEXT"
    assert find_column(["text", "Caption"], "caption", usual) == "Caption"
    assert find_column(["TEXT"], "title", usual) is None and find_column(["x"], None, usual) is None


# units


def test_one_more_picture_redoes_one_unit(tmp_path: Path) -> None:
    names = [f"img/{number:05d}.jpg" for number in range(3000)]
    before = {tuple(unit) for unit in cut_by_names(names, 64, str)}
    assert all(len(unit) <= 64 for unit in before) and 3000 / 64 < len(before) < 3000 / 16
    for more in ("img/!.jpg", "img/01234x.jpg", "zzz.jpg"):
        named = sorted([*names, more])
        after = {tuple(unit) for unit in cut_by_names(named, 64, str)}
        assert len(after - before) <= 2 and sum((more in unit) for unit in after) == 1
    assert [len(unit) for unit in cut_by_names(names[:5], 1, str)] == [1] * 5
    source = write(tmp_path / "src", {f"{number}.jpg": P[number] for number in range(8)})
    first = ingest(source, tmp_path / "out", unit_size=2)
    write(source, {"!.jpg": jpeg(picture(50))})
    again = ingest(source, tmp_path / "out", unit_size=2)
    assert again.report["kept"] == 9 and again.units_run <= 2 < first.units_run


def test_long_names_give_units_of_their_own(tmp_path: Path) -> None:
    source = write(tmp_path / "src", {f"{'x' * 200}{n}.tar": tar_bytes(sample("0", P[n])) for n in range(2)})
    result = ingest(source, tmp_path / "out")
    assert result.report["kept"] == 2 and all(len(path.name) < 200 for path in Path(result.directory).rglob("*"))


def test_one_form_of_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "src 50%20", {"a.jpg": P[0]})
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep/er")
    monkeypatch.chdir(tmp_path)
    forms = [
        str(source),
        f"{source}/",
        f"{source}/../{source.name}",
        source.name,
        f"./{source.name}//",
        f"file://{source}",
    ]
    forms.append(f"deep/../{source.name}")
    assert {open_corpus(form, PreprocessSettings(), Store()).upstream for form in forms} == {f"corpus {source}"}
    assert ingest(Path("link/../..") / source.name, tmp_path / "out").report["kept"] == 1  # above the link's target


@pytest.mark.parametrize("uri", ["gs://bucket/x", "hf://datasets/x", "https://example.org/x"])
def test_what_is_no_source_is_said_at_once(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{uri}: \w+:// is not read or written here: use .*s3://"):
        ingest(uri, tmp_path / "out")  # type: ignore[arg-type]


def test_a_tar_with_links_and_folders_counts_its_members(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("0.jpg")
        info.size = len(P[0])
        archive.addfile(info, io.BytesIO(P[0]))
    source = write(tmp_path / "src", {"s.tar.gz": buffer.getvalue(), "photo.png": encoded(picture(0), "PNG")})
    with pytest.raises(ValueError, match=r"1 of webdataset, 1 of pictures"):
        ingest(source, tmp_path / "out")
