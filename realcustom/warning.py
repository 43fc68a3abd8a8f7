"""Warnings that point to the line of the user's program that led to them."""

from __future__ import annotations

import sys
import warnings

OWN = ("realcustom", "torch")  # torch: its wrapper of a method under no_grad


def warn(sentence: str) -> None:
    """Warn at the nearest line outside this library; inside its own commands, at the outermost one."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in OWN:
        level, frame = level + 1, frame.f_back
    warnings.warn(sentence, stacklevel=level)
