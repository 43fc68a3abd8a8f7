"""Thresholds and duplicates: who is dropped, why, and that nothing depends on order or shards."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from realcustom.preprocessing import tables
from realcustom.preprocessing.catalogue import INGEST, SELECT
from realcustom.preprocessing.engine.unit import InputFile, Unit, UnitKind
from realcustom.preprocessing.engine.worker import Processor, StageJob
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.select.evaluation import prepare_evaluation
from realcustom.preprocessing.settings import PreprocessSettings, SelectSettings
from tests.support.corpora import jpeg, picture, png, sample, tar_bytes
from tests.support.signatures import planted, write_scored
from tests.support.stages import excluded_of, ingest_to_select, table_of


def reasons(result: StageResult) -> dict[str, str]:
    return {key: row["reason"] for key, row in excluded_of(result).items()}


@pytest.fixture()
def corpus(tmp_path: Path) -> Path:
    """A sound picture and its copies over two shards, and pictures that fail thresholds."""
    base = picture(1, (64, 64))
    near = Image.fromarray((np.asarray(base) * 0.98).astype(np.uint8))
    first = sample("original", png(base), "a toy") | sample("near", jpeg(near, quality=70), "a toy")
    first |= sample("tiny", png(picture(2, (8, 30)))) | sample("other", png(picture(3, (64, 64))))
    second = sample("exact", png(base), None) | sample("wide", png(picture(4, (200, 20))))
    second |= sample("colour", png(Image.fromarray(np.asarray(base)[:, :, ::-1].copy())))
    (tmp_path / "src").mkdir()
    (tmp_path / "src/0.tar").write_bytes(tar_bytes(first))
    (tmp_path / "src/1.tar").write_bytes(tar_bytes(second))
    return tmp_path / "src"


def test_each_row_is_dropped_for_its_reason(corpus: Path, tmp_path: Path) -> None:
    result = ingest_to_select(corpus, tmp_path / "out")
    dropped = reasons(result)
    assert dropped == {
        "0.tar/tiny.jpg": "too_small",
        "1.tar/wide.jpg": "aspect_ratio",
        "1.tar/exact.jpg": "exact_duplicate",  # it has no caption, the original has one
        "0.tar/near.jpg": "near_duplicate",  # it is the more compressed one
    }
    assert result.report["in"] == 7 and result.report["kept"] == 3


def test_what_is_dropped_is_said_with_its_value_and_the_limit_or_the_survivor(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    messages = {key: row["message"] for key, row in excluded_of(ingest_to_select(corpus, tmp_path / "out")).items()}
    assert messages == {
        "0.tar/tiny.jpg": "8 x 30 pixels; select.min_side=16",
        "1.tar/wide.jpg": "200 x 20 pixels; select.max_aspect=3.0",
        "1.tar/exact.jpg": "of 0.tar/original.jpg",
        "0.tar/near.jpg": "of 0.tar/original.jpg",
    }
    blurred = excluded_of(ingest_to_select(corpus, tmp_path / "out", min_sharpness=1e9))
    value, limit = blurred["0.tar/original.jpg"]["message"].split("; ")
    assert 0 < float(value) < 1e9 and limit == "select.min_sharpness=1000000000.0"
    assert "select: nothing was kept: " in caplog.text


def test_ingest_does_not_read_what_a_stage_wrote(corpus: Path, tmp_path: Path) -> None:
    scored = run_stage(INGEST, str(corpus), str(tmp_path / "out"), PreprocessSettings(), executor=InProcess()).directory
    with pytest.raises(ValueError, match=r"ingest@\w+ is what a stage wrote, and ingest reads a corpus"):
        run_stage(INGEST, scored, str(tmp_path / "other"), PreprocessSettings(), executor=InProcess())


def test_page_shows_what_was_dropped_and_why(corpus: Path, tmp_path: Path) -> None:
    page = (Path(ingest_to_select(corpus, tmp_path / "out").directory) / "report.html").read_text()
    for text in ("dropped: near_duplicate", "dropped: exact_duplicate", "0.tar/tiny.jpg", "<h2>Kept: 3 of 3</h2>"):
        assert text in page
    assert page.count("<img") == 7
    (before,) = (tmp_path / "out").glob("score@*/report.html")
    assert f'<a href="../{before.parent.name}/report.html">on {before.parent.name}</a>' in page
    assert "<a href" not in next((tmp_path / "out").glob("ingest@*/report.html")).read_text()


def test_duplicates_can_be_kept(corpus: Path, tmp_path: Path) -> None:
    result = ingest_to_select(corpus, tmp_path / "out", exact_duplicates=False, near_duplicate_radius=None)
    assert set(reasons(result).values()) == {"too_small", "aspect_ratio"}


def test_colour_tells_pictures_apart_that_grey_does_not(corpus: Path, tmp_path: Path) -> None:
    blind = ingest_to_select(
        corpus, tmp_path / "out", near_duplicate_radius=16, near_duplicate_bits=128, near_duplicate_color=10.0
    )
    seeing = ingest_to_select(corpus, tmp_path / "out", near_duplicate_radius=16, near_duplicate_bits=128)
    assert blind.report["kept"] < seeing.report["kept"]


def test_thresholds_over_scores(corpus: Path, tmp_path: Path) -> None:
    assert ingest_to_select(corpus, tmp_path / "out", min_sharpness=1e9).report["dropped"]["low_sharpness"] == 5
    with pytest.raises(ValueError, match=r"select\.min_aesthetic=5\.0 has nothing to judge: .*score\.heads"):
        ingest_to_select(corpus, tmp_path / "out", min_aesthetic=5.0)


def test_evaluation_pictures_are_kept_out(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/x.jpg").write_bytes(jpeg(picture(3, (64, 64)), quality=80))
    result = ingest_to_select(corpus, tmp_path / "out", evaluation_folder=str(tmp_path / "evaluation"))
    assert reasons(result)["0.tar/other.jpg"] == "in_evaluation_folder"
    assert excluded_of(result)["0.tar/other.jpg"]["message"] == "of x.jpg"


def test_pictures_of_the_evaluation_folder_are_known_by_their_bytes(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "x.jpg_large").write_bytes(jpeg(picture(3, (64, 64)), quality=80))
    for name in ("x.txt", "x.JSON", "list.csv", ".DS_Store", ".x.jpg", "notes.doc", "license"):
        (folder / name).write_text("not a picture")
    assert (
        ingest_to_select(corpus, tmp_path / "out", evaluation_folder=str(folder)).report["dropped"][
            "in_evaluation_folder"
        ]
        == 1
    )
    settings = PreprocessSettings(select=SelectSettings(evaluation_folder=str(folder)))
    job = StageJob(name="select", load=SELECT.load, settings=settings, directory=str(tmp_path / "other"))
    packed = {name: b"7z\xbc\xaf'\x1c\0\4" for name in ("more.tar.gz", "more.7z", "data.mdb", "rest")}
    encoded = base64.b64encode(png(picture(3)))
    packed |= {"rows.jsonl": b'{"image": "' + encoded + b'"}\n', "rows.csv": b"image\n" + encoded + b"\n"}
    for name, data in packed.items():
        (folder / name).write_bytes(data)
        with pytest.raises(
            ValueError, match=rf"evaluation_folder: .*/{re.escape(name)} may hold pictures, .* unpack it"
        ):
            prepare_evaluation(job)
        (folder / name).unlink()
    (folder / "y.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(ValueError, match=r"evaluation_folder: y\.jpg \(dangling link\) may stand for a picture"):
        prepare_evaluation(job)


def test_duplicates_that_cannot_be_read_are_named_themselves(tmp_path: Path) -> None:
    table = planted(4, 0)[0]
    scored = str(tmp_path / "scored/part-00000.parquet")
    uris = (scored, f"{write_scored(tmp_path / 'scored', table, 4)}/part-00000.parquet/block-00000.parquet")
    files = tuple(InputFile(name=Path(uri).name, uri=uri, size=0) for uri in uris)
    job = SELECT.job(PreprocessSettings(), str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot read .*/block-00000\.parquet: a part of the path is a file"):
        Processor(job)(Unit(name="part-00000", identity="", kind=UnitKind.PART, files=files), tables.to_parquet(table))


def test_a_new_copy_in_another_shard_reaches_units_that_were_done(corpus: Path, tmp_path: Path) -> None:
    before = ingest_to_select(corpus, tmp_path / "out")
    (corpus / "2.tar").write_bytes(tar_bytes(sample("better", png(picture(3, (128, 128))), "a toy")))
    after = ingest_to_select(corpus, tmp_path / "out")
    assert after.directory == before.directory and after.units_run == 3
    assert reasons(after)["0.tar/other.jpg"] == "near_duplicate"
    assert "2.tar/better.jpg" in table_of(after)["key"].to_pylist()
