"""What settings of several stages share: the least value of a number, and a batch size that is found."""

from __future__ import annotations

import enum

from realcustom.errors import UsageError


class BatchSize(enum.Enum):
    """A batch size that is found before the first unit."""

    AUTO = "auto"  # the largest that fits, from compute.largest_batch down by halves


def fixed_batch(batch_size: int | BatchSize) -> int:
    """The number. Raises UsageError for `auto` (`run_stage` replaces it before the first unit)."""
    if isinstance(batch_size, BatchSize):
        raise UsageError("batch_size=auto has not been probed yet; give a number")
    return batch_size


def at_least(lowest: int, **values: int | BatchSize) -> None:
    """Raise UsageError, naming it, for a value below the lowest allowed."""
    for name, value in values.items():
        if not isinstance(value, BatchSize) and value < lowest:
            raise UsageError(f"{name} must be at least {lowest}, got {value}")
