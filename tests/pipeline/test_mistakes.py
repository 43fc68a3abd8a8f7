"""What a user gets wrong: one clear line on stderr, exit code 2, nothing imported that is heavy, nothing written."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from realcustom.record import SCHEMA

PHOTO = str(Path(__file__).parent.parent / "data" / "photos" / "duck_toy.jpg")
# Runs each command line of argv[1] in one process; says what each printed and whether it loaded what takes long.
PROBE = """
import contextlib, io, json, sys
from realcustom.pipeline.cli.main import run
results = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(arguments)
    results.append([status, out.getvalue(), err.getvalue(), [name for name in ("torch", "ray") if name in sys.modules]])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Things that are not what they should be."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "not-a-picture.jpg").write_bytes(b"GIF89a, nearly")
    cut = Path(PHOTO).read_bytes()
    (folder / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    (folder / "empty").mkdir()
    base = folder / "base-without-unet"
    base.mkdir()
    (base / "model_index.json").write_text("{}")
    looks_right = folder / "base"
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (looks_right / part).mkdir(parents=True)
        (looks_right / part / "config.json").write_text("{}")
    (looks_right / "vae" / "config.json").write_text('{"block_out_channels": [8, 8, 8, 8]}')
    (looks_right / "model_index.json").write_text("{}")
    occupied = folder / "occupied"
    occupied.mkdir()
    (occupied / "thesis.txt").write_text("ten years of work")
    (folder / "stages" / "select@0").mkdir(parents=True)
    (folder / "stages" / "select@0" / "stage.json").write_text('{"stage": "select"}')
    (folder / "records").mkdir()
    pq.write_table(SCHEMA.empty_table(), folder / "records" / "a.parquet")
    Image.new("RGB", (8, 8)).save(folder / "table.parquet", format="PNG")
    return folder


def mistakes(folder: Path) -> dict[str, tuple[list[str], str]]:
    draw = ["generate", "--prompt", "a duck in the snow", "--output", str(folder / "new")]
    good = [*draw, "--image", PHOTO, "--word", "duck"]
    records = ["--output", str(folder / "new")]
    return {
        "mistyped setting": ([*good, "--set", "method.maks.norm=max"], "did you mean 'method.mask'?"),
        "mistyped recipe": ([*good, "--recipe", "sprits"], "did you mean 'sprites'?"),
        "mistyped option": ([*good, "--promtp", "x"], "No such option: --promtp"),
        "option that is a setting": (
            ["train", "--lr", "1e-4"],
            "No such option: --lr; it is a setting: --set train.lr=VALUE",
        ),
        "option of other programs": (["train", "--device", "cuda"], "--device; it is a setting: --set train.use_gpu="),
        "option of a stage": (["preprocess", "encode", "--device", "cpu"], "--set preprocess.compute.device="),
        "mistyped verb": (["genrate"], "Did you mean 'generate'?"),
        "missing option": (["generate"], "--prompt"),
        "no settings file": ([*good, "--config", str(folder / "no.yaml")], "no settings file at"),
        "no picture": ([*draw, "--image", str(folder / "no.jpg"), "--word", "duck"], "--image: no picture at"),
        "not a picture": ([*draw, "--image", str(folder / "not-a-picture.jpg"), "--word", "duck"], "cannot be read"),
        "cut picture": ([*draw, "--image", str(folder / "cut.jpg"), "--word", "duck"], "truncated"),
        "folder as picture": ([*draw, "--image", str(folder), "--word", "duck"], "is a folder; name one picture in it"),
        "word not in prompt": (
            [*draw, "--image", PHOTO, "--word", "dog"],
            "'dog' is not in the prompt; its words are: a, duck, in, the, snow",
        ),
        "word without picture": ([*draw, "--word", "duck"], "0 --image and 1 --word"),
        "no adapter": (
            [*good, "--base", str(folder / "base"), "--adapter", str(folder / "no.safetensors")],
            "--adapter: no adapter checkpoint at",
        ),
        "no adapter for a base": ([*good, "--base", str(folder / "base")], "--adapter: none given"),
        "base and adapter": (
            [*good, "--base", str(folder / "nothing"), "--adapter", str(folder / "no.safetensors")],
            "2 mistakes: (1) --base: no base model at",
        ),
        "odd width": (
            [*draw, "--base", str(folder / "base"), "--width", "33"],
            "--width must be a positive multiple of 8 pixels, got 33",
        ),
        "no image encoder": (
            [*good, "--image-encoder", str(folder / "nothing")],
            "--image-encoder: no model folder at",
        ),
        "serve: no key": (
            ["serve", "--set", "serve.api_key_variable=NO_SUCH_KEY"],
            "the environment variable NO_SUCH_KEY is not set",
        ),
        "all: two missing models": (
            ["preprocess", "all", "--input", str(Path(PHOTO).parent), *records, "--set", "preprocess.caption.model=./a"]
            + ["--base", "./b"],
            "2 mistakes: (1) caption.model: no model folder at ./a: give a folder on this machine or the id of a hub model; "
            "(2) encode.base: no model folder at ./b",
        ),
        "train: two missing models": (
            ["train", "--input", str(folder / "records"), *records, "--base", "./b", "--image-encoder", "./c"],
            "2 mistakes: (1) --base: no base model at ./b",
        ),
        "base without unet": ([*good, "--base", str(folder / "base-without-unet")], "it has no unet, vae"),
        "no base": ([*good, "--base", str(folder / "nothing")], "no base model at"),
        "foreign files in output": ([*good, "--output", str(folder / "occupied")], "holds other files (thesis.txt"),
        "quickstart: folder of a store": (
            ["quickstart", "--output", "s3://bucket/new"],
            "--output: s3://bucket/new is no",
        ),
        "serve: no adapter": (
            ["serve", "--base", str(folder / "base"), "--adapter", str(folder / "no.safetensors")],
            "no adapter checkpoint at",
        ),
        "serve: bad port": (["serve", "--set", "serve.port=99999"], "port must lie in 1..65535"),
        "train: no records": (["train", "--input", str(folder / "no"), *records], "--input: no training records at"),
        "train: empty": (["train", "--input", str(folder / "empty"), *records], "no Parquet file below"),
        "train: another stage's output": (
            ["train", "--input", str(folder / "stages" / "select@0"), *records],
            "training reads what encode or views or subjects wrote: next is `realcustom preprocess caption`",
        ),
        "train: a root without records": (
            ["train", "--input", str(folder / "stages"), *records],
            "holds what select wrote, and what encode or views or subjects writes is wanted: next is",
        ),
        "encode: a pattern without a match": (
            ["preprocess", "encode", "--input", str(folder / "stages" / "subjects@*"), *records],
            "no stage's directory matches",
        ),
        "train: not a table": (
            ["train", "--input", str(folder / "table.parquet"), *records],
            "not a readable Parquet file",
        ),
        "ingest: no input": (["preprocess", "ingest", "--input", str(folder / "no"), *records], "no folder or table"),
        "ingest: empty": (["preprocess", "ingest", "--input", str(folder / "empty"), *records], "is an empty corpus"),
        "score: not a stage": (
            ["preprocess", "score", "--input", str(folder / "empty"), *records, "--set", "preprocess.score.heads=null"]
            + ["--set", "preprocess.score.clip=null"],
            "neither a stage",
        ),
        "inspect: nothing": (["inspect", str(folder / "no")], "no file or folder at"),
        "inspect: empty": (["inspect", str(folder / "empty")], "holds no stage"),
        "no cluster": (
            ["preprocess", "ingest", "--input", str(Path(PHOTO).parent), *records, "--address", "127.0.0.1:1"],
            "no Ray cluster answers at 127.0.0.1:1",
        ),
    }


def test_each_is_one_line_and_nothing_is_started_or_written(folder: Path) -> None:
    cases = mistakes(folder)
    before = sorted(str(path) for path in folder.rglob("*"))
    commands = json.dumps([arguments for arguments, _ in cases.values()])
    done = subprocess.run([sys.executable, "-c", PROBE, commands], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for (name, (_, expected)), (status, out, err, heavy) in zip(cases.items(), json.loads(done.stdout), strict=True):
        assert status == 2, (name, status, err)
        assert expected in err and err.startswith("error: ") and err.count("\n") == 1, (name, err)
        assert out == "", (name, out)
        assert heavy == [], (name, heavy)
    assert sorted(str(path) for path in folder.rglob("*")) == before


def test_the_installed_command_says_so_within_a_second() -> None:
    command = Path(sys.executable).with_name("realcustom")
    arguments = ["train", "--input", "x", "--output", "y", "--set", "train.lrr=1"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([command, *arguments], capture_output=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: unknown setting 'train.lrr'; did you mean 'train.lr'?\n"
    # seconds of computing, not of waiting for a busy machine's cores; 0.7 on an idle one
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


def test_a_setting_without_effect_warns(capsys: pytest.CaptureFixture[str]) -> None:
    from realcustom.pipeline.cli.main import run

    assert run(["generate", "--prompt", "a duck", "--word", "dog", "--image", PHOTO, "--set", "train.lr=1"]) == 2
    assert "warning: --set train.lr has no effect in 'generate', which reads base, adapter" in capsys.readouterr().err


def test_settings_are_printed_and_nothing_is_done(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from realcustom.pipeline.cli.main import run

    arguments = ["train", "--input", "nowhere", "--output", str(tmp_path / "out"), "--set", "train.lr=0.125"]
    assert run([*arguments, "--print-config"]) == 0
    assert "lr: 0.125" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "verb",
    [["quickstart"], ["train"], ["generate"], ["serve"], ["inspect"], ["rehearse"]]
    + [
        ["preprocess", stage]
        for stage in ("ingest", "score", "select", "caption", "subjects", "views", "encode", "export", "filter", "all")
    ],
    ids=" ".join,
)
def test_every_verb_has_help_with_an_example(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from realcustom.pipeline.cli.main import run

    assert run([*verb, "--help"]) == 0
    assert f"For example:\n    realcustom {' '.join(verb)}" in capsys.readouterr().out
