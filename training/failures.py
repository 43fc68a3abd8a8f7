"""How an exception of a worker comes to the driver.

Imports neither torch nor Ray Train: the actor that keeps failures is a process of its own, and starts in a moment.
"""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass

from realcustom.errors import UsageError
from realcustom.store import StorageRefused

LONGEST_WAIT = 60.0  # seconds before workers are tried again


class TrainingDiverged(UsageError):
    """Too many consecutive steps had a non-finite loss or gradient."""


class WorkerFailed(RuntimeError):
    """A bug in a worker; the message is the worker's own trace."""


def full_disk(error: BaseException) -> UsageError | None:
    """What the user is told of an error that comes of a full disk, or of a used up quota; None for all other errors.

    New workers would find the same disk: no retry helps.
    """
    cause = error.__cause__ if isinstance(error, StorageRefused) else error
    if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    if isinstance(error, StorageRefused):
        return error
    name = errno.errorcode[cause.errno]
    return StorageRefused(f"cannot write {cause.filename or 'a file'}: {cause.strerror} ({name})")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An exception of a worker, in the form sent to the driver."""

    mistake: UsageError | None  # a mistake that the user can correct; None: a bug or a failure of the machine
    trace: str
    final: bool  # would occur again with other workers
    node: str = ""  # of the worker, where that is not the driver's: variables, files and devices may differ there

    @classmethod
    def of(cls, error: Exception, node: str = "") -> Failure:
        """The failure for an exception of a worker on the machine `node` (empty: the driver's own)."""
        full = full_disk(error)
        mistake = full or (error if isinstance(error, UsageError) else None)
        # a lost peer is a RuntimeError in the workers that wait for it; a node's disk an OSError, or a refusal due to one
        of_machine = isinstance(error, (RuntimeError, OSError)) and mistake is None
        refused = isinstance(error, StorageRefused) and isinstance(error.__cause__, OSError)
        final = full is not None or not (of_machine or refused)
        return cls(mistake=mistake, trace="".join(traceback.format_exception(error)), final=final, node=node)

    def to_error(self) -> Exception:
        """The exception for the driver to raise."""
        if self.mistake is None:
            return WorkerFailed(f"{self.trace}on node {self.node}" if self.node else self.trace)
        if self.node:
            self.mistake.args = (f"{self.mistake} (said by node {self.node})",)
        self.mistake.add_note(self.trace)  # shown if traces are requested
        return self.mistake


class Failures:
    """The actor between driver and workers. It keeps what workers report: the first final failure, else the latest one; how
    often they were lost; and whether the run is asked to end."""

    def __init__(self) -> None:
        self._kept: Failure | None = None
        self._begun_at, self._lost, self._workers = -1, 0, 0
        self._stop = False
        self._stopped: int | None = None

    def begin(self, step: int, most: int, workers: int) -> float | None:
        """So many workers begin after a step: the seconds that they are to wait before, longer each time that none was gained.

        More workers than before were not lost: an elastic run has found room for them. Fewer were.

        None where that was more than `most` times in a row (-1: without limit): a final failure is kept, which says so. None
        too where the run is asked to end.
        """
        if self._stop:
            self._stopped = step
            return None
        grown = 0 < self._workers < workers
        self._lost = 0 if step > self._begun_at else self._lost + (not grown)
        self._workers = workers
        self._begun_at = max(step, self._begun_at)
        if most < 0 or self._lost <= most:
            return min(LONGEST_WAIT, 2.0**self._lost - 1)
        before = self._kept.trace if self._kept is not None else "no worker said why: was its process or node ended?"
        said = f"workers were lost more than max_failures={most} times in a row, without a new checkpoint after step {step}"
        self._kept = Failure(mistake=None, trace=f"{said}\n{before}", final=True)
        return None

    def ask_to_stop(self) -> bool:
        """Ask the workers to end after their step. Returns whether any have begun."""
        self._stop = True
        return self._begun_at >= 0

    def is_asked_to_stop(self) -> bool:
        """Whether the run is asked to end."""
        return self._stop

    def report_stop(self, step: int) -> None:
        """Keep that the workers have ended after a step because they were asked to."""
        self._stopped = step

    def stopped(self) -> int | None:
        """The step after which the workers ended as asked."""
        return self._stopped

    def report(self, failure: Failure) -> None:
        """Keep `failure`, unless a final one is kept."""
        if self._kept is None or not self._kept.final:
            self._kept = failure

    def kept(self) -> Failure | None:
        """None where no worker reported one."""
        return self._kept
