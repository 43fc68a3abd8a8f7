"""Whatever ends a supervised command, its status says so and no process of it stays. Real signals to real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import pytest

PATIENCE = 60.0  # seconds, on a busy machine, of what takes one
# A daemon that has left its parent and its session, a child that ignores SIGTERM, and what `code` does
PROGRAM = """
import signal, subprocess, sys, time
from realcustom.errors import UsageError
from realcustom.pipeline.supervising import supervise
MARK = sys.argv[1]
SLEEP = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)", MARK]
DAEMON = f"import subprocess; subprocess.Popen({SLEEP!r}, start_new_session=True)"

def run():
    subprocess.run([sys.executable, "-c", DAEMON, MARK], check=True)
    subprocess.Popen(SLEEP)
    CODE

sys.exit(supervise(run, PATIENCE_SECONDS))
"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A supervised command that is ready: its parent process, and the processes of it that run."""

    parent: subprocess.Popen[str]
    mark: str

    def child(self) -> psutil.Process:
        """The process that the command runs in."""
        assert len(self.left()) == 4
        [child] = psutil.Process(self.parent.pid).children()
        return child

    def left(self) -> list[psutil.Process]:
        """Its processes that run."""
        found = []
        for one in psutil.process_iter(["cmdline", "status"]):
            if self.mark in (one.info["cmdline"] or ()) and one.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(one)
        return found

    def ends(self) -> tuple[int, str]:
        """The status and what was said, once all processes have ended."""
        self.parent.wait(PATIENCE)
        end = time.monotonic() + PATIENCE
        while self.left():
            assert time.monotonic() < end, self.left()
            time.sleep(0.05)
        assert self.parent.stdout is not None
        return self.parent.returncode, self.parent.stdout.read()


Start = Callable[..., Command]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a command whose `run` ends with `code`, and waits until it is ready."""
    commands: list[Command] = []

    def call(code: str, patience: float = PATIENCE, before: str = "") -> Command:
        mark = uuid.uuid4().hex
        code = READY + code if READY not in code else code
        program = before + PROGRAM.replace("CODE", code).replace("PATIENCE_SECONDS", str(patience))
        parent = subprocess.Popen(
            [sys.executable, "-c", program, mark], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        command = Command(parent=parent, mark=mark)
        commands.append(command)
        assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
        return command

    yield call
    for command in commands:
        for process in command.left():
            process.kill()
        command.parent.wait()
        assert command.parent.stdout is not None
        command.parent.stdout.close()


READY = "print('ready', flush=True); "
WAITS = "\n    ".join(["try:", f"    {READY}time.sleep(600)", "finally:", "    print('cleaned up', flush=True)"])
HANGS = "\n    ".join(["try:", f"    {READY}time.sleep(600)", "finally:", "    time.sleep(600)"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_after_its_cleaning_up(start: Start, number: signal.Signals) -> None:
    command = start(WAITS)
    assert len(command.left()) == 4
    command.parent.send_signal(number)
    assert command.ends() == (128 + number, "cleaned up\n")


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("return", 0, ""),
        ("raise UsageError('no such thing')", 2, "error: no such thing\n"),
        ("raise KeyError('a bug')", 1, "KeyError: 'a bug'\n"),
        ("sys.exit(7)", 7, ""),
    ],
)
def test_its_own_end_is_the_status(start: Start, code: str, status: int, said: str) -> None:
    found, out = start(code).ends()
    assert found == status and out.endswith(said)
    assert ("Traceback" in out) == (status == 1)


def test_a_killed_child_is_said(start: Start) -> None:
    command = start(WAITS)
    command.child().kill()
    status, out = command.ends()
    assert status == 128 + signal.SIGKILL and "was ended by SIGKILL" in out


def test_a_killed_parent_ends_the_child_in_order(start: Start) -> None:
    command = start(WAITS)
    assert len(command.left()) == 4
    command.parent.kill()
    assert command.ends() == (-signal.SIGKILL, "cleaned up\n")


def test_a_name_that_is_no_text_hides_no_process(start: Start) -> None:
    """The kernel cuts names to 15 bytes, also within a character."""
    name_it = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'a name \\xc3', 0, 0, 0)"
    named = f"{name_it}; print('ready', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", named], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == b"ready\n"
            assert start("return").ends() == (0, "")
        finally:
            other.kill()


def test_a_second_signal_ends_a_cleaning_up_that_hangs(start: Start) -> None:
    command = start(HANGS)
    command.parent.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert command.parent.poll() is None
    command.parent.send_signal(signal.SIGINT)
    assert command.ends() == (128 + signal.SIGTERM, "")


def test_so_does_the_end_of_the_patience(start: Start) -> None:
    command = start(HANGS, patience=0.5)
    command.parent.send_signal(signal.SIGTERM)
    assert command.ends() == (128 + signal.SIGTERM, "")


def test_a_signal_that_it_was_started_to_ignore_is_ignored(start: Start) -> None:
    command = start(WAITS, before="import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n")
    command.parent.send_signal(signal.SIGHUP)
    command.child().send_signal(signal.SIGHUP)
    time.sleep(0.3)
    command.parent.send_signal(signal.SIGTERM)
    assert command.ends() == (128 + signal.SIGTERM, "cleaned up\n")
