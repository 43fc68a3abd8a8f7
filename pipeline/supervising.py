"""A command that leaves no process behind, however it ends.

The command runs in a child process. The parent waits, hands signals on, and ends what the child has left: on Linux a process
whose own parent has ended becomes a child of the nearest "subreaper" above it, which both are. If the parent is killed, the child
gets SIGTERM.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from realcustom.pipeline.cli.status import status_of
from realcustom.pipeline.owned import table_of_processes

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALLED = 128  # a status above it: ended by the signal of the number that is left
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>

logger = logging.getLogger(__name__)


def supervise(run: Callable[[], None], patience_seconds: float) -> int:
    """Run `run` in a child process, in a session of its own, and wait for its end. Call it in the main thread, before threads.

    SIGINT, SIGTERM and SIGHUP raise SystemExit in `run`, once; a second one, or the end of the patience, kills the child.

    Args:
        patience_seconds: for the child to end after a signal.
    Returns:
        The exit status: that of `status_of`, or 128 + the number of the signal that ended it. No process of it is left.
    """
    parent = os.getpid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    sys.stdout.flush()
    sys.stderr.flush()
    signal.set_wakeup_fd(-1)  # of the parent's own watch for Ctrl-C, which has less patience
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until both have their handlers
    child = os.fork()
    if child == 0:
        _be_the_child(run, parent)
    asked: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(child, signal.SIGKILL if asked else number)
        asked.append(number)
        signal.setitimer(signal.ITIMER_REAL, patience_seconds)

    before = {number: signal.signal(number, hand_on) for number in (*_heeded(), signal.SIGALRM)}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    code = _wait_for(child)
    _end_children()
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)
    if asked:
        return SIGNALLED + asked[0]
    if code < 0:
        logger.error("the process of this command was ended by %s", signal.Signals(-code).name)
    return code if code >= 0 else SIGNALLED - code


def raise_at_signals() -> None:
    """Have SIGINT, SIGTERM and SIGHUP raise SystemExit in this thread, once; Ray puts its own handler when it starts."""
    for number in _heeded():
        signal.signal(number, _end)


def _heeded() -> list[signal.Signals]:
    """All but those that this process was started to ignore, in the background of a shell or below nohup."""
    return [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]


def _be_the_child(run: Callable[[], None], parent: int) -> NoReturn:
    os.setsid()  # a terminal's signals go to the parent alone, and not to processes of Ray
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    raise_at_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended meanwhile
        os._exit(SIGNALLED + signal.SIGTERM)
    try:
        status = status_of(run)
    except SystemExit as asked:
        status = int(asked.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    _end_children()
    sys.stdout.flush()
    sys.stderr.flush()
    # Python would stop Ray's threads within native code, which aborts the process
    os._exit(status)


def _end(number: int, frame: FrameType | None) -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(SIGNALLED + number)


def _wait_for(child: int) -> int:
    """The child's exit code, negative for a signal; processes that became children of this one are waited for too."""
    while True:
        ended, status = os.wait()
        if ended == child:
            return os.waitstatus_to_exitcode(status)


def _end_children() -> None:
    """Kill all children, and those that become children as their parents end."""
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def _children() -> list[int]:
    """Children of this process, those that have ended and were not waited for included."""
    return [pid for pid, entry in table_of_processes().items() if entry.parent == os.getpid()]


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")
