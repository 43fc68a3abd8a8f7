"""Bugs of ours keep their trace and end with 1; mistakes are one line and end with 2. Neither may turn into the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from realcustom.encoded import SubjectCache
from realcustom.errors import UsageError
from realcustom.pipeline.cli.main import run
from realcustom.preprocessing.ingest.stage import Ingest
from tests.support.corpora import write_shards
from tests.support.tiny import TinyModels, tiny_base


def broadcast(*_: Any, **__: Any) -> None:
    np.zeros(3) + np.zeros(4)


def missing_key(*_: Any, **__: Any) -> None:
    dict[str, str]()["uid"]


def arrow(*_: Any, **__: Any) -> None:
    raise pa.ArrowInvalid("planted")


BUGS = pytest.mark.parametrize(
    ("bug", "kind"), [(broadcast, ValueError), (missing_key, KeyError), (arrow, pa.ArrowInvalid)]
)


def planted(error: BaseException) -> list[str]:
    """Names of the functions that a trace shows, that of what the error came from included."""
    names: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        trace = seen.__traceback__
        while trace is not None:
            names.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        seen = seen.__cause__ or seen.__context__
    return names


@BUGS
def test_a_bug_in_a_stage_keeps_its_trace(
    bug: Callable[..., None],
    kind: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_shards(tmp_path / "src", 1, 2)
    monkeypatch.setattr(Ingest, "__call__", bug)
    with pytest.raises(Exception) as caught:
        run(["preprocess", "ingest", "--local", "--input", str(tmp_path / "src"), "--output", str(tmp_path / "out")])
    assert not isinstance(caught.value, UsageError) and bug.__name__ in planted(caught.value)
    assert any(isinstance(error, kind) for error in (caught.value, caught.value.__cause__))
    assert "error: " not in capfd.readouterr().err


@BUGS
def test_a_bug_while_drawing_keeps_its_trace(
    bug: Callable[..., None],
    kind: type[Exception],
    tiny_models: TinyModels,
    photo: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SubjectCache, "tokens", bug)
    arguments = [
        "generate",
        "--prompt",
        "a toy",
        "--image",
        photo,
        "--word",
        "toy",
        *tiny_models.options,
        "--steps",
        "1",
    ]
    with pytest.raises(kind) as caught:
        run([*arguments, "--output", str(tmp_path / "out")])
    assert not isinstance(caught.value, UsageError) and bug.__name__ in planted(caught.value)
    assert not (tmp_path / "out").exists()


def process(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, after `code` has planted something."""
    program = f"import sys\nfrom realcustom.pipeline.cli import main\n{code}\nmain.main(sys.argv[1:])"
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120, env=environment
    )


def test_the_process_ends_with_1_and_the_trace(tmp_path: Path) -> None:
    code = "import numpy, realcustom.pipeline.inspection as inspection\n"
    code += "def planted(*_): yield numpy.zeros(3) + numpy.zeros(4)\ninspection.describe = planted"
    done = process(code, "inspect", str(tmp_path))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("Traceback") and "in planted" in done.stderr
    assert done.stderr.rstrip().endswith("operands could not be broadcast together with shapes (3,) (4,)")


def test_a_mistake_shows_its_trace_when_asked(tmp_path: Path) -> None:
    done = process("", "inspect", str(tmp_path / "no"))
    assert (done.returncode, done.stderr) == (2, f"error: inspect: no file or folder at {tmp_path / 'no'}\n")
    done = process("", "inspect", str(tmp_path / "no"), REALCUSTOM_DEBUG="1")
    assert "Traceback" in done.stderr and "in require_path" in done.stderr


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command with a mistake says."""
    capsys.readouterr()
    assert run(arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Files and folders that cannot be what they are given as."""
    (tmp_path / "file").touch()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1, nearly")
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "stage.json").write_text("{")
    return tmp_path


# diffusers still asks the hub's library for what that has given up
@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "{}/bad.parquet"], "bad.parquet is not a readable Parquet file"),
        (["inspect", "{}/stage"], "stage.json is not valid JSON"),
        (["inspect", "{}/bad.parquet", "--html", "{}/file/sheet.html"], "is a file, not a folder"),
        (["generate", "--prompt", "a", "--base", "{base}", "--output", "{}/file/out"], "is a file, not a folder"),
        (["generate", "--prompt", "a", "--base", "nobody/nothing", "--output", "{}/out"], "cannot load the base model"),
        (["generate", "--prompt", "a", "--base", "{cut}", "--output", "{}/out"], "cannot load the base model"),
        (["convert", "{}/file", "--base", "{base}", "--output", "{}/file/a.safetensors"], "is a file, not a folder"),
        (["--log-level", "loud", "inspect", "zoo"], "is not one of 'debug', 'info', 'warning', 'error'"),
    ],
)
def test_what_a_disk_or_the_hub_refuses_is_a_mistake(
    arguments: list[str], message: str, broken: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = broken / "cut"
    shutil.copytree(tiny_models.base, cut)
    weights = next((cut / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    filled = [part.replace("{}", str(broken)).format(base=tiny_models.base, cut=cut) for part in arguments]
    assert message in refused(capsys, *filled)


def test_an_output_without_room_is_a_mistake(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    arguments = [
        "generate",
        "--prompt",
        "a",
        "--base",
        tiny_models.base,
        "--steps",
        "1",
        "--output",
        str(tmp_path / "out"),
    ]
    assert "image-0.png: the disk is full" in refused(capsys, *arguments)
    said = refused(capsys, "quickstart", "--output", str(tmp_path / "quickstart"))
    assert f"cannot write {tmp_path / 'quickstart' / 'leases' / 'holders'}/" in said
    assert said.endswith(": the disk is full (ENOSPC)")


def test_a_base_of_no_class_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = Path(tiny_base(tmp_path / "base"))
    (base / "model_index.json").write_text(json.dumps({}))
    arguments = ["generate", "--prompt", "a", "--base", str(base), "--output", str(tmp_path / "out")]
    assert "names no class of pipeline" in refused(capsys, *arguments)


def test_a_folder_that_was_removed_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a job's working directory may be: what needs it not goes on, and the system's error without a name gets one."""
    write_shards(tmp_path / "shards", 1, 4)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    ingest = ["preprocess", "ingest", "--local", "--input", str(tmp_path / "shards"), "--output"]
    assert run([*ingest, str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert run([*ingest, "out"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: the folder that this command works in was removed") and err.count("\n") == 1
