"""A disk without room, a real one: the job stops in words, nothing is half-written, a rerun with room completes it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from realcustom.preprocessing.catalogue import INGEST, SCORE, SELECT
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import PreprocessSettings, SelectSettings
from tests.support.corpora import snapshot, write_shards
from tests.support.mounts import mounted, resize

SETTINGS = PreprocessSettings(select=SelectSettings(min_side=16))
PAGE = 4096  # bytes: what a tmpfs grows by


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "size=1m") as folder:
        yield folder


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow above `size` bytes inside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run(stages: tuple[Stage, ...], source: Path, output: Path) -> Path:
    directory = str(source)
    for stage in stages:
        directory = run_stage(stage, directory, str(output), SETTINGS, executor=InProcess()).directory
    return Path(directory)


def check_whole_units(root: Path) -> int:
    """Every manifest's outputs are there and what it says; no other file is a part of one. Returns how many there are."""
    assert not list(root.rglob(".tmp-*"))
    manifests = sorted(root.rglob("manifests/*.json"))
    for path in manifests:
        for name, output in json.loads(path.read_text())["outputs"].items():
            assert hashlib.sha256((path.parents[1] / name).read_bytes()).hexdigest() == output["sha256"], path
    return len(manifests)


def test_wherever_a_disk_fills_up_a_rerun_with_room_completes_the_work(disk: Path, tmp_path: Path) -> None:
    stages = (INGEST, SCORE, SELECT)
    write_shards(tmp_path / "src", 3, 2)
    run(stages, tmp_path / "src", tmp_path / "whole")
    whole = snapshot(tmp_path / "whole")
    pages = sum(-(-len(data) // PAGE) for data in whole.values())
    begun = set()
    for size in range(2, pages, 12):
        output = disk / "out"
        resize(disk, size * PAGE)
        with pytest.raises(ValueError, match=r"cannot write \S+: the disk is full"):
            run(stages, tmp_path / "src", output)
        begun.add(check_whole_units(output))
        resize(disk, 4 * pages * PAGE)
        run(stages, tmp_path / "src", output)
        assert snapshot(output) == whole, f"{size} pages"
        shutil.rmtree(output)
    assert len(begun) > 3  # it stopped at many places


def test_a_file_that_may_not_grow_as_large_is_said_so(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 1, 6, size=(200, 160))
    whole = run((INGEST,), tmp_path / "src", tmp_path / "whole")
    with (
        largest_file(8000),
        pytest.raises(ValueError, match=r"cannot write \S+/shard-00000\.parquet: the file is larg"),
    ):
        run((INGEST,), tmp_path / "src", tmp_path / "out")
    assert check_whole_units(tmp_path / "out") == 0
    assert snapshot(run((INGEST,), tmp_path / "src", tmp_path / "out")) == snapshot(whole)
