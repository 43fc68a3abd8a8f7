"""Processes that end with the process that started them, however that one ends.

Nobody tells a process that its parent was killed, and the children of a killed child belong to no one. A watcher, a
small process of its own, remembers the descendants of some processes while all is well, and ends those that are left
when their owner is gone. Linux only: it reads /proc. This file is also the watcher's program and imports no other of ours.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

PATIENCE_SECONDS = 5.0  # from SIGTERM to SIGKILL
_POLL_SECONDS = 0.2


class Process(NamedTuple):
    """A process; its number may be used again after its end, its start may not."""

    pid: int
    started: int  # clock ticks since the machine's start


class Entry(NamedTuple):
    """What the kernel says of a process."""

    parent: int
    state: str
    started: int


def descendants(roots: Iterable[int]) -> set[Process]:
    """The running processes among `roots` and all below them."""
    return _below(roots, table_of_processes())


def alive(processes: Collection[Process]) -> set[Process]:
    """Those of `processes` that have not ended."""
    return _alive(processes, table_of_processes())


def end(processes: Collection[Process], patience: float = PATIENCE_SECONDS) -> None:
    """End processes and all that they have started: SIGTERM, and SIGKILL for what is left after `patience` seconds."""
    known = set(processes)
    _send(_grown(known, table_of_processes()), signal.SIGTERM)
    deadline = time.monotonic() + patience
    while left := _grown(known, table_of_processes()):
        if time.monotonic() > deadline:
            _send(left, signal.SIGKILL)
        time.sleep(0.05)


def watch(roots: Collection[int], folder: str | None = None) -> None:
    """Have the descendants of these processes ended when this process is gone.

    Args:
        folder: is removed then; None: nothing is.
    """
    watcher = _watcher(roots, folder)
    watcher.returncode = 0  # it outlives us by design: Python is not to warn of that


@contextlib.contextmanager
def watching_what_is_started() -> Iterator[None]:
    """A context of which all that this process starts in it is ended, if this process ends meanwhile."""
    before = [process.pid for process in descendants([os.getpid()]) if process.pid != os.getpid()]
    watcher = _watcher([os.getpid()], None, before)
    try:
        yield
    finally:
        watcher.kill()
        watcher.wait()


def _watcher(roots: Collection[int], folder: str | None, besides: Collection[int] = ()) -> subprocess.Popen[bytes]:
    arguments = [str(os.getpid()), folder or "", ",".join(map(str, roots)), ",".join(map(str, besides))]
    # a session of its own: what a terminal sends to the owner does not end the watcher
    return subprocess.Popen(
        [sys.executable, "-ESs", __file__, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


def _grown(known: set[Process], table: dict[int, Entry]) -> set[Process]:
    """The living ones of `known`, to which what they have started is added."""
    known |= _below([process.pid for process in _alive(known, table)], table)
    return _alive(known, table)


def _below(roots: Iterable[int], table: dict[int, Entry]) -> set[Process]:
    children: dict[int, list[int]] = {}
    for pid, entry in table.items():
        children.setdefault(entry.parent, []).append(pid)
    found, todo = set[Process](), [pid for pid in roots if pid in table]
    while todo:
        pid = todo.pop()
        process = Process(pid, table[pid].started)
        if process not in found:
            found.add(process)
            todo += children.get(pid, [])
    return {process for process in found if table[process.pid].state not in "ZX"}


def _alive(processes: Collection[Process], table: dict[int, Entry]) -> set[Process]:
    return {
        process
        for process in processes
        if process.pid in table
        and table[process.pid].started == process.started
        and table[process.pid].state not in "ZX"
    }


def _send(processes: Collection[Process], number: signal.Signals) -> None:
    for process in alive(processes):
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.kill(process.pid, number)


def table_of_processes() -> dict[int, Entry]:
    """All processes of this machine that we may see."""
    table = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            # `open` takes twice the time, several times a second beside all other work
            file = os.open(f"/proc/{name}/stat", os.O_RDONLY)
        except (FileNotFoundError, PermissionError):  # it ended just now; or /proc hides those of others
            continue
        try:
            text = os.read(file, 4096)  # one line of at most some 400 bytes
        except ProcessLookupError:
            continue
        finally:
            os.close(file)
        fields = text.rpartition(b")")[2].split()  # after the command, which may hold anything
        table[int(name)] = Entry(parent=int(fields[1]), state=fields[0].decode(), started=int(fields[19]))
    return table


def _watch_until_gone(owner: int, folder: str, roots: Collection[int], besides: Collection[int]) -> None:
    known, spared = descendants(roots), descendants([*besides, os.getpid()])
    seen: list[str] = []
    while os.getppid() == owner:
        numbers = os.listdir("/proc")
        if numbers != seen:  # else none was started, and none has ended; to read them all is what costs
            seen, table = numbers, table_of_processes()
            _grown(spared, table)
            if not _grown(known, table):
                return  # they ended before their owner
        time.sleep(_POLL_SECONDS)
    _grown(spared, table_of_processes())
    end(known - spared)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _roots, _besides = ([int(pid) for pid in text.split(",") if pid] for text in sys.argv[3:5])
    _watch_until_gone(int(sys.argv[1]), sys.argv[2], _roots, _besides)
