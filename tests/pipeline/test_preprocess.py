"""`realcustom preprocess STAGE` end to end on the session's cluster: photographs, and a command of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import run

PHOTOS = Path(__file__).parent.parent / "data" / "photos"
NO_MODELS = ["--set", "preprocess.score.clip=null", "--set", "preprocess.score.heads=null"]


def stage(capsys: pytest.CaptureFixture[str], *arguments: str) -> Path:
    """Run the verb in this process; returns the directory that it printed last."""
    assert run(["preprocess", *arguments]) == 0
    directory = Path(capsys.readouterr().out.splitlines()[-1])
    assert (directory / "report.json").is_file()
    return directory


def counts(directory: Path) -> tuple[int, int, int, int]:
    report = json.loads((directory / "report.json").read_text())
    dropped, quarantined = sum(report["dropped"].values()), sum(report["quarantined"].values())
    assert report["in"] == report["kept"] + dropped + quarantined
    return report["in"], report["kept"], dropped, quarantined


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """The three photographs, one of them twice, and one cut in half."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for photo in PHOTOS.glob("*.jpg"):
        (folder / photo.name).write_bytes(photo.read_bytes())
        (folder / photo.with_suffix(".txt").name).write_text(f"a photo of a {photo.stem.split('_')[1]}")
    boot = (PHOTOS / "fancy_boot.jpg").read_bytes()
    (folder / "again.jpg").write_bytes(boot)
    (folder / "cut.jpg").write_bytes(boot[: len(boot) // 2])
    return folder


def test_photographs_from_a_folder_to_a_selection(
    ray_cluster: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "records"
    ingested = stage(capsys, "ingest", "--input", str(pictures), "--output", str(root))
    assert counts(ingested) == (5, 4, 0, 1)
    scored = stage(capsys, "score", "--input", str(ingested), "--output", str(root), *NO_MODELS)
    assert counts(scored) == (4, 4, 0, 0)
    selected = stage(capsys, "select", "--input", str(scored), "--output", str(root))
    assert counts(selected) == (4, 3, 1, 0)
    filtered = stage(capsys, "filter", "--input", str(ingested), "--output", str(root), *NO_MODELS)
    assert filtered == selected  # the same settings: the same directories, nothing done again
    assert run(["inspect", str(selected)]) == 0
    described = capsys.readouterr().out
    assert "stage: select" in described and "3 rows in 1 Parquet files" in described


def test_a_command_of_its_own_joins_the_cluster_and_writes_the_bytes_of_a_local_run(
    ray_cluster: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Path(sys.executable).with_name("realcustom")
    arguments = ["preprocess", "ingest", "--input", str(pictures), "--output"]
    done = subprocess.run([command, *arguments, str(tmp_path / "ray")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    account, directory = done.stdout.splitlines()
    assert account == "ingest: 5 in = 4 kept + 0 dropped + 1 quarantined (truncated_image 1); 4 rows written"
    local = stage(capsys, *arguments[1:], str(tmp_path / "local"), "--local")
    assert local.name == Path(directory).name
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_a_limited_run_is_finished_by_the_next(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ingest", "--input", str(pictures), "--output", str(tmp_path / "records"), "--local"]
    arguments += ["--set", "preprocess.ingest.unit_size=2"]
    assert run(["preprocess", *arguments, "--limit", "1"]) == 0
    out, err = capsys.readouterr()
    assert "2 units left" in err
    assert not (Path(out.splitlines()[-1]) / "report.json").exists()
    assert counts(stage(capsys, *arguments)) == (5, 4, 0, 1)
