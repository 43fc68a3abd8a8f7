"""The quickstart under bad input: two in one folder, a folder that cannot be written, a disk that fills up, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from realcustom.leases import only_writer
from realcustom.pipeline.cli.main import run
from realcustom.store import Store
from tests.support.mounts import mounted, resize
from tests.support.programs import StartProgram
from tests.support.waiting import wait_for

SHORT = (
    *("train.steps=4", "train.batch_size=8", "train.warmup=0", "train.val_every=2", "train.checkpoint_every=1"),
    *("train.sample_records=1", "train.sample_steps=2", "train.validation_records=8"),
    *("evaluate.images=4", "evaluate.num_inference_steps=3", "serve.threads=1"),
)
# of a disk that is full in the corpus, and in the stages; and the heading that a rerun with room gets to
SIZES = {"64k": "[2/7]", "1m": "[3/7]"}
COMMAND = ["quickstart", "--pictures", "48", *(part for setting in SHORT for part in ("--set", setting))]


def test_a_second_run_in_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with only_writer(str(tmp_path / "leases"), "it", Store()):
        assert run([*COMMAND, "--output", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    said = rf"error: {tmp_path} is being written by \S+ \(process {os.getpid()}\): wait for it, end it, or give another output\n"
    assert re.fullmatch(said, err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", [COMMAND, ["generate", "--prompt", "a star on grass", "--steps", "2"]])
def test_a_folder_that_cannot_be_written_is_said_at_once(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mounted(tmp_path / "disk", "ro") as disk:
        assert run([*verb, "--output", str(disk / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: cannot write below {disk / 'out'}: no permission in {disk}") and err.count("\n") == 1


Quickstart = Callable[[Path, Path], "subprocess.Popen[str]"]


@pytest.fixture
def quickstart(start: StartProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quickstart:
    """Starts a quickstart on a Ray of its own, with what it says in a file."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def call(output: Path, log: Path) -> subprocess.Popen[str]:
        with log.open("w") as file:
            command = ("-m", "realcustom", *COMMAND, "--output", str(output))
            return start(*command, output=file, variables={MARK: str(tmp_path)})  # its processes are known by it

    return call


MARK = "REALCUSTOM_TEST_MARK"
PATIENCE = 300.0  # seconds, on a busy machine


def left(mark: str) -> list[str]:
    """Command lines of processes that were begun with `mark` in their environment."""
    found = []
    for process in psutil.process_iter(["environ", "cmdline", "status"]):
        if (process.info["environ"] or {}).get(MARK) == mark and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(" ".join(process.info["cmdline"] or [])[:80])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", ["Drawing a corpus", "six stages", "Ray Train:", "Ray Serve:", "Measuring:", "Looking closer"]
)
def test_ctrl_c_ends_it_in_any_part_and_the_same_command_goes_on(
    quickstart: Quickstart, tmp_path: Path, part: str
) -> None:
    log = tmp_path / "log"
    process = quickstart(tmp_path / "out", log)
    wait_for(lambda: part in log.read_text() or process.poll() is not None, PATIENCE, log.read_text)
    time.sleep(1.5)  # into the part
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    said = log.read_text()
    last = "the same command goes on: " if part == "Ray Train:" else "interrupted"
    assert last in said.splitlines()[-1] and "Traceback" not in said and time.monotonic() - begun < 30
    wait_for(lambda: left(str(tmp_path)) == [], PATIENCE, log.read_text)
    if part == "Ray Train:":
        again = quickstart(tmp_path / "out", log)
        assert again.wait(PATIENCE) == 0, log.read_text()
        assert (tmp_path / "out" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("size", "heading"), SIZES.items())
def test_a_full_disk_is_one_line_and_with_room_the_same_command_goes_on(
    quickstart: Quickstart, tmp_path: Path, size: str, heading: str
) -> None:
    log = tmp_path / "log"
    with mounted(tmp_path / "disk", f"size={size}") as disk:
        assert quickstart(disk / "out", log).wait(PATIENCE) == 2, log.read_text()
        said = log.read_text()
        assert "Traceback" not in said and said.count("error: ") == 1 and heading not in said
        assert re.search(r"error: cannot write \S+: the disk is full \(ENOSPC\)\n$", said), said
        resize(disk, 2**30)
        again = quickstart(disk / "out", log)
        wait_for(lambda: heading in log.read_text() or again.poll() is not None, PATIENCE, log.read_text)
        again.send_signal(signal.SIGINT)
        assert again.wait(60) == 130, log.read_text()
        wait_for(lambda: left(str(tmp_path)) == [], PATIENCE, log.read_text)
