"""The quickstart under bad input: two in one folder, a folder that cannot be written, a disk that fills up, Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from realcustom.errors import UsageError
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.quickstart.alone import alone

SHORT = (
    *("train.steps=4", "train.batch_size=8", "train.warmup=0", "train.val_every=2", "train.checkpoint_every=1"),
    *("train.sample_records=1", "train.sample_steps=2", "train.validation_records=8"),
    *("evaluate.images=4", "evaluate.num_inference_steps=3", "serve.threads=1"),
)
COMMAND = ["quickstart", "--pictures", "48", *(part for setting in SHORT for part in ("--set", setting))]


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs at `folder`; the test is skipped where none may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount a tmpfs: {getattr(error, 'stderr', '') or error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_second_run_in_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with alone(tmp_path):
        assert run([*COMMAND, "--output", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    said = f"process {os.getpid()} runs a quickstart in {tmp_path}; wait for it, or name another folder"
    assert err == f"error: --output: {said}\n"
    assert [path.name for path in tmp_path.iterdir()] == [".running"]


def test_a_run_that_was_killed_holds_no_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\nfrom realcustom.pipeline.quickstart.alone import alone\n"
        "with alone(pathlib.Path(sys.argv[1])):\n    print('here', flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        with pytest.raises(UsageError, match=f"process {process.pid} runs a quickstart"), alone(tmp_path):
            pass
        process.kill()
    with alone(tmp_path):
        assert (tmp_path / ".running").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("verb", [COMMAND, ["generate", "--prompt", "a star on grass", "--steps", "2"]])
def test_a_folder_that_cannot_be_written_is_said_at_once(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mounted(tmp_path / "disk", "ro") as disk:
        assert run([*verb, "--output", str(disk / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: cannot write below {disk / 'out'}: no permission in {disk}") and err.count("\n") == 1
