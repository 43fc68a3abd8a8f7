"""What a command takes of the machine, its descendants included: CPU seconds and peak memory.

Linux only. The measuring process adopts orphans (Ray's daemons and workers among them), so that none of the tree is
missed, and waits until the last has gone.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ADOPT_ORPHANS = 36  # prctl's PR_SET_CHILD_SUBREAPER
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Of a process tree, from its start to the end of its last process."""

    cpu: float  # seconds, user and system
    peak_pss: float  # bytes; shared pages counted once
    out: str  # what the command printed


def run(command: Sequence[str], folder: Path, environment: dict[str, str], memory: bool = False) -> Usage:
    """Run a command to its end.

    CPU seconds: the last that was seen of each process (sampled 10 times a second, of the process itself) or what the
    kernel has counted of those that were waited for, whichever is more: Ray does not wait for all of its workers.

    Args:
        memory: sample PSS too, once a second; it costs CPU itself, though not the command's.
    Raises:
        RuntimeError: the command fails, or a process of its tree outlives it by a minute.
    """
    if ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 1, 0, 0, 0):
        raise RuntimeError("the kernel does not let this process adopt orphans")
    before = os.times()
    seen: dict[tuple[int, str], float] = {}
    peak, done = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        last = 0.0
        while not done.wait(0.1):
            tree = _descendants(os.getpid())
            seen.update(tree)
            if memory and time.monotonic() - last >= 1:
                last = time.monotonic()
                peak = max(peak, sum(_pss(process) for process, _ in tree))

    sampler = threading.Thread(target=sample)
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        sampler.start()
        out, _ = process.communicate()
    deadline = time.monotonic() + 60
    left = _reap()
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = _reap()
    done.set()
    sampler.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    if left:
        raise RuntimeError(
            f"{' '.join(command)} left processes behind: {sorted(pid for pid, _ in _descendants(os.getpid()))}"
        )
    after = os.times()
    waited = after.children_user + after.children_system - before.children_user - before.children_system
    return Usage(cpu=max(waited, sum(seen.values())), peak_pss=peak, out=out)


def _reap() -> bool:
    """Wait for the adopted processes that have ended; whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def tree_pss(root: int) -> int:
    """PSS in bytes of a process and its descendants; a process that has ended in between counts as nothing."""
    return _pss(root) + sum(_pss(process) for process, _ in _descendants(root))


def _descendants(root: int) -> dict[tuple[int, str], float]:
    """(process id, when it started) -> CPU seconds of its own, of all processes below `root`."""
    parents: dict[int, list[tuple[int, str, float]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            cpu = (int(fields[11]) + int(fields[12])) / _TICKS
            parents.setdefault(int(fields[1]), []).append((int(entry.name), fields[19], cpu))
    found, open_list = {}, [root]
    while open_list:
        for process, started, cpu in parents.get(open_list.pop(), []):
            found[process, started] = cpu
            open_list.append(process)
    return found


def _pss(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
