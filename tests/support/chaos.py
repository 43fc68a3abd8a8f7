"""Random kill -9 of the workers and the driver of a stage that runs on Ray, and what is left afterwards.

Kill number k is due when u_k units are done, u_k uniform up to the last few, and after a further uniform moment. It
ends a process that executes a unit, or (some of them) the driver, which is then started again. A kill hit a unit in
flight if the run's record (preprocessing/engine/worker_deaths.py) has the unit begun by that process and never ended; one of
the driver, if a unit that was begun has no manifest once its workers are gone.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.util import list_named_actors

from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.engine.worker_deaths import NAMESPACE, UnitInWork
from realcustom.preprocessing.settings import PreprocessSettings
from realcustom.settings import MethodSettings

DRIVER = """
import pickle, sys, ray
from realcustom.preprocessing.catalogue import CATALOGUE
from realcustom.preprocessing.run import OnRay, run_stage
from realcustom.preprocessing.select import partitions
from realcustom.settings import MethodSettings
with open(sys.argv[1], "rb") as file:
    name, source, output, settings, units_per_block = pickle.load(file)
partitions.UNITS_PER_BLOCK = units_per_block
executor = OnRay(lambda: ray.init(address=sys.argv[2], log_to_driver=False, logging_level="error"))
result = run_stage(CATALOGUE[name], source, output, settings, method=MethodSettings(), executor=executor)
print("units run:", result.units_run)
"""
METHOD = MethodSettings()
LAST_UNITS = 12  # none is due when only these are left: the stage might end before it strikes
LAG = 0.05  # seconds; about the time of a small unit
PATIENCE = 300.0  # seconds for a stage that hangs


@dataclass(frozen=True, kw_only=True)
class Task:
    """A stage to disturb."""

    stage: Stage
    source: str
    output: Path
    settings: PreprocessSettings
    units: int  # of all steps together: manifests of an undisturbed run
    units_per_block: int = 2  # of `select`: small, so that its global steps have many units


@dataclass(kw_only=True)
class Outcome:
    """What a disturbed run came to."""

    seed: int
    workers: int = 0  # kills of workers
    drivers: int = 0
    in_flight: int = 0  # of both
    redone: list[str] = field(default_factory=list)  # manifests written again though they were there at a driver's kill
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        """All that were sent."""
        return self.workers + self.drivers


class EndedTooSoon(RuntimeError):
    """The driver ended well before all kills were sent: the last units went by too fast."""


def disturb(task: Task, address: str, *, workers: int, drivers: int, seed: int) -> Outcome:
    """Run the stage to its end under `workers` + `drivers` kills. This process must be connected to `address`.

    Raises RuntimeError where the driver ends with an error of its own, or nothing moves for minutes; EndedTooSoon.
    """
    rng = random.Random(seed)
    due = sorted(rng.uniform(0, task.units - LAST_UNITS) for _ in range(workers + drivers))
    of_driver = set(rng.sample(range(len(due)), drivers))
    outcome = Outcome(seed=seed)
    done_before: dict[Path, int] = {}
    began = time.monotonic()
    run = _Run(task, address)
    try:
        for number, done in enumerate(due):
            run.wait_for_manifests(done)
            time.sleep(rng.uniform(0, LAG))
            deaths, victims = run.wait_for_units()
            victim = rng.choice(victims)
            if number in of_driver:
                run.kill()
                time.sleep(1.0)  # Ray ends the workers of a driver that is gone
                there = manifests(task.output)
                outcome.drivers += 1
                outcome.in_flight += any(not _has_manifest(there, execution) for execution in victims)
                done_before |= {path: path.stat().st_mtime_ns for path in there if path not in done_before}
                run = _Run(task, address)
            else:
                with contextlib.suppress(ProcessLookupError):  # then it ended first: a kill that hit nothing
                    os.kill(victim.pid, signal.SIGKILL)
                time.sleep(0.02)  # a last word of the worker may be on its way
                begun = [*_ask(deaths, "running"), *_ask(deaths, "lost")]
                outcome.workers += 1
                outcome.in_flight += victim in begun
        run.wait()
    finally:
        run.kill()
    outcome.redone = [path.name for path, at in done_before.items() if path.stat().st_mtime_ns != at]
    outcome.seconds = time.monotonic() - began
    return outcome


def manifests(output: Path) -> list[Path]:
    """The manifests of all steps of the stage."""
    return [path for path in output.rglob("manifests/*.json") if "duplicates" not in path.parts]


def _has_manifest(there: list[Path], execution: UnitInWork) -> bool:
    return any(path.name.rsplit(".", 3)[0] == execution.unit for path in there)


def _ask(deaths: ActorHandle, what: str) -> list[UnitInWork]:
    try:
        found: list[UnitInWork] = ray.get(getattr(deaths, what).remote(), timeout=30)
    except ray.exceptions.RayError:  # its run ended in this moment
        return []
    return found


class _Run:
    """One driver."""

    def __init__(self, task: Task, address: str):
        self._output, self._log = task.output, task.output.with_suffix(".log")
        self._known = _actors()
        self._deaths: ActorHandle | None = None
        order = task.output.with_suffix(".task")
        task.output.parent.mkdir(parents=True, exist_ok=True)
        settings = (task.stage.name, task.source, str(task.output), task.settings, task.units_per_block)
        order.write_bytes(pickle.dumps(settings))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(order), address],
                stdout=log,
                stderr=log,
            )

    def wait_for_manifests(self, number: float) -> None:
        """Until there are so many, while the driver lives."""
        deadline = time.monotonic() + PATIENCE
        while len(manifests(self._output)) < number:
            self._check(deadline)
            time.sleep(0.05)

    def wait_for_units(self) -> tuple[ActorHandle, list[UnitInWork]]:
        """The record of worker deaths of the step that runs, and what is being executed."""
        deadline = time.monotonic() + PATIENCE
        while True:
            running = _ask(self._deaths, "running") if self._deaths is not None else []
            if self._deaths is not None and running:
                return self._deaths, running
            for name in _actors() - self._known:
                with contextlib.suppress(ValueError):  # a step that ended
                    found = ray.get_actor(name, namespace=NAMESPACE)
                    if _ask(found, "running"):
                        self._deaths = found
            self._check(deadline)
            time.sleep(0.02)

    def wait(self) -> None:
        """Until the driver ends."""
        if self._process.wait(PATIENCE):
            raise RuntimeError(f"the driver ended with an error:\n{self._log.read_text()[-4000:]}")

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()

    def _check(self, deadline: float) -> None:
        if self._process.poll() is not None:
            self.wait()  # raises the driver's own error
            raise EndedTooSoon(f"the driver ended before all kills were sent:\n{self._log.read_text()[-4000:]}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing moved for {PATIENCE:.0f} s:\n{self._log.read_text()[-4000:]}")


def _actors() -> set[str]:
    return {entry["name"] for entry in list_named_actors(all_namespaces=True) if entry["namespace"] == NAMESPACE}
