"""What a step costs, learned while running: seconds of a UNet call = a + b x rows, for each size of latents."""

from __future__ import annotations

from dataclasses import dataclass

KEEP = 0.97  # weight of what was seen before, per step: the last thirty steps or so count
LEAST_ROWS = 8  # so that calls of several sizes are seen, whatever a few steps of a busy machine seem to say
EFFICIENT = 0.95  # a call is full when this part of its time is spent on rows


@dataclass
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
        self._sums: dict[tuple[int, int], _Sums] = {}

    def learn(self, size: tuple[int, int], calls: int, rows: int, seconds: float) -> None:
        """A step of latents of this size (h, w) took so long, in so many UNet calls with so many rows in all."""
        sums = self._sums.setdefault(size, _Sums())
        for name in vars(sums):
            setattr(sums, name, getattr(sums, name) * KEEP)
        sums.calls_calls += calls * calls
        sums.calls_rows += calls * rows
        sums.rows_rows += rows * rows
        sums.calls_seconds += calls * seconds
        sums.rows_seconds += rows * seconds

    @property
    def known(self) -> bool:
        """Whether any step was seen."""
        return bool(self._sums)

    def per_call_and_row(self, size: tuple[int, int]) -> tuple[float, float]:
        """(a, b) in seconds. Raises KeyError before the first step."""
        if size in self._sums:
            return _solve(self._sums[size])
        if not self._sums:
            raise KeyError(size)
        cells = size[0] * size[1]
        near = min(self._sums, key=lambda known: abs(known[0] * known[1] - cells))
        call, row = _solve(self._sums[near])
        return call, row * cells / (near[0] * near[1])

    def seconds(self, size: tuple[int, int], calls: float, rows: float) -> float:
        """Expected seconds; 0 before the first step."""
        if not self.known:
            return 0.0
        call, row = self.per_call_and_row(size)
        return call * calls + row * rows

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
