"""What a step costs, learned while running: seconds of a UNet call = a + b x rows, for each size of latents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

KEEP = 0.97  # weight of what was seen before, per step: the last thirty steps or so count
LEAST_ROWS = 8  # so that calls of several sizes are seen, whatever a few steps of a busy machine seem to say
KNOWN_SIZES = 64  # of latents whose cost is kept: those that were seen last
EFFICIENT = 0.95  # a call is full when this part of its time is spent on rows


@dataclass(frozen=True, kw_only=True)
class Load:
    """UNet calls that are to be made."""

    size: tuple[int, int]  # (h, w) of the latents
    calls: float
    rows: float  # of all calls together: single-image forwards
    alone: bool = False  # shares no call


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """Decayed sums of a least-squares fit of seconds to calls and rows."""

    calls_calls: float = 0.0
    calls_rows: float = 0.0
    rows_rows: float = 0.0
    calls_seconds: float = 0.0
    rows_seconds: float = 0.0


class StepCost:
    """The cost of steps by latent size. Sizes that were not seen cost as the nearest known one, by their cells."""

    def __init__(self) -> None:
        # last learned last; replaced, never changed: other threads read it
        self._sums: dict[tuple[int, int], _Sums] = {}

    def learn(self, size: tuple[int, int], calls: int, rows: int, seconds: float) -> None:
        """A step of latents of this size (h, w) took so long, in so many UNet calls with so many rows in all."""
        old, others = self._sums.get(size, _Sums()), {one: sums for one, sums in self._sums.items() if one != size}
        for _ in range(len(others) + 1 - KNOWN_SIZES):
            del others[next(iter(others))]
        new = _Sums(
            calls_calls=KEEP * old.calls_calls + calls * calls,
            calls_rows=KEEP * old.calls_rows + calls * rows,
            rows_rows=KEEP * old.rows_rows + rows * rows,
            calls_seconds=KEEP * old.calls_seconds + calls * seconds,
            rows_seconds=KEEP * old.rows_seconds + rows * seconds,
        )
        self._sums = {**others, size: new}

    @property
    def known(self) -> bool:
        """Whether any step was seen."""
        return bool(self._sums)

    def per_call_and_row(self, size: tuple[int, int]) -> tuple[float, float]:
        """(a, b) in seconds. Raises KeyError before the first step."""
        known = self._sums
        if size in known:
            return _solve(known[size])
        if not known:
            raise KeyError(size)
        cells = size[0] * size[1]
        near = min(known, key=lambda one: abs(one[0] * one[1] - cells))
        call, row = _solve(known[near])
        return call, row * cells / (near[0] * near[1])

    def seconds(self, size: tuple[int, int], calls: float, rows: float) -> float:
        """Expected seconds; 0 before the first step."""
        if not self.known:
            return 0.0
        call, row = self.per_call_and_row(size)
        return call * calls + row * rows

    def seconds_of(self, loads: Sequence[Load]) -> float:
        """Expected seconds of all together: loads of one size share calls until these are full, sizes take turns."""
        sizes: dict[Hashable, list[Load]] = defaultdict(list)
        for load in loads:
            sizes[id(load) if load.alone else load.size].append(load)
        seconds = 0.0
        for together in sizes.values():
            size, rows = together[0].size, sum(load.rows for load in together)
            calls = max(*(load.calls for load in together), rows / self.full_rows(size) if len(together) > 1 else 0)
            seconds += self.seconds(size, calls, rows)
        return seconds

    def full_rows(self, size: tuple[int, int]) -> int:
        """Rows of a call from which on more of them save little time a row; LEAST_ROWS before that is known."""
        if not self.known:
            return LEAST_ROWS
        call, row = self.per_call_and_row(size)
        return max(LEAST_ROWS, round(EFFICIENT / (1 - EFFICIENT) * call / row)) if row > 0 else 64


def _solve(sums: _Sums) -> tuple[float, float]:
    """(a, b), neither below zero; with steps of one shape alone the time is said to be half of each."""
    determinant = sums.calls_calls * sums.rows_rows - sums.calls_rows**2
    if determinant > 1e-6 * sums.calls_calls * sums.rows_rows:
        call = (sums.calls_seconds * sums.rows_rows - sums.rows_seconds * sums.calls_rows) / determinant
        row = (sums.rows_seconds * sums.calls_calls - sums.calls_seconds * sums.calls_rows) / determinant
        if call >= 0 and row >= 0:
            return call, row
        if call < 0:
            return 0.0, sums.rows_seconds / sums.rows_rows
        return sums.calls_seconds / sums.calls_calls, 0.0
    return sums.calls_seconds / sums.calls_calls / 2, sums.rows_seconds / sums.rows_rows / 2
