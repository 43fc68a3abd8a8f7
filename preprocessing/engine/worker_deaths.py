"""Which units are being executed, and how often a worker died of one: Ray tries a lost task again without end.

A worker's death (out of memory, a preempted node, a crash in native code) says nothing about the unit it had. Many
deaths at many units are the weather of a large cluster; a unit that takes every worker down with it is to be named.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle

NAMESPACE = "preprocessing"  # where the account of a run can be found, for as long as the run lasts


@dataclass(frozen=True, kw_only=True)
class Execution:
    """A unit in an operator, from before its work to after it."""

    operator: str
    unit: str
    pid: int
    token: str  # of this execution alone: Ray may say a beginning twice


class Attempts:
    """The account of one run of units, in an actor of its own. If that dies, counting begins anew."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], Execution] = {}
        self._deaths: dict[tuple[str, str], int] = {}
        self._lost: list[Execution] = []

    def begin(self, execution: Execution) -> int:
        """Note a beginning. Returns how many workers have died of this unit in this operator, one after the other."""
        key = (execution.operator, execution.unit)
        if self._running.get(key, execution) != execution:
            self._lost.append(self._running[key])
            self._deaths[key] = self._deaths.get(key, 0) + 1
        self._running[key] = execution
        return self._deaths.get(key, 0)

    def end(self, execution: Execution) -> None:
        """Note that the work on a unit ended, well or with an error."""
        key = (execution.operator, execution.unit)
        self._running.pop(key, None)
        self._deaths.pop(key, None)

    def running(self) -> list[Execution]:
        """What was begun and has not ended."""
        return list(self._running.values())

    def lost(self) -> list[Execution]:
        """What was begun, never ended, and was begun again elsewhere."""
        return list(self._lost)


def start_attempts(stage: str) -> ActorHandle:
    """The account of a run that begins now; it ends with its handle or with the driver."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts)
    return actor.options(name=f"{stage}-{secrets.token_hex(4)}", namespace=NAMESPACE).remote()


def this_execution(operator: str, unit: str) -> Execution:
    """The execution that begins in this process."""
    return Execution(operator=operator, unit=unit, pid=os.getpid(), token=secrets.token_hex(8))
