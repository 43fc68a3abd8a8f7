"""Two clients on one stage share its units; one that is killed leaves its units to the other."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from realcustom import storage
from realcustom.preprocessing.catalogue import INGEST, SCORE, SELECT
from realcustom.preprocessing.engine import executors, sharing, worker
from realcustom.preprocessing.engine.unit import SealedUnit, Unit
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.settings import ExecutionSettings, IngestSettings, PreprocessSettings, SelectSettings
from tests.support.clients import clients
from tests.support.corpora import write_shards

SETTINGS = PreprocessSettings(
    ingest=IngestSettings(corpus="toys"),
    select=SelectSettings(min_side=16),
    execution=ExecutionSettings(attempts=4, backoff=0.05),
)
UNITS = 6


def run(stage: str, source: str, output: str) -> StageResult:
    stages = {each.name: each for each in (INGEST, SCORE, SELECT)}
    return run_stage(stages[stage], source, output, SETTINGS, executor=InProcess())


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_clients_do_each_unit_once(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", UNITS, 3)
    alone = run("ingest", str(tmp_path / "src"), str(tmp_path / "alone"))
    with clients(2) as both:
        for client in both:
            client.begin(INGEST, str(tmp_path / "src"), str(tmp_path / "both"), SETTINGS)
        said = [client.done() for client in both]
    done = [units for units, _ in said]
    assert sorted(done[0] + done[1]) == sorted(set(done[0] + done[1])) and len(done[0] + done[1]) == UNITS
    assert all(done), "both were useful"
    assert {counts for _, counts in said} == {(UNITS, alone.report["in"])}
    assert tree(tmp_path / "both") == tree(tmp_path / "alone"), "one set of outputs, and no lease is left"
    assert not (tmp_path / "both" / "leases").exists()


def test_a_killed_client_leaves_its_units_to_the_other(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", UNITS, 3)
    run("ingest", str(tmp_path / "src"), str(tmp_path / "alone"))
    with clients(1) as [killed]:
        killed.begin(INGEST, str(tmp_path / "src"), str(tmp_path / "both"), SETTINGS)
        assert killed.kill_after_a_unit()
    begun = time.monotonic()
    run("ingest", str(tmp_path / "src"), str(tmp_path / "both"))
    assert time.monotonic() - begun < 10, "it is of this machine, and its end is seen"
    assert tree(tmp_path / "both") == tree(tmp_path / "alone")


def test_a_unit_that_another_has_is_counted_when_it_is_done(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a store: the second client begins in the middle of the first one's work, and both reports are of all units."""
    write_shards(tmp_path / "src", 3, 2)
    commit = worker.commit_unit
    results: list[StageResult] = []

    def begin_another(job: worker.StageJob, unit: Unit, sealed: SealedUnit) -> None:
        monkeypatch.setattr(worker, "commit_unit", commit)
        others = executors.InProcess()
        plain = others.run

        def once(inner: worker.StageJob, units: object) -> object:
            yield from plain(inner, units)  # type: ignore[arg-type]
            commit(job, unit, sealed)  # the first one's unit is done while the second one waits

        others.run = once  # type: ignore[method-assign, assignment]
        results.append(run_stage(INGEST, str(tmp_path / "src"), f"{bucket}/out", SETTINGS, executor=others))

    monkeypatch.setattr(worker, "commit_unit", begin_another)
    results.append(run("ingest", str(tmp_path / "src"), f"{bucket}/out"))
    assert [result.report["units"] for result in results] == [3, 3]
    assert [result.report["in"] for result in results] == [6, 6]
    assert not [entry.name for entry in storage.list_files(f"{bucket}/out") if "leases" in entry.name]
    report = json.loads(storage.read_bytes(f"{results[0].directory}/report.json"))
    assert report["in"] == 6


def test_who_waits_for_another_s_unit_looks_and_starts_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "src", 3, 2)
    commit = worker.commit_unit
    passes, told = list[int](), list[int]()

    def begin_another(job: worker.StageJob, unit: Unit, sealed: SealedUnit) -> None:
        class Second(InProcess):
            def run(self, job: worker.StageJob, units: Sequence[Unit]) -> Iterator[worker.Outcome]:
                passes.append(len(units))
                return super().run(job, units)

            def tell_left(self, _: worker.StageJob, units: int) -> None:
                told.append(units)

        def pause(_: float) -> None:
            if len(told) == 3:
                commit(job, unit, sealed)

        monkeypatch.setattr(worker, "commit_unit", commit)
        monkeypatch.setattr(sharing, "time", SimpleNamespace(sleep=pause))
        run_stage(INGEST, str(tmp_path / "src"), str(tmp_path / "out"), SETTINGS, executor=Second())

    monkeypatch.setattr(worker, "commit_unit", begin_another)
    run("ingest", str(tmp_path / "src"), str(tmp_path / "out"))
    assert passes == [3]
    assert told == [1, 1, 1, 0]


@pytest.mark.slow
def test_only_one_client_looks_for_copies_at_a_time(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", UNITS, 3)
    ingested = run("ingest", str(tmp_path / "src"), str(tmp_path / "both"))
    scored = run("score", ingested.directory, str(tmp_path / "both"))
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / Path(scored.directory).name).symlink_to(
        scored.directory
    )  # the page links to it, if it is beside
    alone = run("select", scored.directory, str(tmp_path / "alone"))
    with clients(2) as both:
        for client in both:
            client.begin(SELECT, scored.directory, str(tmp_path / "both"), SETTINGS)
        units = [unit for client in both for unit in client.done()[0]]
    assert len(units) == len(set(units))
    name = Path(alone.directory).name
    assert tree(tmp_path / "both" / name) == tree(tmp_path / "alone" / name)
