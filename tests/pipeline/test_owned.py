"""Processes that end with the one that started them, whatever ends that one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from realcustom.pipeline import owned
from realcustom.pipeline.owned import Process, alive, descendants

# A child whose own child goes on alone, as Ray's helpers do; both deaf to SIGTERM where they are told to be.
TREE = (
    "import os, subprocess, sys, time\n"
    "from realcustom.pipeline import owned\n"
    "deaf = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)'\n"
    "middle = f'import subprocess, sys, time; subprocess.Popen([sys.executable, \"-c\", {deaf!r}]); time.sleep(600)'\n"
    "child = subprocess.Popen([sys.executable, '-c', middle], stdout=subprocess.PIPE)\n"
    "child.stdout.readline()\n"
    "owned.watch([child.pid], sys.argv[1])\n"
    "time.sleep(1.2)\n"  # the watcher has looked
    "print(child.pid, flush=True)\n"
    "time.sleep(600)\n"
)


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], set[Process], Path]]:
    folder = tmp_path / "owned"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-c", TREE, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    tree = descendants([int(process.stdout.readline())])
    yield process, tree, folder
    process.kill()
    process.wait()
    process.stdout.close()
    owned.end(tree, 0)


def test_a_killed_owner_leaves_nothing(owner: tuple[subprocess.Popen[str], set[Process], Path]) -> None:
    process, tree, folder = owner
    assert len(tree) == 2
    middle = next(each for each in tree if alive([each]) and each.pid == min(one.pid for one in tree))
    os.kill(process.pid, signal.SIGKILL)
    os.kill(middle.pid, signal.SIGKILL)  # so that nobody but the watcher knows of the last one
    process.wait()
    deadline = time.monotonic() + 20
    while alive(tree) or folder.exists():
        assert time.monotonic() < deadline, alive(tree)
        time.sleep(0.1)


def test_a_number_that_is_used_again_is_another_process() -> None:
    me = next(iter(descendants([os.getpid()]) & {process for process in descendants([os.getpid()])}))
    assert alive([me]) and not alive([Process(me.pid, me.started - 1)])


def test_a_process_that_is_hidden_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As /proc with hidepid=1 hides those of other users."""
    opened = os.open

    def open_ours(path: str, flags: int) -> int:
        if path == "/proc/1/stat":
            raise PermissionError(path)
        return opened(path, flags)

    assert {process.pid for process in descendants([1, os.getpid()])} >= {1, os.getpid()}
    monkeypatch.setattr(os, "open", open_ours)
    pids = {process.pid for process in descendants([1, os.getpid()])}
    assert os.getpid() in pids and 1 not in pids


def test_end_takes_what_is_started_meanwhile() -> None:
    code = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while len(tree := descendants([process.pid])) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    owned.end({next(each for each in tree if each.pid == process.pid)})
    process.wait()
    assert not alive(tree)


def test_a_start_is_watched_but_not_what_was_there_before() -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "from realcustom.pipeline import owned\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "before = subprocess.Popen(sleep)\n"
        "with owned.watching_what_is_started():\n"
        "    time.sleep(0.6)\n"  # the watcher looks from now on
        "    started = subprocess.Popen(sleep)\n"
        "    time.sleep(0.6)\n"
        "    print(before.pid, started.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    before, started = (descendants([int(pid)]) for pid in process.stdout.readline().split())
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while alive(started):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert alive(before)
    owned.end(before, 0)
