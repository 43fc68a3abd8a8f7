"""What a user gets wrong with `realcustom preprocess`: one line that says what to do, and nothing half-written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realcustom.pipeline.cli.main import run
from realcustom.preprocessing.catalogue import INGEST, SCORE
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import PreprocessSettings
from tests.support import tiny_models
from tests.support.corpora import encoded, jpeg, picture, png, write_shards
from tests.support.picture_server import served

NO_MODELS = ("score.clip=null", "score.heads=null")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources, tables and models, sound and otherwise, to be read only."""
    place = tmp_path_factory.mktemp("bad")
    write_shards(place / "shards", 1, 2)
    pictures = [png(picture(seed)) for seed in range(2)]
    for name in ("table", "fake", "numbers", "evaluation", "scans", "twice", "torn", "notes"):
        (place / name).mkdir()
    pq.write_table(pa.table({"image": pictures, "title": ["a", "b"]}), place / "table/t.parquet")
    pq.write_table(pa.table({"image": ["a.jpg", "b.jpg"], "caption": ["a", "b"]}), place / "fake/t.parquet")
    pq.write_table(pa.table({"image": [1, 2], "caption": ["a", "b"]}), place / "numbers/t.parquet")
    (place / "evaluation/cut.jpg").write_bytes(jpeg(picture(0))[:400])
    (place / "scans/a.tiff").write_bytes(encoded(picture(0), "TIFF"))
    (place / "notes/readme.txt").write_text("no model")
    for name, text in (("blank", "null"), ("halved", '{"model_type": "cl')):
        (place / name).mkdir()
        (place / name / "config.json").write_text(text)
    for stage, source, name in ((INGEST, "shards", "ingested"), (SCORE, "ingested", "scored")):
        result = run_stage(stage, str(place / source), str(place / "made"), PreprocessSettings(), executor=InProcess())
        shutil.copytree(result.directory, place / name)
    for name in ("a", "b"):
        shutil.copy(place / "scored/shard-00000.parquet", place / f"twice/{name}.parquet")
    whole = (place / "ingested/shard-00000.parquet").read_bytes()
    (place / "torn/a.parquet").write_bytes(whole)
    (place / "torn/b.parquet").write_bytes(whole[: len(whole) // 2])
    tiny_models.clip(place / "clip")
    tiny_models.blip(place / "blip")
    weights = place / "blip/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return place


# What is wrong: verb, --input, settings, words of the message.
MISTAKES: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "no such column": (
        "ingest",
        "table",
        ("ingest.image_column=picture",),
        "t.parquet has no column 'picture' but image, title; --set preprocess.ingest.image_column=NAME says which it is",
    ),
    "a column is missing": (
        "ingest",
        "table",
        (),
        "preprocess.ingest.caption_column=NAME says which it is (null where there are no captions)",
    ),
    "a column holds something else": ("ingest", "numbers", (), "ingest.image_column='image' holds int64, not encoded"),
    "names of files that are not there": (
        "ingest",
        "fake",
        (),
        "t.parquet holds the names of files, and no pictures lie",
    ),
    "a stage's column is missing": ("score", "table", NO_MODELS, "the column 'uid' is missing; it has image, title"),
    "a setting's name is mistyped": ("ingest", "shards", ("ingest.image_colum=x",), "did you mean 'preprocess.ingest."),
    "a device is mistyped": ("score", "ingested", ("compute.device=gpu",), "'gpu' is not allowed; did you mean 'cpu'"),
    "a table of another stage": ("select", "ingested", (), "select reads what score wrote, and "),
    "one uid in two files": ("select", "twice", (), "two rows have the uid "),
    "a torn table": (
        "score",
        "torn",
        (*NO_MODELS, "execution.max_error_fraction=1"),
        "torn/b.parquet is not a readable table (",
    ),
    "a hub model that is not known": (
        "score",
        "ingested",
        ("score.clip=nobody/nothing", "score.heads=null"),
        "'nobody/nothing' is neither a folder here nor a model that the hub answers for",
    ),
    "a folder that is no model": ("score", "ingested", ("score.clip={notes}",), "notes is no model: it has no config"),
    "a configuration that is none": (
        "score",
        "ingested",
        ("score.clip={blank}",),
        "config.json of {blank} is no model's",
    ),
    "a configuration that is cut": (
        "score",
        "ingested",
        ("score.clip={halved}",),
        "config.json of {halved} is not JSON",
    ),
    "a model of another kind": (
        "caption",
        "ingested",
        ("caption.model={clip}",),
        "caption.model: {clip} is a model of type 'clip', and 'blip' is what runs there",
    ),
    "weights that are cut": (
        "caption",
        "ingested",
        ("caption.model={blip}",),
        "caption.model: {blip}/model.safetensors cannot be loaded: ",
    ),
    "a later stage's model": (
        "all",
        "shards",
        ("subjects.segmenter={clip}",),
        "subjects.segmenter: {clip} is a model of type 'clip', and 'sam' is what runs there",
    ),
    "heads that are not there": (
        "score",
        "ingested",
        ("score.clip={clip}", "score.heads={notes}"),
        "score.heads: no file at {notes}/heads.safetensors",
    ),
    "an evaluation picture that is cut": (
        "select",
        "scored",
        ("select.evaluation_folder={evaluation}",),
        "cut.jpg cannot be read (truncated_image: ",
    ),
    "an evaluation picture of another format": (
        "select",
        "scored",
        ("select.evaluation_folder={scans}",),
        "a.tiff cannot be read (unsupported_format: ",
    ),
    "a threshold over nothing": ("select", "scored", ("select.max_nsfw=0.5",), "score ran without score.heads"),
}


def command(verb: str, source: str | Path, output: str | Path, settings: tuple[str, ...] = ()) -> list[str]:
    sets = [part for setting in settings for part in ("--set", f"preprocess.{setting}")]
    return ["preprocess", verb, "--input", str(source), "--output", str(output), "--local", *sets]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line that a command ends with."""
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[-1].startswith("error: ") and "Traceback" not in err, err
    return lines[-1]


def nothing_done(output: Path) -> bool:
    """No unit, no row, no report; at most what says which stage the directory would be."""
    return {path.name for path in output.rglob("*") if path.is_file()} <= {"stage.json"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb, source, settings, words = MISTAKES[mistake]
    names = {path.name: str(path) for path in place.iterdir()}
    settings = tuple(setting.format(**names) for setting in settings)
    said = refused(capsys, command(verb, place / source, tmp_path / "out", settings))
    assert words.format(**names) in said
    assert mistake == "a torn table" or nothing_done(tmp_path / "out")  # the sound tables before it are done


def _file_for_a_folder(root: Path, place: Path) -> None:
    root.write_text("x")


def _another_fingerprint(root: Path, place: Path) -> None:
    first = Path(
        run_stage(INGEST, str(place / "shards"), str(root), PreprocessSettings(), executor=InProcess()).directory
    )
    (first / "stage.json").write_bytes((place / "scored/stage.json").read_bytes())


def _foreign_files(root: Path, place: Path) -> None:
    _another_fingerprint(root, place)
    (directory,) = root.iterdir()
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "thesis.txt").write_text("ten years of work")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_file_for_a_folder, "is a file, not a folder"),
        (_another_fingerprint, "holds the files of another fingerprint: its stage.json is not this run's"),
        (_foreign_files, "holds files of no stage (thesis.txt): move them away or give another --output"),
    ],
)
def test_an_output_that_is_taken_is_left_alone(
    damage: Callable[[Path, Path], None], words: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(tmp_path / "out", place)
    capsys.readouterr()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert words in refused(capsys, command("ingest", place / "shards", tmp_path / "out"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_store_that_refuses_is_one_line(
    guarded: dict[str, str],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there, out = "s3://corpus/raw", tmp_path / "out"
    said = refused(capsys, command("ingest", there, out))
    assert f"cannot read {there}: wrong credentials, the key is not known there; set AWS_ACCESS_KEY_ID" in said
    for name, value in guarded.items():
        monkeypatch.setenv(name, value)
    said = refused(capsys, command("ingest", there, "s3://corpus/out"))
    assert "cannot write s3://corpus/out/ingest@" in said and "access denied" in said
    said = refused(capsys, command("ingest", "s3://corpsu/raw", out))
    assert "cannot read s3://corpsu/raw: the bucket does not exist; create it or correct its name" in said
    assert not out.exists()


def test_an_opt_out_is_a_reasoned_drop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served() as server:
        (tmp_path / "list.csv").write_text(f"url,caption\n{server.url}/robots/noai,a\n{server.url}/picture/1,b\n")
        settings = ("ingest.private_addresses=true",)
        assert run(command("ingest", tmp_path / "list.csv", tmp_path / "out", settings)) == 0
    assert "ingest: 2 in = 1 kept + 1 dropped (robots_opt_out 1) + 0 quarantined" in capsys.readouterr().out
