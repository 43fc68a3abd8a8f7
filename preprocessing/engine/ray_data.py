"""A stage's units through Ray Data: one row per unit, so that a unit stays whole through every operator.

Units are handed out in bundles, blocks of some rows, since each block costs the driver some milliseconds. A stage without
models is one task per bundle, or, where units wait for a network, a pool of actors that have several bundles at once. A stage
with models is three operators, reading -> a pool of actors that hold the models -> writing, so that storage and models work at
the same time and memory holds a few units.
"""

from __future__ import annotations

import functools
import json
import random
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence

import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle

from realcustom import log
from realcustom.errors import UsageError
from realcustom.preprocessing.engine.cluster import bundle_size, model_workers, task_limit, task_workers
from realcustom.preprocessing.engine.ray_metrics import StageMetrics, observe_seconds
from realcustom.preprocessing.engine.unit import Counts, SealedUnit, Unit
from realcustom.preprocessing.engine.worker import (
    Outcome,
    Processor,
    StageJob,
    UnitDone,
    UnitTaken,
    commit_unit,
    do_unit,
    read_unit,
)
from realcustom.preprocessing.engine.worker_deaths import in_this_process, start_counting
from realcustom.preprocessing.errors import StageBug
from realcustom.preprocessing.settings import Device

_Operator = Callable[[pa.Table], pa.Table]


class RemoteTrace(Exception):
    """The trace of a worker's error as text: the cause of the driver's error, so that Python shows it above that one."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def run_units(job: StageJob, units: tuple[Unit, ...]) -> Iterator[Outcome]:
    """Process and commit all units on the connected Ray cluster; yields each when it is done.

    Raises:
        StageBug: at the first unforeseen error, naming the row, with the worker's trace as its cause; or naming the
            unit on which workers keep dying.
        UsageError: for settings that only a worker can check.
    """
    if job.models:
        there = ray.cluster_resources()
        places = workers = model_workers(job, len(units), int(there.get("GPU", 0)), int(there.get("CPU", 1)))
    else:
        workers = task_workers(job, units)
        places = workers * job.units_at_once
    bundles = _bundles(job, units, bundle_size(len(units), places))
    dataset = ray.data.from_arrow(bundles)
    dataset.context.enable_progress_bars = False
    deaths, metrics = start_counting(job.name), StageMetrics(job.name, job.directory.rpartition("/")[2], len(units))
    if job.models:
        dataset = _with_models(dataset, job, deaths, workers)
    elif job.units_at_once > 1:
        dataset = _several_at_once(dataset, job, deaths, workers)
    else:
        dataset = _without_models(dataset, job, deaths, len(bundles))
    try:
        for row in _rows(dataset):
            if row["refusal"] or row["bug"]:
                metrics.unit_ended("failed")
            if row["refusal"]:
                raise UsageError(row["refusal"] + _elsewhere(row["node"])) from RemoteTrace(row["trace"])
            if row["bug"]:
                raise StageBug(row["bug"] + _elsewhere(row["node"])) from RemoteTrace(row["trace"])
            if row["taken"] and not row["counts"]:  # another client works on it: it has not ended
                continue
            counts = Counts.from_dict(json.loads(row["counts"]))
            if row["taken"]:
                metrics.unit_ended("taken")
            else:
                metrics.unit_done(counts)
            yield Outcome(unit=Unit.from_json(row["unit"]).name, counts=counts, here=not row["taken"])
    except BaseException:
        metrics.close()
        raise


def _bundles(job: StageJob, units: Sequence[Unit], size: int) -> list[pa.Table]:
    """The units in pieces of `size`. Of clients that share them each takes the pieces in an order of its own: in the same order
    they would ask for each unit at the same time."""
    bundles = [
        pa.table({"unit": [unit.to_json() for unit in units[start : start + size]]})
        for start in range(0, len(units), size)
    ]
    if job.claims is not None:
        random.Random(job.claims.holder).shuffle(bundles)
    return bundles


def _rows(dataset: ray.data.Dataset) -> Iterator[dict[str, str]]:
    """What is said of each unit, a block at a time, since each batch costs the driver some."""
    names = ["unit", "bug", "trace", "refusal", "counts", "node", "taken"]
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from block.select(names).to_pylist()


def _node() -> str:
    """Of this process: its node's id in Ray, and the machine's name."""
    return f"{ray.get_runtime_context().get_node_id()} {socket.gethostname()}"


def _elsewhere(node: str) -> str:
    """` (said by node NAME)`, unless that is the driver's own: variables, files and devices may differ there."""
    number, _, name = node.partition(" ")
    return f" (said by node {name})" if node and number != ray.get_runtime_context().get_node_id() else ""


def _with_models(dataset: ray.data.Dataset, job: StageJob, deaths: ActorHandle, workers: int) -> ray.data.Dataset:
    compute, limit = job.settings.compute, job.settings.execution.max_worker_deaths
    # not the actors' num_cpus: Ray fuses operators with equal ones, and reading would wait for the model
    reading = _bundled(lambda units: _counted(job.name, "read", _reading(job, units), deaths, limit))
    dataset = dataset.map_batches(reading, batch_size=None, batch_format="pyarrow", num_cpus=0.5)
    dataset = dataset.map_batches(
        _ModelWorker,
        fn_constructor_args=(job, deaths, limit, log.level()),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=compute.threads,
        num_gpus=1 if compute.device is Device.CUDA else 0,
    )
    committing = _bundled(lambda _: _counted(job.name, "commit", _committing(job), deaths, limit))
    return dataset.map_batches(committing, batch_size=None, batch_format="pyarrow", num_cpus=0.25)


def _without_models(dataset: ray.data.Dataset, job: StageJob, deaths: ActorHandle, bundles: int) -> ray.data.Dataset:
    most, limit = task_limit(job), job.settings.execution.max_worker_deaths
    return dataset.map_batches(
        _bundled(lambda units: _counted(job.name, "whole", _whole(job, units), deaths, limit)),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=None if most is None else min(most, bundles)),  # Ray warns of more tasks
        num_cpus=1,
    )


def _several_at_once(dataset: ray.data.Dataset, job: StageJob, deaths: ActorHandle, workers: int) -> ray.data.Dataset:
    return dataset.map_batches(
        _ThreadedWorker,
        fn_constructor_args=(job, deaths, job.settings.execution.max_worker_deaths, log.level()),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=workers,
            max_tasks_in_flight_per_actor=job.units_at_once,
            max_concurrent_calls_per_actor=job.units_at_once,
            enable_true_multi_threading=True,
        ),
        num_cpus=1,
    )


class _ThreadedWorker:
    """An actor that does several bundles at once, each in a thread of its own."""

    def __init__(self, job: StageJob, deaths: ActorHandle, limit: int, log_level: str):
        log.configure(log_level)
        self._work = _bundled(lambda units: _counted(job.name, "whole", _whole(job, units), deaths, limit))

    def __call__(self, bundle: pa.Table) -> Iterator[pa.Table]:
        return self._work(bundle)


class _ModelWorker:
    """An actor that holds a stage's models. It takes a bundle's units one by one: all its work is in one thread."""

    def __init__(self, job: StageJob, deaths: ActorHandle, limit: int, log_level: str):
        log.configure(log_level)
        self._processor = Processor(job)
        self._work = _counted(job.name, "model", self._process, deaths, limit)
        self._failure: pa.Table | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self._failure is not None:  # the driver stops when it sees it, and that is at the bundle's end
            return self._failure
        result = self._work(batch)
        self._failure = result if _has_failed(result) else None
        return result

    def _process(self, batch: pa.Table) -> pa.Table:
        unit, data = _unit(batch), batch["rows"][0].as_py()
        return _guarded(batch, lambda: _sealed_row(unit, self._processor(unit, data)))


def _bundled(begin: Callable[[Sequence[Unit]], _Operator]) -> Callable[[pa.Table], Iterator[pa.Table]]:
    """What `begin(units)` gives, on the units of a bundle, one after the other; after a failure none is begun any more."""

    def run(bundle: pa.Table) -> Iterator[pa.Table]:
        work = begin([Unit.from_json(text) for text in bundle["unit"].to_pylist()])
        for index in range(bundle.num_rows):
            result = work(bundle.slice(index, 1))
            yield result
            if _has_failed(result):
                return

    return run


def _has_failed(row: pa.Table) -> bool:
    return any(row[name][0].as_py() for name in ("bug", "refusal"))


def _counted(stage: str, operator: str, work: _Operator, deaths: ActorHandle, limit: int) -> _Operator:
    """`work`, or, after more than `limit` worker deaths on the unit, an error that names it."""

    def run(batch: pa.Table) -> pa.Table:
        unit = _unit(batch)
        begun = in_this_process(operator, unit.name)
        number = ray.get(deaths.begin.remote(begun))
        if number > limit:
            message = (
                f"unit {unit.name} ({unit.files[0].uri}): {number} workers died of it, one after the other, more than "
                f"execution.max_worker_deaths={limit} allows: out of memory, or a crash in a library's native code"
            )
            result = _row(unit.to_json(), bug=message)
        else:
            start = time.monotonic()
            result = work(batch)
            observe_seconds(stage, operator, time.monotonic() - start)
        ray.get(deaths.end.remote(begun))
        return result

    return run


def _reading(job: StageJob, bundle: Sequence[Unit] = ()) -> _Operator:
    known = _done_before(job, bundle)

    def read(batch: pa.Table) -> pa.Table:
        unit = _unit(batch)
        return _guarded(batch, lambda: _row(unit.to_json(), rows=read_unit(job, unit, known())))

    return read


def _done_before(job: StageJob, bundle: Sequence[Unit]) -> Callable[[], Mapping[str, Counts]]:
    """The counts of a bundle's units that were done when it was first asked for: one look instead of a claim for each."""

    @functools.cache
    def look() -> Mapping[str, Counts]:
        return job.stage_directory().counts_among(bundle) if job.claims is not None and len(bundle) > 1 else {}

    return look


def _committing(job: StageJob) -> _Operator:
    def commit(batch: pa.Table) -> pa.Table:
        unit = _unit(batch)
        counts = batch["counts"][0].as_py()

        def work() -> pa.Table:
            excluded, counted = batch["excluded"][0].as_py(), Counts.from_dict(json.loads(counts))
            commit_unit(job, unit, SealedUnit(rows=batch["rows"][0].as_py(), excluded=excluded, counts=counted))
            return _row(unit.to_json(), counts=counts)

        return _guarded(batch, work)

    return commit


def _whole(job: StageJob, bundle: Sequence[Unit] = ()) -> _Operator:
    processor, known = Processor(job), _done_before(job, bundle)

    def run(batch: pa.Table) -> pa.Table:
        unit = _unit(batch)

        def work() -> pa.Table:
            counts = do_unit(processor, job, unit, known())
            return _row(unit.to_json(), counts=json.dumps(counts.to_dict()))

        return _guarded(batch, work)

    return run


def _guarded(batch: pa.Table, work: Callable[[], pa.Table]) -> pa.Table:
    """`work()`; an error becomes part of the row, so that the driver reports it and stops at once."""
    if "bug" in batch.column_names and any(batch[name][0].as_py() for name in ("bug", "refusal", "taken")):
        return batch  # an operator before this one failed, or left it to another client
    unit = _unit(batch)
    try:
        return work()
    except UnitTaken:
        return _row(unit.to_json(), taken="by another client")
    except UnitDone as done:
        return _row(unit.to_json(), counts=json.dumps(done.counts.to_dict()), taken="done before")
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        if isinstance(error, UsageError):
            return _row(unit.to_json(), refusal=str(error), trace=trace, node=_node())
        known = isinstance(error, StageBug)
        message = str(error) if known else f"unit {unit.name}: {type(error).__name__}: {error}"
        return _row(unit.to_json(), bug=message, trace=trace, node=_node())


def _unit(batch: pa.Table) -> Unit:
    return Unit.from_json(batch["unit"][0].as_py())


def _sealed_row(unit: Unit, sealed: SealedUnit) -> pa.Table:
    counts = json.dumps(sealed.counts.to_dict())
    return _row(unit.to_json(), rows=sealed.rows, excluded=sealed.excluded, counts=counts)


def _row(
    unit: str,
    rows: bytes = b"",
    excluded: bytes = b"",
    counts: str = "",
    bug: str = "",
    refusal: str = "",
    trace: str = "",
    node: str = "",
    taken: str = "",
) -> pa.Table:
    texts = {
        "unit": unit,
        "counts": counts,
        "bug": bug,
        "refusal": refusal,
        "trace": trace,
        "node": node,
        "taken": taken,
    }
    columns = {name: pa.array([text]) for name, text in texts.items()}
    blobs = {"rows": rows, "excluded": excluded}
    columns |= {name: pa.array([data], pa.large_binary()) for name, data in blobs.items()}
    return pa.table(columns)
