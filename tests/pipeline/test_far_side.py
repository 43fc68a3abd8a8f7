"""A job's first program: what the cluster's interpreter lacks is said by name, before anything else happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from realcustom.pipeline import far_side, owned

HERE = "{}.{}".format(*sys.version_info)
# Stands for our package: its status is the number in its argument, its count of calls a file.
PACKAGE = (
    "import pathlib, signal, sys, time\n"
    "calls = pathlib.Path('calls')\n"
    "calls.write_text(calls.read_text() + 'x' if calls.exists() else 'x')\n"
    "if sys.argv[1] == 'wait':\n"
    "    def stop(number, frame):\n"
    "        calls.write_text(calls.read_text() + 's')\n"
    "        until = time.monotonic() + 0.5\n"
    "        while time.monotonic() < until:\n"
    "            time.sleep(0.05)\n"
    "        sys.exit(int(sys.argv[2]))\n"
    "    signal.signal(signal.SIGTERM, stop)\n"
    "    print('waiting', flush=True)\n"
    "    time.sleep(60)\n"
    "sys.exit(int(sys.argv[1]))\n"
)


def start(
    folder: Path,
    argument: str,
    *arguments: str,
    retries: int = 0,
    python: str = HERE,
    secrets: str = "{}",
    pause: float = 0.01,
    packages: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    (folder / "realcustom").mkdir(exist_ok=True)
    (folder / "realcustom" / "__init__.py").touch()
    (folder / "realcustom" / "__main__.py").write_text(PACKAGE)
    program = folder / ".realcustom-job" / "check.py"
    program.parent.mkdir(exist_ok=True)
    program.write_text(Path(far_side.__file__).read_text().replace("PAUSE_SECONDS = 5.0", f"PAUSE_SECONDS = {pause}"))
    return subprocess.Popen(
        [sys.executable, "-P", str(program), argument, *arguments],
        cwd=folder,
        env={
            **os.environ,
            far_side.RETRIES: str(retries),
            far_side.WANTED: json.dumps({"python": python, "packages": packages or {}}),
            far_side.SECRETS: secrets,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder: Path, argument: str, retries: int = 0, python: str = HERE, **packages: str) -> tuple[int, str]:
    process = start(folder, argument, retries=retries, python=python, packages=packages)
    out, _ = process.communicate(timeout=60)
    return process.returncode, out


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    status, said = run(tmp_path, "0", python="2.7", numpy="1.26.4", nothing_of_this_name="1.0")
    assert (
        status == 2 and said.count("\n") == 1 and said.startswith(f"error: the cluster's interpreter {sys.executable}")
    )
    for part in (f"Python is {HERE} there and 2.7 here", "nothing_of_this_name is not installed", "and 1.26.4 here"):
        assert part in said
    assert not (tmp_path / "calls").exists()


def test_the_status_is_the_commands(tmp_path: Path) -> None:
    import numpy

    for status in (0, 3):
        assert run(tmp_path, str(status), numpy=numpy.__version__) == (status, "")


def test_another_try(tmp_path: Path) -> None:
    status, said = run(tmp_path, "1", retries=2)
    assert status == 1 and said == "exit status 1; trying again (1 of 2)\nexit status 1; trying again (2 of 2)\n"
    assert (tmp_path / "calls").read_text() == "xxx"
    assert run(tmp_path, "2", retries=2) == (2, ""), "a mistake stays one"


@pytest.mark.parametrize("status", [143, 1])
def test_a_job_that_is_stopped_stops_its_command_once(tmp_path: Path, status: int) -> None:
    process = start(tmp_path, "wait", str(status), retries=1)
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    begun = time.monotonic()
    for each in owned.descendants([process.pid]):  # as Ray does it
        os.kill(each.pid, signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == status and time.monotonic() - begun < 20
    assert (tmp_path / "calls").read_text() == "xs", "one call, one signal, and no further try"


def test_a_job_that_is_stopped_between_two_tries_has_ended(tmp_path: Path) -> None:
    process = start(tmp_path, "1", retries=1, pause=60.0)
    assert process.stdout is not None and process.stdout.readline() == "exit status 1; trying again (1 of 1)\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143 and (tmp_path / "calls").read_text() == "x"


def test_secrets_are_read_where_the_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = tmp_path / "value"
    value.write_text("from a file\n")
    monkeypatch.setenv("THERE", "from a variable")
    secrets = {"REALCUSTOM_TEST_ONE": f"file:{value}", "REALCUSTOM_TEST_TWO": "env:THERE"}
    monkeypatch.setenv(far_side.SECRETS, json.dumps(secrets))
    for name in secrets:
        monkeypatch.setenv(name, "before")
    far_side.set_secrets()
    assert [os.environ[name] for name in secrets] == ["from a file", "from a variable"]


@pytest.mark.parametrize(
    ("place", "said"),
    [("env:NOT_THERE", "variable NOT_THERE"), ("file:/not/there", "file that can be read /not/there")],
)
def test_a_secret_that_does_not_exist_is_named(tmp_path: Path, place: str, said: str) -> None:
    process = start(tmp_path, "0", secrets=json.dumps({"TOKEN": place}))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and not (tmp_path / "calls").exists()
    assert out == f"error: the secret TOKEN: this node has no {said}; a secret is a variable or a file of every node\n"
