"""`realcustom inspect ... --html`: rows as pictures in one file that stands by itself."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco

from realcustom import record
from realcustom.pipeline.cli.main import run
from realcustom.preprocessing.catalogue import INGEST, SCORE, SELECT
from realcustom.preprocessing.report.excluded import spread
from realcustom.preprocessing.report.sheet import BOX
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import PreprocessSettings, SelectSettings
from tests.support.corpora import jpeg, picture, png, sample, tar_bytes, write_shards


def pictures_of(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.fixture
def stages(tmp_path: Path) -> dict[str, str]:
    """The directories of three stages over a small corpus with rows of several fates."""
    (tmp_path / "src").mkdir()
    members: dict[str, bytes] = {}
    for number in range(6):
        members |= sample(str(number), jpeg(picture(number, (300, 200))), f"<b>toy</b> & number {number}")
    members |= sample("tiny", jpeg(picture(8, (12, 12)))) | sample("cut", jpeg(picture(9))[:-80])
    (tmp_path / "src/a.tar").write_bytes(tar_bytes(members))
    directories, settings = {"": str(tmp_path / "src")}, PreprocessSettings(select=SelectSettings(min_side=16))
    for stage in (INGEST, SCORE, SELECT):
        source = list(directories.values())[-1]
        directories[stage.name] = run_stage(
            stage, source, str(tmp_path / "out"), settings, executor=InProcess()
        ).directory
    return directories


def test_a_stage_as_a_sheet(stages: dict[str, str], tmp_path: Path, command: Callable[..., str]) -> None:
    said = command("inspect", stages["select"], "--html", str(tmp_path / "select.html"))
    assert ", 6 of 6 rows, 1 of 1 left out, " in said.splitlines()[-1]
    page = (tmp_path / "select.html").read_text()
    assert "&lt;b&gt;toy&lt;/b&gt; &amp; number 3" in page and "<b>" not in page  # a corpus writes no HTML here
    assert "dropped: too_small" in page and "a.tar/tiny.jpg" in page and "sharpness" in page
    assert not re.search(r"https?://|<script|<link", page) and str(tmp_path) not in page
    shown = pictures_of(page)
    assert len(shown) == 7 and all(max(image.size) <= 200 for image in shown)
    assert shown[-1].size == (192, 192)  # enlarged; of a row that was dropped, from the stage before
    command("inspect", stages["ingest"], "--html", str(tmp_path / "ingest.html"))
    page = (tmp_path / "ingest.html").read_text()
    assert "quarantined: truncated_image" in page and "image file is truncated" in page


def test_a_sheet_is_bounded_and_spread_over_the_tables(tmp_path: Path, command: Callable[..., str]) -> None:
    write_shards(tmp_path / "src", 20, 2)
    ingested = run_stage(
        INGEST, str(tmp_path / "src"), str(tmp_path / "out"), PreprocessSettings(), executor=InProcess()
    )
    said = command("inspect", ingested.directory, "--html", str(tmp_path / "sheet.html"), "--rows", "12")
    assert "12 of 40 rows, 0 of 0 left out" in said
    page = (tmp_path / "sheet.html").read_text()
    assert "12 rows of 24 in 12 of 20 tables" in page
    keys = re.findall(r"shard-(\d+)\.tar/", page)
    assert len(set(keys)) == 12 and len(page) < 300_000
    assert [spread(10, 3), spread(2, 5), spread(0, 4)] == [[0, 3, 6], [0, 1], []]


def test_box_mask_and_cut_out_of_a_record_are_drawn(tmp_path: Path, command: Callable[..., str]) -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[20:60, 30:70] = 1
    counts = coco.encode(np.asfortranarray(mask))
    row = {
        **{
            "uid": "u",
            "parent_uid": "p",
            "sha256": b"\0" * 32,
            "width": 100,
            "height": 100,
            "caption_source": "alt_text",
        },
        **{
            "image": png(Image.new("RGB", (100, 100), "white")),
            "subject_image": png(Image.new("RGB", (40, 40), "red")),
        },
        **{"caption": "a red toy", "target_word": "toy", "target_start": 6, "target_end": 9},
        **{"subject_mask": counts, "subject_box": [30.0, 20.0, 70.0, 60.0], "scores": {"detection": 0.5}},
    }
    columns = {name: [row.get(name)] for name in record.SCHEMA.names}
    pq.write_table(pa.table(columns, schema=record.SCHEMA), tmp_path / "records.parquet")
    command("inspect", str(tmp_path / "records.parquet"), "--html", str(tmp_path / "sheet.html"))
    page = (tmp_path / "sheet.html").read_text()
    assert "a red <mark>toy</mark>" in page and "detection 0.5" in page
    drawn, subject = pictures_of(page)
    assert drawn.size == (200, 200) and subject.size == (80, 80)
    pixels = np.asarray(drawn.convert("RGB")).astype(int)
    assert (pixels[150, 150] > 240).all()  # outside: as it was
    assert pixels[80, 100, 0] < 200 < pixels[80, 100, 2]  # inside: tinted
    assert np.abs(pixels[41, 100] - BOX).max() < 60  # the box's upper edge


def test_what_has_no_pictures_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "t.parquet")
    assert run(["inspect", str(tmp_path / "t.parquet"), "--html", str(tmp_path / "sheet.html")]) == 2
    assert "has no column 'image' but x" in capsys.readouterr().err
    assert run(["inspect", "zoo", "--html", str(tmp_path / "sheet.html")]) == 2
    assert "--html shows the rows of a stage's output or of records" in capsys.readouterr().err
    assert not (tmp_path / "sheet.html").exists()
