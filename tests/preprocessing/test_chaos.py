"""Stages under kill -9, under a unit that kills its workers, with other numbers of workers and other orders of files.

The whole of it, 50 kills of every stage, is benchmarks/chaos.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from realcustom.preprocessing.catalogue import CAPTION, CHAIN, INGEST
from realcustom.preprocessing.engine import ray_data
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.engine.worker import StageJob
from realcustom.preprocessing.errors import StageBug
from realcustom.preprocessing.run import run_stage
from realcustom.preprocessing.settings import ExecutionSettings, PreprocessSettings
from realcustom.sprites.corpus import CorpusSettings, write_corpus
from tests.support.chaos import METHOD, Task, disturb
from tests.support.chaos_checks import chaos_settings, check_survived, undisturbed, write_corrupted
from tests.support.corpora import snapshot, write_shards

SEED = 20


def survive(stage: Stage, source: str, root: Path, settings: PreprocessSettings, address: str, kills: int) -> str:
    """Disturb a stage `kills` times, one in ten of them (and at least one) at the driver; its undisturbed directory."""
    whole = undisturbed(stage, source, root / "whole" / stage.name, settings)
    output = root / "disturbed" / stage.name
    task = Task(stage=stage, source=source, output=output, settings=settings, units=whole.units)
    drivers = max(1, kills // 10)
    outcome = disturb(task, address, workers=kills - drivers, drivers=drivers, seed=SEED + CHAIN.index(stage))
    assert outcome.kills == kills
    check_survived(task, outcome, whole, least=0.8 if kills >= 50 else 0.3)  # of three, one may miss by chance
    return whole.directory


@pytest.mark.slow
def test_three_kills_leave_the_bytes_as_they_are(ray_cluster: str, tmp_path: Path) -> None:
    source = write_corrupted(tmp_path / "corpus", 40, samples=4, size=(64, 48))
    settings = chaos_settings(tmp_path / "models")
    ingested = undisturbed(INGEST, source, tmp_path / "ingested", settings).directory
    # a captioner's units are slow enough to be killed in; a quick machine can end a stage without models too early
    survive(CAPTION, ingested, tmp_path, settings, ray_cluster, kills=3)


@pytest.mark.slow
def test_fifty_kills_of_every_stage(ray_cluster: str, tmp_path: Path) -> None:
    source = write_corrupted(tmp_path / "corpus", 160, samples=4)
    settings = chaos_settings(tmp_path / "models")
    for stage in CHAIN:
        source = survive(stage, source, tmp_path, settings, ray_cluster, kills=50)


def test_a_unit_that_kills_its_workers_is_named(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ray_data._whole

    def deadly(job: StageJob, units: Sequence[Unit]) -> Callable[[pa.Table], pa.Table]:
        sound = whole(job, units)

        def run(batch: pa.Table) -> pa.Table:
            if "shard-00001" in batch["unit"][0].as_py():
                os.kill(os.getpid(), signal.SIGKILL)
            return sound(batch)

        return run

    monkeypatch.setattr(ray_data, "_whole", deadly)
    settings = PreprocessSettings(execution=ExecutionSettings(workers=2, max_worker_deaths=1))
    source = str(write_shards(tmp_path / "src", 2, 2))
    with pytest.raises(StageBug, match=r"unit shard-00001 .*2 workers died of it.*max_worker_deaths=1"):
        run_stage(INGEST, source, str(tmp_path / "out"), settings)


def test_the_order_of_listings_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir, rng = os.scandir, random.Random(SEED)

    @contextlib.contextmanager
    def shuffled(folder: str) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(folder) as found:
            items = list(found)
        yield rng.sample(items, len(items))

    write_corpus(tmp_path / "corpus", CorpusSettings(pictures=8, per_shard=2, corrupted=1))
    settings = chaos_settings(tmp_path / "models")
    first = second = str(tmp_path / "corpus" / "shards")
    for stage in CHAIN:
        first = undisturbed(stage, first, tmp_path / "first", settings).directory
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", shuffled)
            second = undisturbed(stage, second, tmp_path / "second", settings).directory
        assert snapshot(first) == snapshot(second), stage


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte(ray_cluster: str, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", CorpusSettings(pictures=48, per_shard=4, corrupted=1))
    settings = chaos_settings(tmp_path / "models")
    sources = dict.fromkeys((1, 2), str(tmp_path / "corpus" / "shards"))
    for stage in CHAIN:
        for workers, source in sources.items():
            counted = replace(settings, execution=replace(settings.execution, workers=workers))
            output = str(tmp_path / f"workers-{workers}")
            sources[workers] = run_stage(stage, source, output, counted, method=METHOD).directory
        assert snapshot(sources[1]) == snapshot(sources[2]), stage


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    source = str(write_shards(tmp_path / "src", 2, 2))
    directory = Path(undisturbed(INGEST, source, tmp_path / "out", PreprocessSettings()).directory)
    wanted = snapshot(directory)
    (directory / "report.json").unlink()
    for left in (directory / ".tmp-1", directory / "manifests" / ".tmp-2"):
        left.write_bytes(b"a part")
    assert undisturbed(INGEST, source, tmp_path / "out", PreprocessSettings()).units == 2
    assert snapshot(directory) == wanted
