"""Which units are being executed, and how many workers died on each: Ray retries a lost task without limit.

A worker's death (out of memory, a preempted node, a crash in native code) says nothing about its unit. Many deaths at
many units are expected at scale; a unit that ends every worker is reported by name.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NAMESPACE = "preprocessing"  # name of the counting actor of a run, as long as the run lasts


@dataclass(frozen=True, kw_only=True)
class UnitInWork:
    """One execution of a unit in an operator."""

    operator: str
    unit: str
    pid: int
    token: str  # identifies this execution: Ray may report a start twice


class WorkerDeaths:
    """The counts of one run of units, in an actor of its own. If the actor dies, counting starts again from zero."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], UnitInWork] = {}
        self._deaths: dict[tuple[str, str], int] = {}
        self._lost: list[UnitInWork] = []

    def begin(self, work: UnitInWork) -> int:
        """Note a start. Returns how many workers in a row have died on this unit in this operator."""
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
        """Executions that have started and not ended."""
        return list(self._running.values())

    def lost(self) -> list[UnitInWork]:
        """Executions that never ended and were started again elsewhere."""
        return list(self._lost)


def start_counting(stage: str) -> ActorHandle:
    """The counts of a new run; they end with their handle or with the driver."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(WorkerDeaths)
    # with the driver: on a lost node it would be waited for until Ray knows of the loss
    with_driver = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    name = f"{stage}-{secrets.token_hex(4)}"
    return actor.options(name=name, namespace=NAMESPACE, scheduling_strategy=with_driver).remote()


def in_this_process(operator: str, unit: str) -> UnitInWork:
    """The execution of a unit that starts in this process."""
    return UnitInWork(operator=operator, unit=unit, pid=os.getpid(), token=secrets.token_hex(8))
