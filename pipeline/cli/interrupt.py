"""The first Ctrl-C ends a command, whatever it is doing.

Python runs a signal's handler between two of its own instructions, so a long call into native code delays it; and Ray
Train's handler waits for a controller that may itself wait for a machine. The interpreter writes each signal's number to
a pipe at once, however. A thread reads it, gives the command some time to end, and then ends the process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

STATUS = 130  # exit status of a program ended by SIGINT
UNNOTICED_SECONDS = 5.0  # for our handler to run; without it nothing is being cleaned up that would take longer
CLEANUP_SECONDS = 20.0  # after it ran: Serve ends its replicas, an embedded Ray its processes


def watch() -> None:
    """Watch for Ctrl-C in this process from now on, unless it was started to ignore it. Call it once, in the main thread."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell, or below nohup
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    noticed = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        noticed.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    threading.Thread(target=_end_after_interrupt, args=(reading, noticed), name="interrupt", daemon=True).start()


def _end_after_interrupt(reading: int, noticed: threading.Event) -> None:
    while os.read(reading, 1)[0] != signal.SIGINT:
        pass
    if noticed.wait(UNNOTICED_SECONDS):
        threading.Event().wait(CLEANUP_SECONDS)
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(STATUS)  # an embedded Ray ends with its driver; units and checkpoints are whole or absent
