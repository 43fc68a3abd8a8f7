"""Subjects without a detector: the whole picture, named by its caption or by `caption.word`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from realcustom.config import build
from realcustom.errors import UsageError
from realcustom.preprocessing.catalogue import CAPTION, SUBJECTS
from realcustom.preprocessing.engine.fingerprint import describe
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.settings import CaptionSettings, PreprocessSettings, SubjectsSettings
from realcustom.record import check_schema, record_uid
from tests.support.corpora import jpeg, picture, sample, tar_bytes
from tests.support.stages import excluded_of, ingest, table_of


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    """Four pictures: two views of one toy, one with a caption that has no noun, one with none."""
    root = tmp_path_factory.mktemp("whole")
    members: dict[str, bytes] = {}
    for number, (caption, group) in enumerate((("a toy and a dog", "v"), ("the Toy", "v"), ("buy now", None))):
        members |= sample(str(number), jpeg(picture(number, (60, 40))), caption, group)
    members["3.jpg"] = jpeg(picture(3, (30, 50)))
    (root / "src").mkdir()
    (root / "src/a.tar").write_bytes(tar_bytes(members))
    return ingest(root / "src", root / "out")


def records(ingested: StageResult, root: Path, **caption: Any) -> tuple[list[dict[str, Any]], StageResult]:
    """Rows of `subjects`, and what `caption` gave."""
    settings = PreprocessSettings(caption=CaptionSettings(**caption))
    captioned = run_stage(CAPTION, ingested.directory, str(root), settings, executor=InProcess())
    result = run_stage(SUBJECTS, captioned.directory, str(root), settings, executor=InProcess())
    assert result.report["in"] == result.report["kept"] == result.report["rows_out"] == captioned.report["kept"]
    table, page = table_of(result), (Path(result.directory) / "report.html").read_text()
    assert page.count("<img") == len(table) and "no picture" not in page
    check_schema(table.schema)
    return table.to_pylist(), captioned


def test_the_caption_names_the_subject_and_the_box_is_the_picture(ingested: StageResult, tmp_path: Path) -> None:
    rows, captioned = records(ingested, tmp_path, max_words=2)
    assert {row["key"] for row in excluded_of(captioned).values()} == {"a.tar/2.jpg", "a.tar/3.jpg"}
    first, second = rows
    assert (first["target_word"], second["target_word"]) == (
        "toy",
        "Toy",
    )  # one record a picture, though two words name it
    for row in rows:
        assert row["subject_box"] == [0, 0, row["width"], row["height"]]
        assert row["subject_mask"] is row["subject_image"] is row["scores"]["detection"] is None
        assert row["uid"] == record_uid(row["parent_uid"], "toy", 0)
    assert (first["view_uids"], second["view_uids"]) == ([second["uid"]], [first["uid"]])


def test_a_word_that_is_given_names_every_subject(ingested: StageResult, tmp_path: Path) -> None:
    rows, captioned = records(ingested, tmp_path, word="dog", nouns=("toy",))
    assert captioned.report["dropped"] == {} and [row["target_word"] for row in rows] == ["dog"] * 4
    assert [row["caption"] for row in rows] == ["a toy and a dog", *["a photo of the dog"] * 3]
    assert [row["caption_source"] for row in rows] == ["alt_text", *["word"] * 3]
    for row in rows:
        assert row["caption"][row["target_start"] : row["target_end"]] == "dog"


def test_a_table_of_ones_own_without_a_word_loses_that_row(ingested: StageResult, tmp_path: Path) -> None:
    settings = PreprocessSettings(caption=CaptionSettings(word="dog"))
    captioned = run_stage(CAPTION, ingested.directory, str(tmp_path), settings, executor=InProcess())
    table = table_of(captioned)
    own = table.set_column(
        table.schema.get_field_index("targets"),
        table.schema.field("targets"),
        pa.array([[], *table["targets"].to_pylist()[1:]], table.schema.field("targets").type),
    )
    pa.parquet.write_table(own, tmp_path / "own.parquet")
    result = run_stage(SUBJECTS, str(tmp_path / "own.parquet"), str(tmp_path), settings, executor=InProcess())
    assert result.report["dropped"] == {"no_target_word": 1} and result.report["kept"] == 3


def test_one_of_the_two_models_alone_is_refused() -> None:
    for given, lacking in (("detector", "segmenter"), ("segmenter", "detector")):
        with pytest.raises(UsageError, match=f"subjects.{given} needs subjects.{lacking}"):
            build(SubjectsSettings, {given: "x"})
    with pytest.raises(UsageError, match=r"caption\.word is the word for the subject"):
        CaptionSettings(word=" ")


def test_what_decides_nothing_is_not_in_the_fingerprint() -> None:
    def parameters(**changes: Any) -> Mapping[str, Any]:
        settings = PreprocessSettings(**changes)
        stage = SUBJECTS if "subjects" in changes else CAPTION
        return dict(describe(stage, settings, "", {}, None)["parameters"])

    assert parameters(subjects=SubjectsSettings(min_area=0.5)) == {}
    # directories made before keep their names
    assert not {"word", "more_nouns"} & set(parameters(caption=CaptionSettings()))
    assert parameters(caption=CaptionSettings(word="dog"))["word"] == "dog"
