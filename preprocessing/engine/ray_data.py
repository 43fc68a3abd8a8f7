"""A stage's units through Ray Data: one row per unit, so that a unit stays whole through every operator.

A stage without models is one task per unit. A stage with models is three operators, reading -> a pool of actors that
hold the models -> writing, so that storage and models work at the same time and memory holds a few units.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator

import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle

from realcustom.errors import UsageError
from realcustom.preprocessing.engine.cluster import task_limit
from realcustom.preprocessing.engine.unit import Counts, SealedUnit, Unit
from realcustom.preprocessing.engine.worker import Job, Processor, commit_unit, read_unit
from realcustom.preprocessing.engine.worker_deaths import start_attempts, this_execution
from realcustom.preprocessing.errors import StageBug
from realcustom.preprocessing.settings import Device


def run_units(job: Job, units: tuple[Unit, ...]) -> Iterator[Counts]:
    """Process and commit all units on the Ray that is connected; the counts of each as it is done.

    Raises:
        StageBug: at the first unforeseen error, naming the row; or naming the unit that its workers keep dying of.
        ValueError: for settings that only a worker could judge.
    """
    dataset = ray.data.from_items([{"unit": unit.to_json()} for unit in units], override_num_blocks=len(units))
    dataset.context.enable_progress_bars = False
    attempts = start_attempts(job.stage.value)
    limit = job.settings.execution.max_worker_deaths
    if job.models:
        on_gpu = job.settings.compute.device is Device.CUDA
        # other num_cpus than the actors': equal ones would be fused, and reading would wait for the model
        reading, committing = (
            _counted("read", _reading(job), attempts, limit),
            _counted("commit", _committing(job), attempts, limit),
        )
        dataset = dataset.map_batches(reading, batch_size=1, batch_format="pyarrow", num_cpus=0.5)
        dataset = dataset.map_batches(
            _ModelWorker,
            fn_constructor_args=(job, attempts, limit),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=job.settings.execution.workers or 1),
            num_cpus=job.settings.compute.threads,
            num_gpus=1 if on_gpu else 0,
        )
        dataset = dataset.map_batches(committing, batch_size=1, batch_format="pyarrow", num_cpus=0.25)
    else:
        most = task_limit(job)
        dataset = dataset.map_batches(
            _counted("whole", _whole(job), attempts, limit),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(
                size=None if most is None else min(most, len(units))
            ),  # Ray warns of more
            num_cpus=1,
        )
    for batch in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
        bug, refusal = batch["bug"][0].as_py(), batch["refusal"][0].as_py()
        if refusal:
            raise UsageError(refusal)
        if bug:
            raise StageBug(bug)
        yield Counts.from_dict(json.loads(batch["counts"][0].as_py()))


class _ModelWorker:
    """An actor that holds a stage's models."""

    def __init__(self, job: Job, attempts: ActorHandle, limit: int):
        self._processor = Processor(job)
        self._work = _counted("model", self._process, attempts, limit)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._work(batch)

    def _process(self, batch: pa.Table) -> pa.Table:
        unit, data = _unit(batch), batch["rows"][0].as_py()
        return _guarded(batch, lambda: _sealed_row(unit, self._processor(unit, data)))


def _counted(
    operator: str, work: Callable[[pa.Table], pa.Table], attempts: ActorHandle, limit: int
) -> Callable[[pa.Table], pa.Table]:
    """`work`, unless more than `limit` workers have died of the unit: then an error that names it."""

    def run(batch: pa.Table) -> pa.Table:
        unit = _unit(batch)
        execution = this_execution(operator, unit.name)
        deaths = ray.get(attempts.begin.remote(execution))
        if deaths > limit:
            message = (
                f"unit {unit.name} ({unit.files[0].uri}): {deaths} workers died of it, one after the other, more than "
                f"execution.max_worker_deaths={limit} allows: out of memory, or a crash in a library's native code"
            )
            result = _row(unit.to_json(), bug=message)
        else:
            result = work(batch)
        ray.get(attempts.end.remote(execution))
        return result

    return run


def _reading(job: Job) -> Callable[[pa.Table], pa.Table]:
    def read(batch: pa.Table) -> pa.Table:
        unit = _unit(batch)
        return _guarded(batch, lambda: _row(unit.to_json(), rows=read_unit(job, unit)))

    return read


def _committing(job: Job) -> Callable[[pa.Table], pa.Table]:
    def commit(batch: pa.Table) -> pa.Table:
        unit = _unit(batch)
        counts = batch["counts"][0].as_py()

        def work() -> pa.Table:
            aside, account = batch["aside"][0].as_py(), Counts.from_dict(json.loads(counts))
            commit_unit(job, unit, SealedUnit(rows=batch["rows"][0].as_py(), aside=aside, counts=account))
            return _row(unit.to_json(), counts=counts)

        return _guarded(batch, work)

    return commit


def _whole(job: Job) -> Callable[[pa.Table], pa.Table]:
    def run(batch: pa.Table) -> pa.Table:
        unit = _unit(batch)

        def work() -> pa.Table:
            sealed = Processor(job)(unit, read_unit(job, unit))
            commit_unit(job, unit, sealed)
            return _row(unit.to_json(), counts=json.dumps(sealed.counts.to_dict()))

        return _guarded(batch, work)

    return run


def _guarded(batch: pa.Table, work: Callable[[], pa.Table]) -> pa.Table:
    """`work()`; an error becomes part of the row, so that the driver says it plainly and stops at once."""
    if "bug" in batch.column_names and (batch["bug"][0].as_py() or batch["refusal"][0].as_py()):
        return batch  # an operator before this one failed
    text = _unit(batch).to_json()
    try:
        return work()
    except StageBug as error:
        return _row(text, bug=str(error))
    except UsageError as error:
        return _row(text, refusal=str(error))
    except Exception as error:
        where = "".join(traceback.format_exception(error))
        return _row(text, bug=f"unit {_unit(batch).name}: {type(error).__name__}: {error}\n{where}")


def _unit(batch: pa.Table) -> Unit:
    return Unit.from_json(batch["unit"][0].as_py())


def _sealed_row(unit: Unit, sealed: SealedUnit) -> pa.Table:
    counts = json.dumps(sealed.counts.to_dict())
    return _row(unit.to_json(), rows=sealed.rows, aside=sealed.aside, counts=counts)


def _row(
    unit: str, rows: bytes = b"", aside: bytes = b"", counts: str = "", bug: str = "", refusal: str = ""
) -> pa.Table:
    texts = {"unit": unit, "counts": counts, "bug": bug, "refusal": refusal}
    columns = {name: pa.array([text]) for name, text in texts.items()}
    columns |= {name: pa.array([data], pa.large_binary()) for name, data in {"rows": rows, "aside": aside}.items()}
    return pa.table(columns)
