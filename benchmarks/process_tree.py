"""Resources of a command and its descendants: CPU seconds and peak memory.

Linux only. The measuring process adopts orphans (Ray's daemons and workers among them), so that none of the tree is
missed, and waits until the last has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_ADOPT_ORPHANS = 36  # prctl's PR_SET_CHILD_SUBREAPER


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Of a process tree, from its start to the end of its last process."""

    cpu: float  # seconds, user and system
    peak_pss: float  # bytes; shared pages counted once
    out: str  # what the command printed


@dataclass(kw_only=True)
class Meter:
    """CPU seconds of the processes below this one, those that have ended included."""

    before: dict[psutil.Process, float] = field(default_factory=dict)  # of those that were there when it began
    now: dict[psutil.Process, float] = field(default_factory=dict)

    @property
    def cpu(self) -> float:
        """Seconds since it began."""
        return sum(self.now.values()) - sum(self.before.values())

    def take(self, tree: Sequence[psutil.Process]) -> None:
        for process in tree:
            with contextlib.suppress(psutil.Error):  # it has ended in the meantime
                times = process.cpu_times()
                self.now[process] = times.user + times.system


@contextlib.contextmanager
def metered(besides: Collection[int] = ()) -> Iterator[Meter]:
    """A context in which what runs below this process is sampled 10 times a second: what is seen last of a process counts.

    Args:
        besides: processes that are left out, with all below them.
    """
    adopt_orphans()
    meter, done = Meter(), threading.Event()

    def tree() -> list[psutil.Process]:
        left_out = set[psutil.Process]()
        for pid in besides:
            with contextlib.suppress(psutil.NoSuchProcess):
                left_out |= {psutil.Process(pid), *psutil.Process(pid).children(recursive=True)}
        return [process for process in psutil.Process().children(recursive=True) if process not in left_out]

    def sample() -> None:
        while not done.wait(0.1):
            meter.take(tree())

    meter.take(tree())
    meter.before = dict(meter.now)
    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield meter
    finally:
        done.set()
        sampler.join()
        meter.take(tree())


def adopt_orphans() -> None:
    """Become the parent of processes below this one that lose theirs."""
    if ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 1, 0, 0, 0):
        raise RuntimeError("the kernel does not let this process adopt orphans")


def run(command: Sequence[str], folder: Path, environment: dict[str, str], memory: bool = False) -> Usage:
    """Run a command to its end.

    CPU seconds: the last that was seen of each process (sampled 10 times a second, of the process itself) or what the
    kernel has counted of those that were waited for, whichever is more: Ray does not wait for all of its workers.

    Args:
        memory: sample PSS too, once a second; it costs CPU itself, though not the command's.
    Raises:
        RuntimeError: the command fails, or a process of its tree outlives it by a minute.
    """
    adopt_orphans()
    this = psutil.Process()
    before = os.times()
    meter = Meter()
    peak, done = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        last = 0.0
        while not done.wait(0.1):
            tree = this.children(recursive=True)
            meter.take(tree)
            if memory and time.monotonic() - last >= 1:
                last = time.monotonic()
                peak = max(peak, sum(map(_pss, tree)))

    sampler = threading.Thread(target=sample)
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        sampler.start()
        out, _ = process.communicate()
    deadline = time.monotonic() + 60
    while (left := this.children()) and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=1)
    done.set()
    sampler.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    if left:
        raise RuntimeError(f"{' '.join(command)} left processes behind: {sorted(other.pid for other in left)}")
    after = os.times()
    waited = after.children_user + after.children_system - before.children_user - before.children_system
    return Usage(cpu=max(waited, meter.cpu), peak_pss=peak, out=out)


def tree_pss(root: int) -> int:
    """PSS in bytes of a process and its descendants; a process that has ended in the meantime counts as zero."""
    try:
        process = psutil.Process(root)
        return sum(map(_pss, [process, *process.children(recursive=True)]))
    except psutil.NoSuchProcess:
        return 0


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0
