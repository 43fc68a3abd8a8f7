"""Rows as webdataset shards: what came from a shard goes back byte for byte, and equal rows give equal shards."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realcustom.preprocessing.catalogue import EXPORT, INGEST, SCORE, SELECT
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.settings import ExecutionSettings, ExportSettings, PreprocessSettings, SelectSettings
from tests.support.corpora import encoded, jpeg, members_of, picture, sample, snapshot, tar_bytes
from tests.support.stages import table_of

PLAIN = PreprocessSettings(
    select=SelectSettings(min_side=16),
    export=ExportSettings(annotations=False),
    execution=ExecutionSettings(max_error_fraction=1.0),
)
ANNOTATED = PreprocessSettings(select=SelectSettings(min_side=16))


def run(stage: Stage, source: str | Path, output: Path, settings: PreprocessSettings = PLAIN) -> StageResult:
    return run_stage(stage, str(source), str(output), settings, executor=InProcess())


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, bytes]:
    """Members of a shard with all that may lie in one; `tiny` is dropped by select, `cut` by ingest."""
    good = jpeg(picture(0))
    members = {
        **sample("b", jpeg(picture(1)), "ä toy\r\n", "group"),
        **{"x/a.JPG": good, "x/a.cls": b"\0\xff", "x/a.seg.png": b"", "x/a.json": b'{ "b":1}'},
        **{f"{'long' * 40}/c.jpg": jpeg(picture(2))},
        **sample("tiny", jpeg(picture(3, (12, 12)))),
        **sample("cut", good[:-80]),
    }
    (tmp_path / "src/sub").mkdir(parents=True)
    (tmp_path / "src/sub/s-0.tar").write_bytes(tar_bytes(members, tarfile.GNU_FORMAT))
    return members


def test_every_member_of_a_kept_sample_comes_back(shards: dict[str, bytes], tmp_path: Path) -> None:
    directory: str | Path = tmp_path / "src"
    for stage in (INGEST, SCORE, SELECT):
        directory = run(stage, directory, tmp_path / "out").directory
    exported = run(EXPORT, directory, tmp_path / "out")
    (shard,) = Path(exported.directory).glob("*.tar")
    found = members_of(shard.read_bytes())
    assert dict(found) == {name: data for name, data in shards.items() if not name.startswith(("tiny", "cut"))}
    assert [name for name, _ in found] == sorted(name for name, _ in found)
    assert exported.report["in"] == exported.report["kept"] == exported.report["rows_out"] == 3
    # the shards are a corpus again, of the same pictures
    again = table_of(run(INGEST, exported.directory, tmp_path / "again")).to_pylist()
    before = table_of(run(INGEST, tmp_path / "src", tmp_path / "out")).to_pylist()
    kept = {row["sha256"]: row["alt_text"] for row in before if row["width"] > 12}
    assert {row["sha256"]: row["alt_text"] for row in again} == kept


def test_what_the_stages_found_out_lies_beside_the_sample(shards: dict[str, bytes], tmp_path: Path) -> None:
    ingested = run(INGEST, tmp_path / "src", tmp_path / "out", ANNOTATED)
    scored = run(SCORE, ingested.directory, tmp_path / "out", ANNOTATED)
    exported = run(EXPORT, scored.directory, tmp_path / "out", ANNOTATED)
    (shard,) = Path(exported.directory).glob("*.tar")
    found = dict(members_of(shard.read_bytes()))
    known = json.loads(found["x/a.realcustom.json"])
    assert known["key"].endswith("s-0.tar/x/a.jpg") and known["scores"]["sharpness"] > 0
    assert found["x/a.json"] == b'{ "b":1}'
    # once more: what was found out is replaced, not doubled
    second = run(INGEST, exported.directory, tmp_path / "again", ANNOTATED)
    third = run(EXPORT, second.directory, tmp_path / "again", ANNOTATED)
    names = [name for name, _ in members_of(next(Path(third.directory).glob("*.tar")).read_bytes())]
    assert sorted(names) == sorted(found)


def test_pictures_of_other_sources_become_samples(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "my.photo.jpg").write_bytes(encoded(picture(0), "PNG"))  # not what its name says
    (source / "b.webp").write_bytes(encoded(picture(1), "WEBP"))
    (source / "b.txt").write_text("a toy")
    ingested = run(INGEST, source, tmp_path / "out", ANNOTATED)
    exported = run(EXPORT, ingested.directory, tmp_path / "out", ANNOTATED)
    found = dict(members_of(next(Path(exported.directory).glob("pictures-*.tar")).read_bytes()))
    uids = {row["key"]: row["uid"] for row in table_of(ingested).to_pylist()}
    photo, toy = uids["my.photo.jpg"], uids["b.webp"]
    assert set(found) == {f"{photo}.png", f"{photo}.json", f"{toy}.webp", f"{toy}.txt", f"{toy}.json"}
    assert found[f"{toy}.txt"] == b"a toy" and json.loads(found[f"{photo}.json"])["key"] == "my.photo.jpg"
    again = table_of(run(INGEST, exported.directory, tmp_path / "again")).to_pylist()
    assert {row["alt_text"] for row in again} == {None, "a toy"}


def test_equal_rows_give_equal_shards_and_nothing_is_redone(shards: dict[str, bytes], tmp_path: Path) -> None:
    outputs = []
    for place in ("one", "two"):
        ingested = run(INGEST, tmp_path / "src", tmp_path / place)
        outputs.append(run(EXPORT, ingested.directory, tmp_path / place))
    assert snapshot(outputs[0].directory) == snapshot(outputs[1].directory)
    assert run(EXPORT, ingested.directory, tmp_path / "two").units_run == 0


def test_two_rows_that_are_one_sample_are_not_mixed(shards: dict[str, bytes], tmp_path: Path) -> None:
    table = table_of(run(INGEST, tmp_path / "src", tmp_path / "out"))
    uids = pa.array([f"{number:032x}" for number in range(2 * table.num_rows)])
    twice = pa.concat_tables([table, table]).set_column(0, "uid", uids)
    (tmp_path / "own").mkdir()
    pq.write_table(twice.cast(table.schema), tmp_path / "own/t.parquet")
    report = run(EXPORT, tmp_path / "own", tmp_path / "out").report
    assert report["kept"] == table.num_rows and report["quarantined"] == {"duplicate_key": table.num_rows}
