"""What is done stays done, what changes is done again, and mistakes are said at once."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from realcustom import storage
from realcustom.config import SettingError, build
from realcustom.preprocessing import tables
from realcustom.preprocessing.catalogue import CAPTION, ENCODE, INGEST, SCORE, SELECT, SUBJECTS
from realcustom.preprocessing.engine.directory import StageDirectory
from realcustom.preprocessing.engine.fingerprint import describe, fingerprint
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.engine.unit import Counts, InputFile, PackedFiles, SealedUnit, Unit, UnitKind, unit_name
from realcustom.preprocessing.errors import StageBug
from realcustom.preprocessing.inputs import files_of
from realcustom.preprocessing.run import ExpectedRows, InProcess, StageResult, run_stage
from realcustom.preprocessing.settings import (
    CaptionSettings,
    ComputeSettings,
    ExecutionSettings,
    IngestSettings,
    PreprocessSettings,
    ScoreSettings,
    SelectSettings,
)
from realcustom.retry import RetrySettings, retry
from realcustom.store import Store, is_transient
from tests.support.corpora import jpeg, picture, sample, snapshot, tar_bytes, write_shards

SMALL = PreprocessSettings(select=SelectSettings(min_side=16))


def run(stage: Stage, source: str | Path, output: Path, settings: PreprocessSettings = SMALL) -> StageResult:
    return run_stage(stage, str(source), str(output), settings, executor=InProcess())


def times(folder: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}


def test_nothing_is_redone(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 3, 2)
    source: str | Path = tmp_path / "src"
    for stage in (INGEST, SCORE, SELECT):
        first = run(stage, source, tmp_path / "out")
        before = times(first.directory)
        second = run(stage, source, tmp_path / "out")
        assert (first.units_run, second.units_run) == (3, 0)
        assert second.report == first.report and times(first.directory) == before
        source = first.directory


def test_a_rerun_with_nothing_to_do_reads_no_manifest(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 3, 2)
    first = run(INGEST, tmp_path / "src", tmp_path / "out")
    for manifest in Path(first.directory).glob("manifests/*"):
        manifest.write_bytes(b"not read")
    second = run(INGEST, tmp_path / "src", tmp_path / "out")
    assert second.units_run == 0 and second.report == first.report and first.report["in"] == 6


def test_only_what_changed_is_redone(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 3, 2)
    first = run(INGEST, tmp_path / "src", tmp_path / "out")
    scored = run(SCORE, first.directory, tmp_path / "out")
    untouched = Path(first.directory) / "shard-00000.parquet"
    before = untouched.stat().st_mtime_ns
    (tmp_path / "src/shard-00001.tar").write_bytes(tar_bytes(sample("new", jpeg(picture(77)))))
    (tmp_path / "src/shard-00002.tar").unlink()
    (tmp_path / "src/shard-00003.tar").write_bytes(tar_bytes(sample("more", jpeg(picture(78)))))
    again = run(INGEST, tmp_path / "src", tmp_path / "out")
    assert again.directory == first.directory and again.units_run == 2
    assert again.report["in"] == again.report["kept"] == 4
    assert untouched.stat().st_mtime_ns == before
    rescored = run(SCORE, first.directory, tmp_path / "out")
    assert rescored.directory == scored.directory and rescored.units_run == 2
    # as if it had never been otherwise
    fresh = run(INGEST, tmp_path / "src", tmp_path / "fresh")
    assert snapshot(fresh.directory) == snapshot(again.directory)


def test_rows_that_somebody_removed_are_made_again(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 2, 2)
    first = run(INGEST, tmp_path / "src", tmp_path / "out")
    before = snapshot(first.directory)
    (Path(first.directory) / "shard-00001.parquet").unlink()
    assert run(INGEST, tmp_path / "src", tmp_path / "out").units_run == 1
    assert snapshot(first.directory) == before


def test_a_changed_threshold_touches_select_and_never_score(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 1, 3)
    ingested = run(INGEST, tmp_path / "src", tmp_path / "out")
    other = replace(SMALL, select=SelectSettings(min_side=45))
    directories = []
    for settings in (SMALL, other):
        scored = run(SCORE, ingested.directory, tmp_path / "out", settings)
        directories.append((scored.directory, run(SELECT, scored.directory, tmp_path / "out", settings).directory))
    assert directories[0][0] == directories[1][0] and directories[0][1] != directories[1][1]


def test_fingerprints_follow_what_decides_the_output_and_nothing_else(tmp_path: Path) -> None:
    def mark(settings: PreprocessSettings, models: dict[str, str] | None = None, upstream: str = "ingest@0") -> str:
        return fingerprint(describe(SCORE, settings, upstream, models or {}, None))

    plain = mark(SMALL)
    assert mark(replace(SMALL, execution=ExecutionSettings(workers=7))) == plain
    assert mark(replace(SMALL, caption=CaptionSettings(max_words=3))) == plain
    assert mark(replace(SMALL, compute=ComputeSettings(threads=2))) == plain  # no model runs
    different = [
        mark(replace(SMALL, score=ScoreSettings(sharpness_side=100))),
        mark(SMALL, upstream="ingest@1"),
        mark(SMALL, {"clip": "clip@1"}),
        mark(SMALL, {"clip": "clip@2"}),
        mark(replace(SMALL, compute=ComputeSettings(threads=2)), {"clip": "clip@1"}),
    ]
    assert len({plain, *different}) == 6


def test_a_named_corpus_may_move(tmp_path: Path) -> None:
    named = replace(SMALL, ingest=IngestSettings(corpus="toys"))
    write_shards(tmp_path / "a", 1, 2)
    write_shards(tmp_path / "b", 1, 2)
    marks = {Path(run(INGEST, tmp_path / place, tmp_path / place / "out", named).directory).name for place in "ab"}
    assert len(marks) == 1


def test_a_users_own_table_is_as_good_as_a_stage(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 2, 2)
    ingested = run(INGEST, tmp_path / "src", tmp_path / "out")
    (tmp_path / "own").mkdir()
    part = (Path(ingested.directory) / "shard-00001.parquet").read_bytes()
    (tmp_path / "own/mine.parquet").write_bytes(part)
    for source in ("own", "own/mine.parquet"):
        scored = run(SCORE, tmp_path / source, tmp_path / "out")
        assert scored.report["in"] == scored.report["kept"] == 2
        assert (Path(scored.directory) / "mine.parquet").exists()
    with pytest.raises(ValueError, match=r"select cannot read .*: the column 'scores' is missing"):
        run(SELECT, tmp_path / "own", tmp_path / "out")


def test_a_users_own_table_without_hashes_can_be_scored_and_not_selected(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 1, 2)
    ingested = run(INGEST, tmp_path / "src", tmp_path / "out")
    (tmp_path / "own").mkdir()
    table = pq.read_table(Path(ingested.directory) / "shard-00000.parquet", columns=tables.INGESTED.names)
    assert table.schema.equals(tables.INGESTED)
    pq.write_table(table, tmp_path / "own/mine.parquet")
    scored = run(SCORE, tmp_path / "own", tmp_path / "out")
    assert scored.report["in"] == scored.report["kept"] == 2
    with pytest.raises(ValueError, match=r"select cannot read .*mine\.parquet: the column 'phashes' is missing"):
        run(SELECT, scored.directory, tmp_path / "out")
    assert not list((tmp_path / "out").glob("select@*"))


def test_what_a_removal_that_was_killed_left_is_removed(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 2, 2)
    first = run(INGEST, tmp_path / "src", tmp_path / "out")
    directory = Path(first.directory)
    (tmp_path / "src/shard-00001.tar").unlink()
    (directory / "report.json").unlink()
    (manifest,) = directory.glob("manifests/shard-00001.*")
    manifest.unlink()  # the rest of the unit is still there
    again = run(INGEST, tmp_path / "src", tmp_path / "out")
    assert (again.units_run, again.report["units"], again.report["in"], again.report["kept"]) == (0, 1, 2, 2)
    assert not list(directory.rglob("shard-00001*"))
    fresh = run(INGEST, tmp_path / "src", tmp_path / "fresh")
    assert snapshot(again.directory) == snapshot(fresh.directory)


def test_limit_runs_some_units_and_the_rest_later(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 3, 1)
    part = run_stage(INGEST, str(tmp_path / "src"), str(tmp_path / "out"), SMALL, executor=InProcess(), limit=1)
    assert (part.units_run, part.units_left, part.report["in"]) == (1, 2, 1)
    assert not (Path(part.directory) / "report.json").exists()
    whole = run(INGEST, tmp_path / "src", tmp_path / "out")
    assert (whole.units_run, whole.report["in"]) == (2, 3)
    assert json.loads((Path(whole.directory) / "report.json").read_text()) == whole.report


def test_a_stop_at_any_write_leaves_what_a_rerun_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "src", 2, 2)
    whole = run(INGEST, tmp_path / "src", tmp_path / "whole")
    expected, write = snapshot(whole.directory), storage.write_bytes
    for stop in range(9):
        written = 0

        def write_until(uri: str | Path, data: bytes, stop: int = stop) -> None:
            nonlocal written
            if written == stop:
                raise KeyboardInterrupt
            written += 1
            write(uri, data)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_bytes", write_until)
            with pytest.raises(KeyboardInterrupt):
                run(INGEST, tmp_path / "src", tmp_path / f"out{stop}")
        again = run(INGEST, tmp_path / "src", tmp_path / f"out{stop}")
        assert snapshot(again.directory) == expected, f"stopped at write {stop}"


def test_a_run_that_goes_on_does_not_wait_for_the_manifests_of_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "src", 5, 1)
    whole = run(INGEST, tmp_path / "src", tmp_path / "whole")
    run_stage(INGEST, str(tmp_path / "src"), str(tmp_path / "out"), SMALL, executor=InProcess(), limit=3)
    events: list[str] = []
    read, commit = StageDirectory._counts_in, StageDirectory.commit

    def reading(self: StageDirectory, manifest: str) -> Counts:
        events.append("read")
        return read(self, manifest)

    def committing(self: StageDirectory, unit: Unit, sealed: SealedUnit) -> None:
        events.append("commit")
        commit(self, unit, sealed)

    monkeypatch.setattr("realcustom.preprocessing.run._MANIFESTS", 1)
    monkeypatch.setattr(StageDirectory, "_counts_in", reading)
    monkeypatch.setattr(StageDirectory, "commit", committing)
    again = run(INGEST, tmp_path / "src", tmp_path / "out")
    assert events == ["commit", "read", "read", "commit", "read"] and again.report == whole.report


def test_wrong_input_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "zipped").mkdir()
    (tmp_path / "zipped/a.zip").write_bytes(b"PK")
    write_shards(tmp_path / "src", 1, 1)
    ingested = run(INGEST, tmp_path / "src", tmp_path / "out").directory
    cases: list[tuple[Stage, str | Path, str]] = [
        (INGEST, tmp_path / "nowhere", "no input at .*nowhere"),
        (
            INGEST,
            tmp_path / "empty",
            "empty corpus: no .tar shards, .parquet, .csv, .tsv or .jsonl tables, .*, but no file",
        ),
        (INGEST, tmp_path / "zipped", r"empty corpus: no .*, but 1 \.zip"),
        (SELECT, ingested, "select reads what score wrote, and .* was written by ingest"),
        (SCORE, tmp_path / "out", "is not a stage's directory but holds some: give one of ingest@"),
        (SCORE, tmp_path / "src", "neither a stage's directory .* nor a folder of .parquet tables"),
        (SUBJECTS, ingested, "subjects reads what caption wrote, and .* was written by ingest"),
        (ENCODE, ingested, "encode needs encode.base and encode.image_encoder"),
    ]
    before = sorted(snapshot(tmp_path))
    for stage, source, message in cases:
        with pytest.raises(ValueError, match=message):
            run(stage, source, tmp_path / "out")
    with pytest.raises(ValueError, match=r"no model folder at .*gone"):
        run(CAPTION, ingested, tmp_path / "out", PreprocessSettings(caption=CaptionSettings(model="./gone")))
    assert sorted(snapshot(tmp_path)) == before  # nothing half-written


def test_a_mistyped_setting_names_the_nearest() -> None:
    with pytest.raises(SettingError, match=r"'score\.clipp'; did you mean 'score\.clip'"):
        build(PreprocessSettings, {"score": {"clipp": "x"}})
    with pytest.raises(SettingError, match=r"score\.heads needs score\.clip"):
        build(PreprocessSettings, {"score": {"heads": "x"}})
    with pytest.raises(SettingError, match=r"near_duplicate_radius must be within 0\.\.16"):
        build(PreprocessSettings, {"select": {"near_duplicate_radius": 64}})


def test_settings_and_planning_import_neither_torch_nor_ray() -> None:
    code = (
        "import sys, realcustom.preprocessing.run, realcustom.preprocessing.score.stage;"
        "import realcustom.preprocessing.settings, realcustom.preprocessing.ingest.stage;"
        "print([name for name in ('torch', 'ray', 'transformers', 'diffusers') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.getcwd())
    assert output.stdout.strip() == "[]"


def test_passing_errors_are_tried_again_and_others_not() -> None:
    calls = []

    def fail(error: Exception, until: int) -> int:
        calls.append(1)
        if len(calls) < until:
            raise error
        return len(calls)

    four = RetrySettings(attempts=4, backoff=0)
    assert retry(lambda: fail(ConnectionResetError("reset"), 3), four, is_transient) == 3
    calls.clear()
    with pytest.raises(FileNotFoundError):
        retry(lambda: fail(FileNotFoundError("gone"), 3), four, is_transient)
    assert len(calls) == 1
    assert not is_transient(ValueError("x")) and is_transient(OSError(5, "I/O error"))


def test_an_unforeseen_error_names_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def explode(image: Image.Image) -> None:
        raise RuntimeError("out of luck")

    write_shards(tmp_path / "src", 1, 2)
    monkeypatch.setattr("realcustom.preprocessing.ingest.stage.signature", explode)
    with pytest.raises(
        StageBug, match=r"unit shard-00000, row [0-9a-f]{32} \(shard-00000.tar/000000.jpg\): RuntimeErr"
    ):
        run(INGEST, tmp_path / "src", tmp_path / "out")


def test_unit_names_are_plain_and_differ() -> None:
    names = [unit_name(name) for name in ("a/b.tar", "a-b.tar", "a b.tar", "shard-00001.tar", "ü.tar", "..tar")]
    names += [unit_name(name) for name in ("0.tar", "0.tgz", "0.tar.gz", "0.csv", "0.jsonl", "0.TAR")]
    assert names[3] == "shard-00001" and len(set(names)) == len(names)
    assert all(name and "/" not in name and " " not in name and not name.startswith(".") for name in names)


def test_manifest_names_carry_input_and_output(tmp_path: Path) -> None:
    directory = StageDirectory(str(tmp_path), Store())
    unit = Unit(name="a.b", identity="0123", kind=UnitKind.PART, files=())
    directory.commit(unit, SealedUnit(rows=b"rows", excluded=b"", counts=Counts()))
    (manifest,) = directory.manifests()
    assert (manifest.unit, manifest.identity) == ("a.b", "0123") and len(manifest.output) == 16
    assert directory.rows_present() == {"a.b"}
    assert Unit.from_json(unit.to_json()) == unit


def test_the_files_of_a_unit_of_pictures_travel_compressed(tmp_path: Path) -> None:
    fields = [{"name": f"a/{number:05d}\udcff.jpg", "uri": f"/c/{number}", "size": number} for number in range(300)]
    fields[7] |= {"caption": "a dog", "captions": ("a cat",), "unlisted": "no"}
    packed = PackedFiles.of(fields)
    plain = tuple(InputFile(**file) for file in fields)  # type: ignore[arg-type]
    assert packed == plain and tuple(packed) == plain and len(packed) == 300 and packed[7].captions == ("a cat",)
    unit = Unit(name="u", identity="0", kind=UnitKind.PICTURES, files=packed)
    again = Unit.from_json(unit.to_json())
    assert again == unit and again.files == plain and len(unit.to_json()) < 20 * 300


def test_a_file_at_the_top_of_the_file_system_is_looked_for_there(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = storage.FileEntry(name="pairs.parquet", uri="/pairs.parquet", size=1, version="1")
    listed: list[str] = []
    monkeypatch.setattr(storage, "is_dir", lambda uri: False)

    def list_files(uri: str, recursive: bool, attempt: object = None) -> list[storage.FileEntry]:
        listed.append(uri)
        return [entry]

    monkeypatch.setattr(storage, "list_files", list_files)
    assert files_of("/pairs.parquet", Store()) == [entry] and listed == ["/"]
    files_of("s3://bucket/folder/pairs.parquet", Store())
    assert listed[-1] == "s3://bucket/folder"


def test_two_runs_on_one_output_both_end(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 6, 2)
    with ThreadPoolExecutor(max_workers=3) as pool:
        results = list(pool.map(lambda _: run(INGEST, tmp_path / "src", tmp_path / "out"), range(3)))
    assert {result.report["kept"] for result in results} == {12}
    alone = run(INGEST, tmp_path / "src", tmp_path / "alone")
    assert snapshot(results[0].directory) == snapshot(alone.directory)


def test_a_write_whose_temporary_file_another_run_removes_is_made_again(tmp_path: Path) -> None:
    stop = threading.Event()

    def clean() -> None:
        while not stop.is_set():
            storage.remove_partial_files(tmp_path)

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    try:
        for number in range(100):
            storage.write_bytes(tmp_path / f"{number % 7}", b"x")
    finally:
        stop.set()
        cleaner.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(number) for number in range(7)]


def test_bad_rows_at_the_front_are_judged_by_the_whole_input(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for shard in range(4):
        members: dict[str, bytes] = {}
        for number in range(26):
            members |= sample(f"{number}", b"broken" if shard == 0 and number < 12 else jpeg(picture(number)))
        (tmp_path / f"src/{shard}.tar").write_bytes(tar_bytes(members))
    limit = replace(SMALL, execution=ExecutionSettings(max_error_fraction=0.12))
    assert run(INGEST, tmp_path / "src", tmp_path / "out", limit).report["quarantined"] == {"unreadable_image": 12}
    strict = replace(SMALL, execution=ExecutionSettings(max_error_fraction=0.11))
    with pytest.raises(
        ValueError, match=r"12 of 104 rows are quarantined .* --set preprocess\.execution\.max_error_fraction=1"
    ):
        run(INGEST, tmp_path / "src", tmp_path / "out", strict)


def test_bad_rows_in_a_small_shard_are_not_taken_for_all(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    bad = {f"{number}.jpg": b"broken" for number in range(15)}
    good = {f"{number}.jpg": jpeg(picture(number)) for number in range(300)}
    (tmp_path / "src/0.tar").write_bytes(tar_bytes(bad))
    (tmp_path / "src/1.tar").write_bytes(tar_bytes(good))
    for name, data in (bad | {f"x{name}": data for name, data in good.items()}).items():
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    limit = replace(SMALL, execution=ExecutionSettings(max_error_fraction=0.05, workers=1))
    limit = replace(limit, ingest=replace(limit.ingest, unit_size=4))
    for source in ("src", "folder"):
        report = run(INGEST, tmp_path / source, tmp_path / "out", limit).report
        assert (report["in"], report["quarantined"]) == (315, {"unreadable_image": 15})
    score = run(SCORE, run(INGEST, tmp_path / "src", tmp_path / "out", limit).directory, tmp_path / "out", limit)
    assert score.report["in"] == 300


@pytest.mark.parametrize(
    ("known", "sizes", "rows_in", "expected"),
    [
        (315, [10, 90], 15, 315),
        (10, [10, 90], 15, 15),  # more came in than were known
        (None, [10, 90], 999, math.inf),  # too few to guess by
        (None, [10, 90], 1000, 10_000),  # by bytes: the first is a tenth
        (None, [90, 10], 1000, 2000),  # by units: the first is one of two
        (None, [0, 0], 1000, 2000),  # of parts that a stage wrote no size is known
    ],
)
def test_rows_of_the_whole_input_are_known_or_guessed(
    known: int | None, sizes: list[int], rows_in: int, expected: float
) -> None:
    units = [
        Unit(name=f"{n}", identity="", kind=UnitKind.TAR, files=(InputFile(name=f"{n}", uri="", size=size),))
        for n, size in enumerate(sizes)
    ]
    rows = ExpectedRows(known, units, before=0)
    rows.done(units[0])
    assert rows.of(rows_in) == expected


def test_a_job_whose_rows_fail_everywhere_stops_early(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for shard in range(8):
        members = {f"{n}.jpg": b"broken" if n % 2 else jpeg(picture(n)) for n in range(300)}
        (tmp_path / f"src/{shard}.tar").write_bytes(tar_bytes(members))
    strict = replace(SMALL, execution=ExecutionSettings(max_error_fraction=0.2))
    with pytest.raises(ValueError, match="600 of 1200 rows are quarantined"):
        run(INGEST, tmp_path / "src", tmp_path / "out", strict)
