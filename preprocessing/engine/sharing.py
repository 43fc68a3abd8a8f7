"""Several clients on one stage: each takes units that no other has, and all of them see the stage finished.

A client is a run of the command. A unit is claimed before it is read (`worker.read_unit`), and given back when its manifest is
written; one that another client has is passed over, and looked for again at the end, when it is free.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from realcustom import storage
from realcustom.leases import Claims, holding
from realcustom.preprocessing.engine.directory import ManifestName, StageDirectory
from realcustom.preprocessing.engine.executors import Executor
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.engine.worker import Outcome, StageJob

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0  # between two looks at what the others do


@contextlib.contextmanager
def shared(job: StageJob) -> Iterator[StageJob]:
    """The job with the claims of this client, inside the block."""
    with _holding(job) as claims:
        yield replace(job, claims=claims)


@contextlib.contextmanager
def alone(job: StageJob, step: str) -> Iterator[None]:
    """A context in which no other client is in the same step of this stage; waits for it."""
    if job.claims is not None:
        with job.claims.alone(step):
            yield
        return
    with _holding(job) as claims, claims.alone(step):
        yield


def run_shared(job: StageJob, todo: Sequence[Unit], directory: StageDirectory, executor: Executor) -> Iterator[Outcome]:
    """Run the units that no other client has; returns when all of `todo` are done. Yields those that are known to be."""
    left = list(todo)
    while left:
        if _all_held(left, job):
            time.sleep(PAUSE_SECONDS)
        else:
            yield from executor.run(job, left)
        left = _open(left, directory)
        executor.tell_left(job, len(left))


def manifests_of(units: Sequence[Unit], directory: StageDirectory) -> list[ManifestName]:
    """The manifests of these units, whoever wrote them."""
    wanted = {(unit.name, unit.identity) for unit in units}
    return [manifest for manifest in directory.manifests() if (manifest.unit, manifest.identity) in wanted]


def _open(units: Sequence[Unit], directory: StageDirectory) -> list[Unit]:
    done = {manifest.unit for manifest in manifests_of(units, directory)}
    return [unit for unit in units if unit.name not in done]


def _all_held(units: Sequence[Unit], job: StageJob) -> bool:
    return job.claims is not None and all(job.claims.is_held(unit.name) for unit in units)


def _holding(job: StageJob) -> contextlib.AbstractContextManager[Claims]:
    # beside the stage's directory, where nothing differs between two runs
    root, _, name = job.directory.rpartition("/")
    return holding(storage.join(root, "leases", name), job.store)
