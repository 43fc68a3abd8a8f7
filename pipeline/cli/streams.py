"""Standard streams that are closed, as some schedulers start a program, are the null device.

Else the first files that the program opens have their numbers, and get its lines.
"""

from __future__ import annotations

import os
import sys


def open_closed() -> None:
    """Open those that are closed. Call it before any file is opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # has the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
