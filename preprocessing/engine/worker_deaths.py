"""Which units are being executed, and how often a worker died of one: Ray tries a lost task again without end.

A worker's death (out of memory, a preempted node, a crash in native code) says nothing about the unit it had. Many
deaths at many units are expected at scale; a unit that takes every worker down with it is to be named.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle

NAMESPACE = "preprocessing"  # where the counts of a run can be found, for as long as the run lasts


@dataclass(frozen=True, kw_only=True)
class UnitInWork:
    """A unit in an operator, from before its work to after it."""

    operator: str
    unit: str
    pid: int
    token: str  # of this execution alone: Ray may say a beginning twice


class WorkerDeaths:
    """The counts of one run of units, in an actor of its own. If that dies, counting begins anew."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], UnitInWork] = {}
        self._deaths: dict[tuple[str, str], int] = {}
        self._lost: list[UnitInWork] = []

    def begin(self, work: UnitInWork) -> int:
        """Note a beginning. Returns how many workers have died of this unit in this operator, one after the other."""
        key = (work.operator, work.unit)
        if self._running.get(key, work) != work:
            self._lost.append(self._running[key])
            self._deaths[key] = self._deaths.get(key, 0) + 1
        self._running[key] = work
        return self._deaths.get(key, 0)

    def end(self, work: UnitInWork) -> None:
        """Note that the work on a unit ended, well or with an error."""
        key = (work.operator, work.unit)
        self._running.pop(key, None)
        self._deaths.pop(key, None)

    def running(self) -> list[UnitInWork]:
        """What was begun and has not ended."""
        return list(self._running.values())

    def lost(self) -> list[UnitInWork]:
        """What was begun, never ended, and was begun again elsewhere."""
        return list(self._lost)


def start_counting(stage: str) -> ActorHandle:
    """The counts of a run that begins now; they end with their handle or with the driver."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(WorkerDeaths)
    return actor.options(name=f"{stage}-{secrets.token_hex(4)}", namespace=NAMESPACE).remote()


def in_this_process(operator: str, unit: str) -> UnitInWork:
    """The work on a unit that begins here."""
    return UnitInWork(operator=operator, unit=unit, pid=os.getpid(), token=secrets.token_hex(8))
