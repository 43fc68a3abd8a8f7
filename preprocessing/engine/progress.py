"""The log lines of a running stage."""

from __future__ import annotations

import logging
import time

from realcustom.preprocessing.engine.unit import Counts

logger = logging.getLogger(__name__)


class Progress:
    """One line per finished unit, at most one in `every` seconds, the last one always."""

    def __init__(self, stage: str, total: int, done: int, every: float = 2.0):
        self._stage, self._total, self._done, self._every = stage, total, done, every
        self._skipped = done
        self._start = self._last = time.monotonic()
        self._first: float | None = None  # end of the first unit, which includes starting workers and loading models
        self._counts = Counts()
        if done:
            self._log(f"{done} of {total} units are done already")

    def unit_done(self, counts: Counts) -> None:
        """Count a unit and log the progress."""
        self._done += 1
        self._counts.add(counts)
        now = time.monotonic()
        self._first = self._first or now
        if now - self._last >= self._every or self._done == self._total:
            self._last = now
            self._log(self._line(now - self._start, now - self._first))

    def _log(self, text: str) -> None:
        logger.info("%s: %s", self._stage, text)

    def _line(self, seconds: float, since_first: float) -> str:
        made = self._done - self._skipped
        parts = [f"{self._done}/{self._total} units", f"{self._counts.rows_in / max(seconds, 1e-9):.1f} rows/s"]
        parts += [f"{reason} {number}" for reason, number in sorted(self._counts.dropped.items())]
        parts += [f"{fault}! {number}" for fault, number in sorted(self._counts.quarantined.items())]
        if self._done == self._total:
            parts.append(f"in {_clock(seconds)}")
        elif made > 1:
            parts.append(f"{_clock(since_first / (made - 1) * (self._total - self._done))} left")
        return " · ".join(parts)


class PictureProgress:
    """One line per `every` seconds within a unit: one unit of a few pictures may take minutes."""

    def __init__(self, unit: str, total: int, every: float = 15.0):
        self._unit, self._total, self._every = unit, total, every
        self._start = self._last = time.monotonic()

    def reached(self, done: int) -> None:
        """Log that so many pictures of the unit are done, if it is time to."""
        now = time.monotonic()
        if now - self._last >= self._every and 0 < done < self._total:
            self._last = now
            left = (now - self._start) / done * (self._total - done)
            logger.info("unit %s: %d/%d pictures · %s left", self._unit, done, self._total, _clock(left))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
