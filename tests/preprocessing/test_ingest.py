"""`ingest` over its sources: every sample is kept, or excluded for its true reason."""

from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from realcustom.preprocessing import tables
from realcustom.preprocessing.catalogue import INGEST, SCORE, SELECT
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.ingest import parquet, table_rows
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import IngestSettings, PreprocessSettings, SourceKind
from realcustom.record import picture_uid
from realcustom.storage import list_files
from realcustom.store import Store
from tests.support.corpora import encoded, jpeg, picture, png, sample, tar_bytes, write_shards
from tests.support.stages import excluded_of, ingest, table_of


def test_webdataset_rows_are_what_the_samples_are(tmp_path: Path) -> None:
    data = jpeg(picture(0, (48, 40)))
    members = sample("a", data, " a toy\n", "group-1") | sample("b", data, "") | sample("c", data, None)
    (tmp_path / "src/sub").mkdir(parents=True)
    (tmp_path / "src/sub/shard-0.tar").write_bytes(tar_bytes(members))
    rows = table_of(ingest(tmp_path / "src", tmp_path / "out")).to_pylist()
    assert [row["key"] for row in rows] == [f"sub/shard-0.tar/{key}.jpg" for key in "abc"]
    assert rows[0]["uid"] == picture_uid("sub/shard-0.tar/a.jpg")
    assert (rows[0]["width"], rows[0]["height"], rows[0]["image"]) == (48, 40, data)
    assert [row["alt_text"] for row in rows] == ["a toy", "", None]
    assert [row["view_group"] for row in rows] == ["group-1", None, None]


def test_each_corrupted_sample_is_under_its_reason(tmp_path: Path) -> None:
    good = jpeg(picture(0))
    members = [
        *sample("good", good).items(),
        *sample("cut", good[: len(good) * 2 // 3]).items(),
        *sample("text", b"<html>").items(),
        ("lonely.txt", b"a caption without a picture"),
        *sample("latin", good).items(),
        *sample("json", good).items(),
        ("json.json", b"{"),
        *sample("bomb", encoded(Image.new("L", (3000, 3000)), "PNG")).items(),
        *sample("big", good + b"\0" * 70_000).items(),
        *sample("good2", good).items(),
        *sample("good", good).items(),
    ]
    members[[name for name, _ in members].index("latin.txt")] = ("latin.txt", "café".encode("latin-1"))
    (tmp_path / "src").mkdir()
    (tmp_path / "src/s.tar").write_bytes(tar_bytes(members))
    result = ingest(tmp_path / "src", tmp_path / "out", max_pixels=10**6, max_bytes=60_000)
    reasons = {key: row["reason"] for key, row in excluded_of(result).items()}
    assert reasons == {
        "s.tar/cut.jpg": "truncated_image",
        "s.tar/text.jpg": "unreadable_image",
        "s.tar/lonely": "missing_image",
        "s.tar/latin.jpg": "unreadable_caption",
        "s.tar/json.jpg": "unreadable_json",
        "s.tar/bomb.jpg": "decompression_bomb",
        "s.tar/big.jpg": "too_many_bytes",
        "s.tar/good.jpg": "duplicate_key",
    }
    assert result.report["in"] == 10 and result.report["kept"] == 2


def test_every_member_of_a_sample_is_kept(tmp_path: Path) -> None:
    data = jpeg(picture(0))
    members = [("x/a.cls", b"7"), ("x/a.JPG", data), ("x/a.seg.png", b"\0\xff"), ("x/a.txt", b" a toy\r\n")]
    (tmp_path / "src").mkdir()
    (tmp_path / "src/s.tar").write_bytes(tar_bytes(members))
    (row,) = table_of(ingest(tmp_path / "src", tmp_path / "out")).to_pylist()
    assert (row["key"], row["alt_text"], row["image"]) == ("s.tar/x/a.jpg", "a toy", data)
    found = [(member["name"], member["data"]) for member in row["members"]]
    assert found == [(name, None if name == "x/a.JPG" else content) for name, content in members]


def test_a_sample_that_could_not_be_written_back_is_not_kept_in_part(tmp_path: Path) -> None:
    good = jpeg(picture(0))
    members = [
        *[("twice.jpg", good), ("twice.txt", b"one"), ("twice.txt", b"two")],
        *[("large.jpg", good), ("large.mp4", b"\0" * 70_000)],
        *[("scan.tiff", encoded(picture(1), "TIFF")), ("scan.txt", b"a scan")],
        *[("both.tiff", encoded(picture(1), "TIFF")), ("both.jpg", good)],
    ]
    (tmp_path / "src").mkdir()
    (tmp_path / "src/s.tar").write_bytes(tar_bytes(members))
    result = ingest(tmp_path / "src", tmp_path / "out", max_bytes=60_000)
    excluded = excluded_of(result)
    assert {key: row["reason"] for key, row in excluded.items()} == {
        "s.tar/twice.jpg": "duplicate_key",
        "s.tar/large.jpg": "too_many_bytes",
        "s.tar/scan.tiff": "unsupported_format",
    }
    assert excluded["s.tar/large.jpg"]["message"] == ".mp4 has 70000 bytes, more than ingest.max_bytes=60000"
    assert table_of(result)["key"].to_pylist() == ["s.tar/both.jpg"]


@pytest.mark.parametrize(
    ("beside", "reason"),
    [(rb'{"caption": "a duck \ud83d"}', "unreadable_caption"), (rb'{"view_group": "\udc00"}', "unreadable_text")],
)
def test_half_a_character_beside_a_picture_is_a_fault_of_its_row(beside: bytes, reason: str, tmp_path: Path) -> None:
    whole = rb'{"caption": "a duck \ud83e\udd86"}'  # both halves of one
    members = {"a.jpg": jpeg(picture(0)), "a.json": beside, "b.jpg": jpeg(picture(1)), "b.json": whole}
    (tmp_path / "src").mkdir()
    (tmp_path / "src/s.tar").write_bytes(tar_bytes(members))
    result = ingest(tmp_path / "src", tmp_path / "out")
    assert {key: row["reason"] for key, row in excluded_of(result).items()} == {"s.tar/a.jpg": reason}
    assert table_of(result)["alt_text"].to_pylist() == ["a duck \U0001f986"]
    assert result.report["in"] == 2


@pytest.mark.parametrize("template", [None, "a {stem}"])
def test_a_picture_whose_name_is_no_text_is_quarantined(template: str | None, tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for number, name in enumerate([b"a.jpg", b"caf\xe9.jpg", "caf\u00e9.jpg".encode()]):
        (source / os.fsdecode(name)).write_bytes(jpeg(picture(number)))
    result = ingest(source, tmp_path / "out", caption_template=template)
    assert table_of(result)["key"].to_pylist() == ["a.jpg", "caf\u00e9.jpg"]
    assert {key: row["reason"] for key, row in excluded_of(result).items()} == {r"caf\udce9.jpg": "unreadable_text"}
    assert result.report["in"] == 3


def test_a_shard_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 1, 1).joinpath(os.fsdecode(b"caf\xe9.tar")).write_bytes(tar_bytes({}))
    with pytest.raises(ValueError, match=r"the name of 'caf\\udce9\.tar' in .* is not UTF-8: rename it"):
        ingest(tmp_path / "src", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_and_members_without_an_extension_are_accounted_for(tmp_path: Path) -> None:
    files = [("good.jpg", jpeg(picture(0))), ("good.txt", b"a toy"), ("README", b"read me"), ("x/.hidden", b"")]
    files += [("captioned.jpg", jpeg(picture(1)))]
    links = [("captioned.txt", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("soft.jpg", tarfile.SYMTYPE)]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in [("folder.d", tarfile.DIRTYPE), *((name, tarfile.REGTYPE) for name, _ in files), *links]:
            info = tarfile.TarInfo(name)
            data = dict(files).get(name, b"")
            info.type, info.size, info.linkname = kind, len(data), "good.jpg" if (name, kind) in links else ""
            archive.addfile(info, io.BytesIO(data))
    (tmp_path / "src").mkdir()
    (tmp_path / "src/s.tar").write_bytes(buffer.getvalue())
    result = ingest(tmp_path / "src", tmp_path / "out")
    assert table_of(result)["key"].to_pylist() == ["s.tar/good.jpg"]
    excluded = excluded_of(result)
    assert {key: row["reason"] for key, row in excluded.items()} == {
        "s.tar/README": "no_extension",
        "s.tar/x/.hidden": "hidden_file",
        "s.tar/captioned.jpg": "link",
        "s.tar/hard.jpg": "link",
        "s.tar/soft.jpg": "link",
    }
    assert excluded["s.tar/captioned.jpg"]["message"] == ".txt is a link to good.jpg, and only files are read"
    report = result.report
    assert (report["in"], report["dropped"], report["quarantined"]) == (
        6,
        {"no_extension": 1, "hidden_file": 1},
        {"link": 3},
    )


def test_a_torn_tar_is_one_excluded_sample_that_names_the_byte(tmp_path: Path) -> None:
    members = sample("a", jpeg(picture(0))) | sample("b", jpeg(picture(1))) | sample("c", jpeg(picture(2)))
    whole = tar_bytes(members)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/s.tar").write_bytes(whole[: whole.index(b"c.jpg") + 700])
    result = ingest(tmp_path / "src", tmp_path / "out")
    assert table_of(result)["key"].to_pylist() == ["s.tar/a.jpg", "s.tar/b.jpg"]  # the header of "c" closed "b"
    assert result.report["in"] == 3 and result.report["quarantined"] == {"torn_tar": 1}
    ((key, row),) = excluded_of(result).items()
    assert key == f"s.tar@{whole.index(b'c.jpg')}" and "torn at byte" in row["message"]


def test_a_sample_that_no_following_key_closes_belongs_to_the_tear(tmp_path: Path) -> None:
    whole = tar_bytes(sample("a", jpeg(picture(0))) | sample("b", jpeg(picture(1))) | sample("c", jpeg(picture(2))))
    (tmp_path / "src").mkdir()
    (tmp_path / "src/s.tar").write_bytes(whole[: whole.index(b"c.jpg") + 100])  # in the middle of the header
    result = ingest(tmp_path / "src", tmp_path / "out")
    assert table_of(result)["key"].to_pylist() == ["s.tar/a.jpg"]
    assert result.report["in"] == 2 and result.report["quarantined"] == {"torn_tar": 1}


def test_accounts_close_over_random_mixes(tmp_path: Path) -> None:
    good = jpeg(picture(0))
    makers = {
        "kept": lambda: good,
        "truncated_image": lambda: good[:-80],
        "unreadable_image": lambda: b"nothing",
        "missing_image": None,
    }
    for seed in range(8):
        rng = random.Random(seed)
        source = tmp_path / f"src{seed}"
        source.mkdir()
        expected = dict.fromkeys(makers, 0)
        for shard in range(rng.randint(1, 3)):
            members: dict[str, bytes] = {}
            for number in range(rng.randint(0, 12)):
                kind = rng.choice(list(makers))
                expected[kind] += 1
                make = makers[kind]
                members |= {f"{number}.txt": b"x"} if make is None else sample(str(number), make())
            (source / f"{shard}.tar").write_bytes(tar_bytes(members))
        report = ingest(source, tmp_path / f"out{seed}").report
        kept = expected.pop("kept")
        assert report["kept"] == report["rows_out"] == kept
        assert report["quarantined"] == {fault: number for fault, number in expected.items() if number}
        assert report["in"] == kept + sum(expected.values())


@pytest.mark.parametrize("as_struct", [False, True])
def test_parquet_source(tmp_path: Path, as_struct: bool) -> None:
    pictures = [png(picture(0)), b"broken", None, png(picture(1))]
    images = [{"bytes": data, "path": "x"} for data in pictures] if as_struct else pictures
    (tmp_path / "src").mkdir()
    source = pa.table({"jpg": images, "text": ["a", "b", "c", None]})
    pq.write_table(source, tmp_path / "src/t.parquet", row_group_size=3)
    settings = {"image_column": "jpg", "caption_column": "text"}
    result = ingest(tmp_path / "src", tmp_path / "out", **settings)
    assert table_of(result)["key"].to_pylist() == ["t.parquet#0", "t.parquet#3"]
    assert table_of(result)["alt_text"].to_pylist() == ["a", None]
    assert result.report["in"] == 4
    assert result.report["quarantined"] == {"unreadable_image": 1, "missing_image": 1}


def test_parquet_source_without_the_column_says_which_there_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"scan": [b""], "title": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(
        ValueError, match=r"no column 'image' but scan, title; --set preprocess\.ingest\.image_column=NAME"
    ):
        ingest(tmp_path, tmp_path / "out")


def test_a_later_table_without_the_column_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for name, column in (("a", "caption"), ("b", "title")):
        pq.write_table(pa.table({"image": [png(picture(0))], column: ["a toy"]}), tmp_path / f"src/{name}.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet has no column 'caption' but image, title"):
        ingest(tmp_path / "src", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_pixels_than_pillow_opens_are_refused_at_once() -> None:
    assert IngestSettings(max_pixels=178_956_970).max_pixels == 178_956_970
    with pytest.raises(ValueError, match=r"ingest\.max_pixels=178956971: Pillow opens no picture above 178956970"):
        IngestSettings(max_pixels=178_956_971)


def test_a_broken_row_group_is_quarantined_row_by_row(tmp_path: Path) -> None:
    images = [np.random.default_rng(i).bytes(3000) for i in range(6)]
    images[:2] = [png(picture(0)), png(picture(1))]
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"image": images, "caption": ["x"] * 6}),
        path,
        row_group_size=2,
        compression="zstd",
        use_dictionary=False,
    )
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(bytes(data))
    report = ingest(tmp_path, tmp_path / "out").report
    assert report["in"] == 6 and report["kept"] == 2
    assert report["quarantined"] == {"torn_table": 2, "unreadable_image": 2}


@pytest.mark.parametrize("group", [3, 100])
def test_a_large_table_is_read_in_units_of_some_rows(
    group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [png(picture(number)) for number in range(11)]
    (tmp_path / "src").mkdir()
    path = tmp_path / "src/t.parquet"
    pq.write_table(pa.table({"image": pictures, "caption": list("abcdefghijk")}), path, row_group_size=group)
    whole = table_of(ingest(tmp_path / "src", tmp_path / "whole")).to_pylist()
    monkeypatch.setattr(parquet, "UNIT_BYTES", path.stat().st_size // 5)
    monkeypatch.setattr(table_rows, "_BATCH_ROWS", 2)
    result = ingest(tmp_path / "src", tmp_path / "out")
    assert result.units_run == 4 and table_of(result).to_pylist() == whole and len(whole) == 11


def test_a_row_group_that_several_units_are_of_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"image": [png(picture(number)) for number in range(12)]}), tmp_path / "t.parquet")
    monkeypatch.setattr(parquet, "UNIT_BYTES", (tmp_path / "t.parquet").stat().st_size // 4)
    units = parquet.table_units(list_files(tmp_path)[0], Store())
    assert [unit.first for unit in units] == [0, 3, 6, 9]
    opened: list[int] = []
    real = table_rows._open

    def counting(unit: Unit, store: Store) -> pq.ParquetFile:
        opened.append(unit.first)
        return real(unit, store)

    monkeypatch.setattr(table_rows, "_open", counting)
    reader = table_rows.TableReader(Store())
    settings = IngestSettings(caption_column=None)
    keys = [[key for key, _ in parquet.read_table(unit, settings, reader)] for unit in units]
    assert opened == [0] and [key for unit in keys for key in unit] == [f"t.parquet#{number}" for number in range(12)]
    # one that another worker goes on with, and one out of order
    assert [key for key, _ in parquet.read_table(units[2], settings, reader)] == keys[2]
    assert [key for key, _ in parquet.read_table(units[1], settings, reader)] == keys[1]
    assert opened == [0, 6, 3]


def test_of_a_torn_row_group_the_rows_after_the_tear_are_faults_whoever_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [np.random.default_rng(number).bytes(3000) for number in range(8)]
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"image": images}),
        path,
        use_dictionary=False,
        compression="zstd",
        data_page_size=3000,
        write_batch_size=2,
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = b"\xff" * 4000
    path.write_bytes(bytes(data))
    monkeypatch.setattr(parquet, "UNIT_BYTES", len(data) // 4)
    monkeypatch.setattr(table_rows, "_BATCH_ROWS", 2)
    units = parquet.table_units(list_files(tmp_path)[0], Store())
    reader, settings = table_rows.TableReader(Store()), IngestSettings(caption_column=None)
    together = [[(key, str(found)) for key, found in parquet.read_table(unit, settings, reader)] for unit in units]
    alone = [
        [(key, str(found)) for key, found in parquet.read_table(unit, settings, table_rows.TableReader(Store()))]
        for unit in units
    ]
    assert together == alone and len(units) == 4
    faults = [text for unit in together for _, text in unit if "torn_table" in text or "row group 0" in text]
    assert 0 < len(faults) < 8


def test_a_torn_table_is_quarantined_wherever_it_stands(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(picture(0))], "caption": ["a"]}), tmp_path / "b.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.parquet").write_bytes(b"")
    length = int.from_bytes(whole[-8:-4], "little")
    for name, bad in (("a0", b"\xff" * length), ("d", b"\0" * length)):  # a footer that is there and is none
        (tmp_path / f"{name}.parquet").write_bytes(whole[: -8 - length] + bad + whole[-8:])
    report = ingest(tmp_path, tmp_path / "out").report
    assert (report["in"], report["kept"], report["quarantined"]) == (5, 1, {"torn_table": 4})
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(ValueError, match=r"none of 4 \.parquet files can be read as such; a\.parquet: "):
        ingest(tmp_path, tmp_path / "out")


def test_a_long_footer_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_FOOTER", 16)
    schema = pa.schema([pa.field(f"column_{number}", pa.int64()) for number in range(50)])
    pq.write_table(schema.empty_table(), tmp_path / "t.parquet")
    assert tables.read_schema(str(tmp_path / "t.parquet")).equals(schema)


def test_captions_of_a_table_that_are_not_utf_8_are_quarantined(tmp_path: Path) -> None:
    texts = pa.array([b"a caf\xc3\xa9", b"caf\xe9", None], pa.binary())
    texts = pa.StringArray.from_buffers(len(texts), *texts.buffers()[1:], texts.buffers()[0])
    table = pa.table({"image": [png(picture(seed)) for seed in range(3)], "caption": texts})
    pq.write_table(table, tmp_path / "t.parquet")
    result = ingest(tmp_path, tmp_path / "out")
    assert table_of(result)["alt_text"].to_pylist() == ["a café", None]
    assert result.report["quarantined"] == {"unreadable_caption": 1}
    pq.write_table(table.set_column(1, "caption", pa.array([[7]] * 3)), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet: the column 'caption' holds list<.*>, expected text"):
        ingest(tmp_path, tmp_path / "out")


def test_pictures_that_are_not_decoded_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "b.tif").write_bytes(encoded(picture(0), "TIFF"))
    (tmp_path / "c.jpg").write_bytes(jpeg(picture(0)))
    (tmp_path / "d.jfif").write_bytes(jpeg(picture(1)))
    result = ingest(tmp_path, tmp_path / "out")
    assert (result.report["in"], result.report["kept"]) == (4, 2)
    assert result.report["quarantined"] == {"unsupported_format": 2}
    assert excluded_of(result)["a.HEIC"]["message"] == "pictures in .heic are not decoded; convert them before"


def test_folder_of_pictures_with_captions_beside_them(tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "cats").mkdir(parents=True)
    for number, name in enumerate(["cats/a.jpg", "cats/b.PNG", "c.webp", "d.jpeg"]):
        kind = {"jpg": "JPEG", "PNG": "PNG", "webp": "WEBP", "jpeg": "JPEG"}[name.rpartition(".")[2]]
        (source / name).write_bytes(encoded(picture(number), kind))
    (source / "cats/a.txt").write_text("a cat\n")
    for name in ("prompts.json", "list.csv", ".hidden.jpg", "notes.txt"):
        (source / name).write_text("not a picture")
    result = ingest(source, tmp_path / "out", unit_size=3)
    table = table_of(result)
    assert table["key"].to_pylist() == ["c.webp", "cats/a.jpg", "cats/b.PNG", "d.jpeg"]
    assert table["alt_text"].to_pylist() == [None, "a cat", None, None]
    assert result.report["units"] == 2 and result.report["in"] == 4


def test_photographs_pass_through_the_stages_without_models(tmp_path: Path) -> None:
    photos = Path(__file__).parents[1] / "data/photos"
    settings = PreprocessSettings()
    directory = str(photos)
    for stage in (INGEST, SCORE, SELECT):
        result = run_stage(stage, directory, str(tmp_path), settings, executor=InProcess())
        directory = result.directory
        assert result.report["in"] == result.report["kept"] == 3
    assert min(row["scores"]["sharpness"] for row in table_of(result).to_pylist()) > 0


def test_a_mixture_of_sources_is_refused_until_one_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 1, 1)
    (tmp_path / "src/x.jpg").write_bytes(jpeg(picture(0)))
    with pytest.raises(
        ValueError, match=r"1 of webdataset, 1 of pictures: .* --set preprocess\.ingest\.source=webdataset"
    ):
        ingest(tmp_path / "src", tmp_path / "out")
    assert ingest(tmp_path / "src", tmp_path / "out", source=SourceKind.PICTURES).report["in"] == 1


def test_many_quarantined_rows_stop_the_job(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    members: dict[str, bytes] = {}
    for number in range(30):
        members |= sample(str(number), b"broken" if number < 12 else jpeg(picture(number)))
    (tmp_path / "src/s.tar").write_bytes(tar_bytes(members))
    with pytest.raises(ValueError, match=r"12 of 30 rows are quarantined \(unreadable_image 12\)"):
        run_stage(INGEST, str(tmp_path / "src"), str(tmp_path / "out"), PreprocessSettings(), executor=InProcess())
    assert not list((tmp_path / "out").rglob("report.json"))
