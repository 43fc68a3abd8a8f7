"""`realcustom preprocess STAGE` end to end on the session's cluster: photographs, and a command of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from realcustom.pipeline.cli.main import run
from realcustom.preprocessing.catalogue import CHAIN
from realcustom.record import check_schema
from realcustom.sprites.corpus import CorpusSettings, write_corpus
from tests.support.corpora import jpeg, picture

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
    assert run(["inspect", str(root / "select@*")]) == 0
    assert capsys.readouterr().out == described
    assert run(["inspect", str(root)]) == 0
    ingest, score, select = sorted(path.name for path in root.iterdir())
    assert f"{ingest}: ingest: 5 in = 4 kept" in (lines := capsys.readouterr().out)
    assert f"{score}: score: 4 in = 4 kept" in lines and f"{select}: select: 4 in = 3 kept" in lines


def test_a_command_of_its_own_joins_the_cluster_and_writes_the_bytes_of_a_local_run(
    ray_cluster: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Path(sys.executable).with_name("realcustom")
    arguments = ["preprocess", "ingest", "--input", str(pictures), "--output"]
    done = subprocess.run([command, *arguments, str(tmp_path / "ray")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    account, directory = done.stdout.splitlines()
    assert (
        account
        == "ingest: 5 in = 4 kept + 0 dropped + 1 quarantined (truncated_image 1); 4 rows written; 1 of the kept without caption"
    )
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


def test_captions_of_a_table_are_options(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.csv").write_text("name,what\nduck_toy,yellow duck\nrobot_toy,robot\n")
    arguments = ["ingest", "--input", str(pictures), "--output", str(tmp_path / "records"), "--local"]
    given = [
        "--metadata",
        str(tmp_path / "list.csv"),
        "--join",
        "stem=name",
        "--caption-template",
        "a photo of a {what}",
    ]
    ingested = stage(capsys, *arguments, *given)
    assert counts(ingested) == (5, 2, 3, 0)
    table = pq.read_table(next(ingested.glob("*.parquet")), columns=["key", "alt_text"])
    assert table["alt_text"].to_pylist() == ["a photo of a yellow duck", "a photo of a robot"]
    assert run(["preprocess", *arguments, *given[:-1], "a {that}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ingest.caption_template: no column 'that'; list.csv has the columns name, what")
    assert run(["preprocess", *arguments, *given, "--print-config"]) == 0
    assert "caption_template: a photo of a {what}" in capsys.readouterr().out


def test_a_dry_run_says_what_all_would_take_and_leaves_nothing(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "records"
    small = ["--set", "preprocess.ingest.unit_size=2", "--local"]
    arguments = ["ingest", "--input", str(pictures), "--output", str(root), *small]
    assert run(["preprocess", *arguments, "--dry-run", "2", "--hourly-price", "0.5"]) == 0
    out = capsys.readouterr().out
    said = re.match(
        r"ingest: 2 of (\d) units tried, \d rows in .* worker hours = .* at 0.5 an hour, about .* written", out
    )
    assert said is not None and 2 < int(said[1]) <= 5  # of five pictures, two at most in a unit
    assert not root.exists()
    ingested = stage(capsys, *arguments)
    before = contents(root)
    assert (
        run(["preprocess", "filter", "--input", str(ingested), "--output", str(root), *NO_MODELS, "--dry-run", "1"])
        == 0
    )
    score, select, together = capsys.readouterr().out.splitlines()
    assert score.startswith(f"score: 1 of {said[1]} units") and select.startswith(f"select: 1 of {said[1]} units")
    assert together.startswith("together: ") and contents(root) == before
    assert run(["preprocess", *arguments, "--dry-run", "1", "--limit", "1"]) == 2
    assert "give one of the two" in capsys.readouterr().err


def test_a_selection_as_shards(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--output", str(tmp_path / "records"), "--local"]
    ingested = stage(capsys, "ingest", "--input", str(pictures), *root)
    exported = stage(capsys, "export", "--input", str(ingested), *root)
    assert counts(exported) == (4, 4, 0, 0) and len(list(exported.glob("pictures-*.tar"))) == 1
    assert run(["inspect", str(exported)]) == 0
    assert capsys.readouterr().out.endswith("4 rows written\n1 webdataset shards\n")
    again = stage(capsys, "ingest", "--input", str(exported), *root)
    assert counts(again) == (4, 4, 0, 0)


def test_all_stages_in_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "corpus", CorpusSettings(pictures=10, per_shard=5))
    root = tmp_path / "records"
    encoded = stage(capsys, "all", "--input", str(tmp_path / "corpus/shards"), "--output", str(root), "--local")
    assert sorted(path.name.partition("@")[0] for path in root.iterdir()) == sorted(stage.name for stage in CHAIN)
    _, kept, _, _ = counts(encoded)
    assert kept > 0
    check_schema(pq.read_schema(next(encoded.glob("*.parquet"))))


def test_models_of_drawings_on_photographs_are_warned_of_before_they_run(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--output", str(tmp_path / "records"), "--local"]
    (pictures / "thumbnail.jpg").write_bytes(jpeg(picture(99, (32, 32))))
    ingested = stage(capsys, "ingest", "--input", str(pictures), *common)
    assert run(["preprocess", "score", "--input", str(ingested), *common]) == 0
    said = capsys.readouterr().err
    assert "score.clip and score.heads, the models of the recipe `sprites`, know drawings of 32 pixels alone" in said
    assert run(["preprocess", "score", "--input", str(ingested), *common, *NO_MODELS]) == 0
    assert "know drawings" not in capsys.readouterr().err


def test_files_that_are_not_read_are_on_the_last_line(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "again.npz").write_bytes(b"PK")
    (pictures / ".DS_Store").write_bytes(b"x")
    assert (
        run(["preprocess", "ingest", "--input", str(pictures), "--output", str(tmp_path / "records"), "--local"]) == 0
    )
    line, directory = capsys.readouterr().out.splitlines()
    assert line.endswith("; 1 of the kept without caption; 2 files not read: 1 .npz, 1 hidden")
    page = (Path(directory) / "report.html").read_text()
    assert "files not read: .npz" in page and "again.npz" in page and "again.jpg" in page
