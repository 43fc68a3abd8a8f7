"""Corpora that are corrupted in every known way at once: each sample is kept or excluded for its true reason."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from realcustom.errors import UsageError
from realcustom.preprocessing.catalogue import INGEST, SCORE, SELECT
from realcustom.preprocessing.engine.ledger import ExcludedRow, RowLedger
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.errors import DataError, DataFault, StageBug, naming
from realcustom.preprocessing.pictures import decode
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.settings import ExecutionSettings, IngestSettings, PreprocessSettings, SelectSettings
from tests.support.corpora import encoded, jpeg, picture, png, sample, tar_bytes
from tests.support.stages import excluded_of, table_of

LATIN = "café".encode("latin-1")
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)  # how such a file begins


def run(stage: Stage, source: str | Path, output: Path) -> StageResult:
    settings = PreprocessSettings(
        ingest=IngestSettings(max_pixels=10**6, max_bytes=100_000),
        select=SelectSettings(min_side=16),
        execution=ExecutionSettings(max_error_fraction=1.0),
    )
    return run_stage(stage, str(source), str(output), settings, executor=InProcess())


def odd_but_sound() -> dict[str, bytes]:
    """Pictures that are to be kept, whatever they look like: name -> bytes."""
    image, grey = picture(1), picture(1).convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = [picture(seed) for seed in (1, 2, 3)]
    return {
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "grey.jpg": encoded(grey, "JPEG"),
        "deep.png": encoded(deep, "PNG"),
        "palette.png": encoded(image.convert("P"), "PNG"),
        "bilevel.png": encoded(image.convert("1"), "PNG"),
        "clear.png": encoded(image.convert("RGBA"), "PNG"),
        "moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "moving.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "moving.png": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "a-png.jpg": png(image),  # a wrong extension is no fault of the picture
        "a-jpeg.webp": jpeg(image),
        "a-jpeg.heic": jpeg(image),
    }


def corrupted() -> dict[str, tuple[bytes, str]]:
    """Pictures that are not: name -> bytes, reason."""
    good = jpeg(picture(1))
    bomb = encoded(Image.new("1", (5000, 5000)), "PNG")
    return {
        "cut.jpg": (good[: len(good) * 2 // 3], "truncated_image"),
        "cut.png": (png(picture(1))[:-40], "truncated_image"),
        "empty.jpg": (b"", "unreadable_image"),
        "page.jpg": (b"<html>not found</html>", "unreadable_image"),
        "archive.jpg": (tar_bytes({"a.jpg": good}), "unreadable_image"),
        "scan.jpg": (encoded(picture(1), "TIFF"), "unreadable_image"),
        "bomb.png": (bomb, "decompression_bomb"),
        "large.jpg": (good + b"\0" * 100_000, "too_many_bytes"),
        "photo.heic": (HEIC, "unsupported_format"),
    }


def check_ledger(result: StageResult, kept: set[str], reasons: dict[str, str]) -> None:
    """The ledger is exact, row by row, in total, and in what was written."""
    report = result.report
    assert {key: row["reason"] for key, row in excluded_of(result).items()} == reasons
    table = table_of(result)
    assert set(table["key"].to_pylist()) == kept and table.num_rows == len(kept)
    assert report["quarantined"] == Counter(reasons.values()) and report["dropped"] == {}
    assert report["in"] == len(kept) + len(reasons) == report["kept"] + sum(report["quarantined"].values())


@pytest.mark.parametrize("source", ["folder", "webdataset", "parquet"])
def test_every_sample_is_kept_or_excluded_for_its_reason(source: str, tmp_path: Path) -> None:
    sound, bad = odd_but_sound(), corrupted()
    pictures = {**sound, **{name: data for name, (data, _) in bad.items()}}
    where = tmp_path / "src"
    where.mkdir()
    reasons = {name: reason for name, (_, reason) in bad.items()}
    names = {name: name for name in pictures}
    if source == "folder":
        for name, data in pictures.items():
            (where / name).write_bytes(data)
        (where / "grey.txt").write_bytes(LATIN)
        reasons |= {"grey.jpg": "unreadable_caption", "scan.jpg": "unsupported_format"}
    elif source == "webdataset":
        members = []
        for name, data in pictures.items():  # a name alone: two of them may differ in their extension only
            names[name] = f"s.tar/{name.replace('.', '-')}.{name.partition('.')[2]}"
            members += [(names[name].partition("/")[2], data), (f"{name.replace('.', '-')}.txt", b"a toy")]
        members[[name for name, _ in members].index("grey-jpg.txt")] = ("grey-jpg.txt", LATIN)
        reasons["grey.jpg"] = "unreadable_caption"
        (where / "s.tar").write_bytes(tar_bytes(members))
        (where / "empty.tar").write_bytes(b"")
        (where / "picture.tar").write_bytes(jpeg(picture(1)))
        names |= {"empty.tar@0": "empty.tar@0", "picture.tar@0": "picture.tar@0"}
        reasons |= {"empty.tar@0": "torn_tar", "picture.tar@0": "torn_tar"}
    else:
        reasons["photo.heic"] = "unreadable_image"  # a table has no extensions
        table = pa.table({"image": list(pictures.values()), "caption": ["a toy"] * len(pictures)})
        pq.write_table(table, where / "t.parquet", row_group_size=4)
        (where / "empty.parquet").write_bytes(b"")
        names = {name: f"t.parquet#{index}" for index, name in enumerate(pictures)}
        names["empty.parquet"], reasons["empty.parquet"] = "empty.parquet", "torn_table"
    ingested = run(INGEST, where, tmp_path / "out")
    kept = {names[name] for name in pictures if name not in reasons}
    check_ledger(ingested, kept, {names[name]: reason for name, reason in reasons.items()})
    scored = run(SCORE, ingested.directory, tmp_path / "out")
    assert scored.report["in"] == scored.report["kept"] == len(kept)  # what ingest kept can be decoded
    selected = run(SELECT, scored.directory, tmp_path / "out").report
    assert selected["in"] == len(kept) == selected["kept"] + sum(selected["dropped"].values())


def test_the_first_frame_of_a_moving_picture_is_the_picture() -> None:
    for name, data in odd_but_sound().items():
        if name.startswith("moving"):
            difference = np.asarray(decode(data)).astype(int) - np.asarray(picture(1))
            assert np.abs(difference).mean() < 12, name


def test_torn_tars_lose_what_the_tear_touches_and_no_more(tmp_path: Path) -> None:
    """Cut at 10 places, what is kept by Python's own reader of the whole archive."""
    members = [item for number in range(6) for item in sample(f"{number}", jpeg(picture(number))).items()]
    whole = tar_bytes(members)
    with tarfile.open(fileobj=io.BytesIO(whole)) as reader:
        archive = reader.getmembers()
    end = archive[-1].offset_data + archive[-1].size
    source = tmp_path / "src"
    source.mkdir()
    kept, torn = set(), set()
    for number, cut in enumerate(np.linspace(1, end - 1, 10).astype(int).tolist()):
        name = f"{number}.tar"
        (source / name).write_bytes(whole[:cut])
        complete = [member for member in archive if member.offset_data + member.size <= cut]
        last = max((member.name[0] for member in archive if member.offset + 512 <= cut), default="")
        kept |= {f"{name}/{member.name}" for member in complete if member.name.endswith(".jpg")}
        kept.discard(f"{name}/{last}.jpg")  # no following key closes it
        torn.add(f"{name}@{min(cut, archive[len(complete)].offset)}")
    check_ledger(run(INGEST, source, tmp_path / "out"), kept, dict.fromkeys(torn, "torn_tar"))


def test_an_excluded_row_holds_no_frame_and_so_no_picture() -> None:
    try:
        try:
            raise ValueError("of a decoder")
        except ValueError as error:
            raise DataError(DataFault.UNREADABLE_IMAGE, "broken") from error
    except DataError as why:
        row = ExcludedRow(uid="1", key="1.jpg", why=why)
    assert row.why.__traceback__ is None and row.why.__cause__ is None and row.why.__context__ is None
    assert row.to_dict() == {
        "uid": "1",
        "key": "1.jpg",
        "outcome": "quarantined",
        "reason": "unreadable_image",
        "message": "broken",
    }


def test_a_mistake_that_a_row_brings_to_light_names_the_row() -> None:
    with (
        pytest.raises(UsageError, match=r"^unit a, row 1: the mask is 2 x 2, the picture 4 x 4$"),
        naming("unit a, row 1"),
    ):
        raise UsageError("the mask is 2 x 2, the picture 4 x 4")


def pictures_table(*images: bytes | None) -> pa.Table:
    return pa.table(
        {"uid": [str(number) for number in range(len(images))], "image": pa.array(images, pa.large_binary())}
    )


@pytest.mark.parametrize("threads", [1, 4])
def test_pictures_are_prepared_one_batch_ahead_in_order_and_broken_ones_leave(threads: int) -> None:
    ledger = RowLedger(pictures_table(*[None if n == 3 else b"x" if n == 5 else b"%d" % n for n in range(9)]), "u")
    begun: list[int] = []

    def prepare(index: int, data: bytes) -> int:
        begun.append(index)
        if data == b"x":
            raise DataError(DataFault.UNREADABLE_IMAGE, "broken")
        return int(data)

    batches = ledger.prepared_batches(2, prepare, threads)
    assert next(batches) == ([0, 1], [0, 1])
    assert max(begun) <= 3
    assert list(batches) == [([2], [2]), ([4], [4]), ([6, 7], [6, 7]), ([8], [8])]
    assert [(row.uid, row.why.reason) for row in ledger.excluded] == [("3", "missing_image"), ("5", "unreadable_image")]


def test_rows_that_are_alike_come_in_the_same_batches() -> None:
    ledger = RowLedger(pictures_table(*[b"0"] * 7), "u")
    batches = [rows for rows, _ in ledger.prepared_batches(2, lambda index, data: 0, alike=lambda index: index % 3)]
    assert batches == [[0, 3], [6], [1, 4], [2, 5]]


def test_a_bug_while_a_picture_is_prepared_names_its_row() -> None:
    ledger = RowLedger(pictures_table(b"0", b"1"), "u")
    with pytest.raises(StageBug, match=r"unit u, row 0 \(0\): ZeroDivisionError"):
        list(ledger.prepared_batches(2, lambda index, data: 1 / int(data)))
