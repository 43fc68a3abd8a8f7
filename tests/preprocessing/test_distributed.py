"""Stages on Ray Data: the same bytes after a kill, and plain words for errors. With models: test_batch_size.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from realcustom.leases import Claims, holding
from realcustom.preprocessing.catalogue import INGEST, SCORE, SELECT
from realcustom.preprocessing.engine import ray_data
from realcustom.preprocessing.engine.cluster import bundle_size
from realcustom.preprocessing.engine.ray_data import RemoteTrace, _bundled, _bundles, _committing, _whole
from realcustom.preprocessing.engine.ray_metrics import StageMetrics
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.engine.unit import InputFile, Unit, UnitKind
from realcustom.preprocessing.engine.worker import StageJob, Work
from realcustom.preprocessing.errors import StageBug
from realcustom.preprocessing.inputs import open_input
from realcustom.preprocessing.run import InProcess, OnRay, StageResult, run_stage
from realcustom.preprocessing.select import partitions
from realcustom.preprocessing.settings import ExecutionSettings, PreprocessSettings, ScoreSettings, SelectSettings
from realcustom.preprocessing.tables import to_parquet
from realcustom.store import Store
from tests.support.corpora import jpeg, picture, sample, snapshot, tar_bytes, write_shards
from tests.support.signatures import planted, write_scored

DRIVER = """
import sys, ray
from realcustom.preprocessing.catalogue import INGEST
from realcustom.preprocessing.run import OnRay, run_stage
from realcustom.preprocessing.settings import ExecutionSettings, PreprocessSettings
settings = PreprocessSettings(execution=ExecutionSettings(workers=1))
start = lambda: ray.init(address="auto", log_to_driver=False, logging_level="error")
run_stage(INGEST, sys.argv[1], sys.argv[2], settings, executor=OnRay(start))
"""


def run(stage: Stage, source: str | Path, output: Path, settings: PreprocessSettings, local: bool) -> StageResult:
    return run_stage(stage, str(source), str(output), settings, executor=InProcess() if local else OnRay())


def manifests(output: Path) -> list[Path]:
    return sorted(output.glob("ingest@*/manifests/*.json"))


def test_a_killed_driver_loses_at_most_the_units_in_flight(ray_cluster: str, tmp_path: Path) -> None:
    data = jpeg(picture(0, (2000, 1500)))
    (tmp_path / "src").mkdir()
    for shard in range(6):
        members: dict[str, bytes] = {}
        for number in range(16):
            members |= sample(f"{shard}-{number}", data)
        (tmp_path / f"src/{shard}.tar").write_bytes(tar_bytes(members))
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path / "src"), str(tmp_path / "out")],
            stdout=log,
            stderr=log,
            env={**os.environ, "RAY_ADDRESS": ray_cluster},
        )
    try:
        deadline = time.monotonic() + 300
        while not manifests(tmp_path / "out") and time.monotonic() < deadline and driver.poll() is None:
            time.sleep(0.02)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    finished = {manifest.name.split(".")[0] for manifest in manifests(tmp_path / "out")}
    assert 1 <= len(finished) < 6, (tmp_path / "log").read_text()
    (directory,) = (tmp_path / "out").glob("ingest@*")
    assert not (directory / "report.json").exists()
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.name.split(".")[0] in finished}
    assert len(before) == 3 * len(finished)

    again = run(INGEST, tmp_path / "src", tmp_path / "out", PreprocessSettings(), local=False)
    assert 1 <= again.units_run < 6
    assert {path: path.stat().st_mtime_ns for path in before} == before
    undisturbed = run(INGEST, tmp_path / "src", tmp_path / "whole", PreprocessSettings(), local=True)
    left = {name: data for name, data in snapshot(directory).items() if ".tmp-" not in name}
    assert left == snapshot(undisturbed.directory)


def test_a_distributed_search_for_copies_gives_the_same_bytes(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "UNITS_PER_BLOCK", 2)
    source = write_scored(tmp_path / "scored", planted(300, 60)[0], 60)
    base = PreprocessSettings(execution=ExecutionSettings(workers=2))
    cuts = {
        "exact": SelectSettings(partition_rows=130),
        "tables": SelectSettings(partition_rows=400, exact_search_rows=0),
    }
    for name, select in cuts.items():
        settings = replace(base, select=select)
        alone = run(SELECT, source, tmp_path / name / "alone", settings, local=True)
        many = run(SELECT, source, tmp_path / name / "many", settings, local=False)
        assert snapshot(alone.directory) == snapshot(many.directory)
        assert alone.report["dropped"] == {"near_duplicate": 60}


def test_an_error_on_a_worker_is_said_plainly(ray_cluster: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 1, 1)
    ingested = run(INGEST, tmp_path / "src", tmp_path / "out", PreprocessSettings(), local=True)
    (Path(ingested.directory) / "shard-00000.parquet").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"unit shard-00000: .* is not a readable table"):
        run(SCORE, ingested.directory, tmp_path / "out", PreprocessSettings(), local=False)


def test_a_bug_on_a_worker_brings_its_trace_to_the_driver(ray_cluster: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 1, 2)
    buggy = replace(INGEST, load=lambda job: lambda unit, data: np.zeros(3) + np.zeros(2))  # type: ignore[arg-type, return-value]
    with pytest.raises(StageBug, match="unit shard-00000: ValueError: operands could not be broadcast") as caught:
        run(buggy, tmp_path / "src", tmp_path / "out", PreprocessSettings(), local=False)
    assert isinstance(caught.value.__cause__, RemoteTrace)
    shown = "".join(traceback.format_exception(caught.value))
    assert "np.zeros(3) + np.zeros(2)" in shown and "ray_data.py" in shown


def test_a_worker_tells_refusals_from_bugs(tmp_path: Path) -> None:
    broken = InputFile(name="x.parquet", uri=str(tmp_path / "x.parquet"), size=0)
    unit = Unit(name="x", identity="0", kind=UnitKind.PART, files=(broken,))
    batch = pa.table({"unit": [unit.to_json()]})
    settings = PreprocessSettings(score=ScoreSettings(clip=str(tmp_path), heads=str(tmp_path)))
    job = SCORE.job(settings, str(tmp_path))
    missing = _whole(job)(batch)
    assert "no file at" in missing["refusal"][0].as_py() and not missing["bug"][0].as_py()
    (tmp_path / "x.parquet").write_bytes(to_parquet(pa.table({"uid": ["1"]})))
    plain = replace(job, settings=PreprocessSettings())
    assert "the column 'key' is missing" in _whole(plain)(batch)["refusal"][0].as_py()
    assert _committing(plain)(missing).equals(missing)  # a later operator hands an error on
    buggy = _whole(replace(plain, load=_broken))(batch)
    assert "unit x: ValueError: operands could not be broadcast" in buggy["bug"][0].as_py()
    assert "Traceback" in buggy["trace"][0].as_py() and "np.zeros(3) + np.zeros(2)" in buggy["trace"][0].as_py()
    assert not buggy["refusal"][0].as_py()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.parquet"]


def test_after_a_failure_no_unit_of_a_bundle_is_begun(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 4, 1)
    ingested = run(INGEST, tmp_path / "src", tmp_path / "out", PreprocessSettings(), local=True)
    (Path(ingested.directory) / "shard-00002.parquet").write_bytes(b"garbage")
    settings = PreprocessSettings()
    source = open_input(SCORE, ingested.directory, settings, Store())
    job = SCORE.job(settings, str(tmp_path / "scored"))
    bundle = pa.table({"unit": [unit.to_json() for unit in source.units]})
    loaded: list[Work] = []

    def counting(job: StageJob) -> Work:
        loaded.append(SCORE.load(job))
        return loaded[-1]

    rows = list(_bundled(lambda units: _whole(replace(job, load=counting), units))(bundle))
    assert [bool(row["counts"][0].as_py()) for row in rows] == [True, True, False] and len(loaded) == 1
    assert "is not a readable table" in rows[2]["refusal"][0].as_py()
    assert sorted(path.name for path in (tmp_path / "scored").glob("*.parquet")) == [
        *("shard-00000.parquet", "shard-00001.parquet")
    ]


def test_a_bundle_that_comes_again_is_counted_and_not_done_again(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 3, 2)
    settings, store = PreprocessSettings(), Store()
    units = open_input(INGEST, str(tmp_path / "src"), settings, store).units
    bundle = pa.table({"unit": [unit.to_json() for unit in units]})
    with holding(str(tmp_path / "leases"), store) as claims:
        job = replace(INGEST.job(settings, str(tmp_path / "out")), claims=claims)
        first = list(_bundled(lambda units: _whole(job, units))(bundle))
        again = list(_bundled(lambda units: _whole(replace(job, load=_broken), units))(bundle))  # its worker was lost
    counts = [[row["counts"][0].as_py() for row in rows] for rows in (first, again)]
    assert counts[0] == counts[1] and [json.loads(text)["in"] for text in counts[0]] == [2, 2, 2]
    assert all(_committing(job)(row).equals(row) for row in again)


@pytest.mark.parametrize("on_store", [False, True])
def test_what_another_client_has_done_of_a_bundle_is_found_at_one_look(
    on_store: bool, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "src", 3, 2)
    settings, store = PreprocessSettings(), Store()
    units = open_input(INGEST, str(tmp_path / "src"), settings, store).units
    bundle = pa.table({"unit": [unit.to_json() for unit in units]})
    root = bucket if on_store else str(tmp_path)
    job = INGEST.job(settings, f"{root}/out")
    assert job.stage_directory().counts_among(units) == {}
    with holding(f"{root}/leases", store) as claims, holding(f"{root}/leases", store) as others:
        done = list(_bundled(lambda units: _whole(replace(job, claims=others), units))(bundle.slice(1)))
        first = list(_bundled(lambda units: _whole(replace(job, claims=claims), units))(bundle.slice(0, 2)))
        with monkeypatch.context() as patch:
            patch.setattr(Claims, "take", lambda *_: pytest.fail("a unit was asked for"))
            again = list(_bundled(lambda units: _whole(replace(job, claims=claims), units))(bundle))
    assert [row["taken"][0].as_py() for row in first] == ["", "done before"]
    assert [row["taken"][0].as_py() for row in again] == ["done before"] * 3
    assert [row["counts"][0] for row in again[1:]] == [row["counts"][0] for row in done]


def test_a_unit_that_another_client_has_is_still_left(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the gauge stands still while nothing goes on, and its alert fires."""
    write_shards(tmp_path / "src", 3, 2)
    settings, store, ended = PreprocessSettings(), Store(), list[str]()
    units = open_input(INGEST, str(tmp_path / "src"), settings, store).units

    class Noting(StageMetrics):
        def unit_ended(self, outcome: str) -> None:
            ended.append(outcome)

        def close(self) -> None:
            pytest.fail("a unit is left")

    monkeypatch.setattr(ray_data, "StageMetrics", Noting)
    leases = str(tmp_path / "leases")
    with holding(leases, store) as claims, holding(leases, store) as others:
        assert others.take(units[1].name) is None
        job = replace(INGEST.job(settings, str(tmp_path / "out")), claims=claims)
        done = [outcome.unit for outcome in OnRay().run(job, units)]
    assert sorted(done) == [units[0].name, units[2].name] and ended == ["done", "done"]


def test_clients_take_bundles_in_orders_of_their_own(tmp_path: Path) -> None:
    file = InputFile(name="x.tar", uri="x.tar", size=0)
    units = [Unit(name=f"{n:02d}", identity="0", kind=UnitKind.TAR, files=(file,)) for n in range(60)]
    job = INGEST.job(PreprocessSettings(), str(tmp_path))
    alone = [bundle["unit"].to_pylist() for bundle in _bundles(job, units, 8)]
    assert [text for bundle in alone for text in bundle] == [unit.to_json() for unit in units]
    orders = []
    for holder in ("a", "b"):
        claims = Claims(folder=str(tmp_path), holder=holder, conditional=True, store=Store())
        orders.append([bundle["unit"].to_pylist() for bundle in _bundles(replace(job, claims=claims), units, 8)])
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == alone


@pytest.mark.parametrize(
    ("units", "places", "size"), [(10, 2, 1), (16, 2, 1), (160, 2, 10), (10**6, 100, 16), (3, 8, 1)]
)
def test_a_bundle_is_a_small_part_of_a_places_work(units: int, places: int, size: int) -> None:
    assert bundle_size(units, places) == size


def _broken(job: StageJob) -> Work:
    return lambda unit, data: np.zeros(3) + np.zeros(2)  # type: ignore[return-value]
