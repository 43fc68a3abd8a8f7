"""A stage that keeps nothing ends a run of several, with the reason and the setting that decides it."""

from __future__ import annotations

from pathlib import Path

import pytest

from realcustom.pipeline.cli.main import run
from realcustom.preprocessing.report.nothing import DECIDED_BY, why_little, why_nothing
from realcustom.preprocessing.settings import CaptionSettings, PreprocessSettings, SelectSettings
from tests.support.corpora import tar_bytes, write_shards

ROOT = Path(__file__).parents[2]


def test_all_stops_where_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "src", 1, 4)
    models = ("score.clip", "score.heads", "caption.model", "subjects.detector", "subjects.segmenter")
    off = [part for name in models for part in ("--set", f"preprocess.{name}=null")]
    arguments = [
        "preprocess",
        "all",
        "--local",
        "--input",
        str(tmp_path / "src"),
        "--output",
        str(tmp_path / "out"),
        *off,
    ]
    assert run([*arguments, "--set", "preprocess.select.min_side=4096"]) == 3
    out, err = capsys.readouterr()
    assert [line.partition(":")[0] for line in out.splitlines() if ": " in line] == ["ingest", "score", "select"]
    said = next(line for line in err.splitlines() if line.startswith("error: "))
    assert said.startswith("error: select kept none of 4 rows: 4 are too_small (select.min_side=4096); ")
    assert said.endswith("/aside says why of each row") and "Traceback" not in err
    assert not list((tmp_path / "out").glob("caption@*"))


def test_a_stage_by_itself_that_keeps_nothing_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "src", 1, 2)
    common = ["--local", "--output", str(tmp_path / "out")]
    assert run(["preprocess", "ingest", "--input", str(tmp_path / "src"), *common]) == 0
    assert run(["preprocess", "score", "--input", str(tmp_path / "out"), *common, *_no_clip()]) == 0
    select = ["preprocess", "select", "--input", str(tmp_path / "out"), *common]
    assert run([*select, "--set", "preprocess.select.min_side=4096"]) == 3
    assert "error: select kept none of 2 rows: 2 are too_small (select.min_side=4096); " in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/s.tar").write_bytes(tar_bytes({}))
    assert run(["preprocess", "ingest", "--input", str(tmp_path / "empty"), *common]) == 3
    assert "error: ingest found no row in its input" in capsys.readouterr().err


def _no_clip() -> list[str]:
    return ["--set", "preprocess.score.clip=null", "--set", "preprocess.score.heads=null"]


def test_the_most_frequent_reason_is_said() -> None:
    settings = PreprocessSettings(select=SelectSettings(min_sharpness=9.5))
    report = {"in": 9, "dropped": {"too_small": 2, "low_sharpness": 6}, "quarantined": {"link": 1}, "rejected": {}}
    said = why_nothing("select", report, settings)
    assert said == "select kept none of 9 rows: 6 are low_sharpness (select.min_sharpness=9.5)"
    report = {"in": 1, "dropped": {}, "quarantined": {"truncated_image": 1}, "rejected": {}}
    assert why_nothing("ingest", report, settings) == "ingest kept none of 1 rows: 1 are truncated_image"
    rejected = {"low_detection_score": 900, "large_mask": 3, "small_box": 1}
    report = {"in": 3, "dropped": {"all_candidates_rejected": 3}, "quarantined": {}, "rejected": rejected}
    assert why_nothing("subjects", report, settings).endswith(
        "3 are all_candidates_rejected, mostly large_mask (subjects.max_area=0.9)"
    )


def test_a_reason_of_most_rows_is_said_with_what_decides_it() -> None:
    settings = PreprocessSettings(caption=CaptionSettings(nouns=("can", "cartoon")))
    report = {"in": 105, "dropped": {"no_target_word": 95}, "quarantined": {}}
    assert why_little(report, settings) == (
        "most rows are no_target_word (caption.word=null, caption.nouns=[can, cartoon], caption.more_nouns=[])"
    )
    assert why_little({**report, "in": 190}, settings) is None
    assert why_little({**report, "dropped": {"exact_duplicate": 95}}, settings) is None
    long = PreprocessSettings(caption=CaptionSettings(nouns=tuple("abcdefg")))
    assert "caption.nouns=[a, b, c, d, e, ...]" in str(why_little(report, long))


def test_every_reason_with_a_setting_is_documented_and_its_setting_exists() -> None:
    page = (ROOT / "docs" / "preprocessing" / "reasons.md").read_text()
    for reason, setting in ((reason, one) for reason, settings in DECIDED_BY.items() for one in settings.split()):
        section, name = setting.split(".")
        assert f"`{reason}`" in page and hasattr(PreprocessSettings().section(section), name), reason
