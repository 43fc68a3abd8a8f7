"""Run a stage over an input, or find that there is nothing to do. Read this file from top to bottom first."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from realcustom import storage
from realcustom.errors import UsageError, require_all
from realcustom.identity import resolve_model
from realcustom.preprocessing.engine.batch_size import fix_batch_size, is_auto
from realcustom.preprocessing.engine.directory import StageDirectory, read_json
from realcustom.preprocessing.engine.executors import Executor, InProcess, OnRay
from realcustom.preprocessing.engine.fingerprint import describe, fingerprint, identities_of
from realcustom.preprocessing.engine.model_check import check_models
from realcustom.preprocessing.engine.plan import Plan, make_plan
from realcustom.preprocessing.engine.progress import Progress
from realcustom.preprocessing.engine.sharing import alone, manifests_of, run_shared, shared
from realcustom.preprocessing.engine.stage import Prepared, Stage, StageInput
from realcustom.preprocessing.engine.unit import Counts, Unit
from realcustom.preprocessing.engine.worker import StageJob
from realcustom.preprocessing.errors import TooManyErrors
from realcustom.preprocessing.inputs import check_columns, open_input
from realcustom.preprocessing.report.report import make_report, write_report
from realcustom.preprocessing.settings import ExecutionSettings, PreprocessSettings
from realcustom.store import Store, check_readable, check_writable

if TYPE_CHECKING:
    from realcustom.settings import MethodSettings

__all__ = ["InProcess", "OnRay", "StageResult", "check_stage", "run_stage"]

logger = logging.getLogger(__name__)
_MANIFESTS = 16  # that are read at a time, at least
_ENOUGH = 1000  # rows: before so many came in, nothing is judged by a guess of how many there will be


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """The result of a stage's run."""

    directory: str  # of the stage: the input of the next one
    report: dict[str, Any]  # as in report.json
    units_run: int  # units done by this run; the others were done before
    units_left: int  # not done, because of `limit`
    seconds: float
    unit_seconds: tuple[float, ...] = ()  # seconds per unit of this run; the first loads models


def run_stage(
    stage: Stage,
    input: str,
    output: str,
    settings: PreprocessSettings,
    *,
    method: MethodSettings | None = None,
    executor: Executor | None = None,
    limit: int | None = None,
) -> StageResult:
    """Run one stage. Units that are done are skipped; with nothing to do neither Ray nor a model is started.

    Args:
        stage: a row of the catalogue.
        input: for a source stage a corpus (webdataset shards, Parquet tables, a folder of pictures); else the directory
            that the stage before returned, or a Parquet table (or folder of them) with its columns. A path or `s3://`.
        output: the root; the stage writes to `<output>/<stage>@<fingerprint>/`.
        method: how references are prepared; `encode` needs it.
        executor: where units run: `InProcess()` or `OnRay()`; None: on the Ray that is initialised.
        limit: run at most this many units (a dry run; the report is that of the units done so far).
    Raises:
        UsageError: wrong input or settings; or (TooManyErrors) more rows quarantined than the settings allow.
        StageBug: anything unforeseen; the message names the row.
    """
    began = time.monotonic()
    executor = executor or OnRay()
    input, output = storage.absolute(input), storage.absolute(output)
    settings = check_stage(stage, settings, method)
    _check_places(stage, input, output, settings)
    source = open_input(stage, input, settings, Store(settings.execution.retries))
    job, description = _make_job(stage, source, output, settings, method)
    if is_auto(job):
        settings = fix_batch_size(job, output, executor.probe)
        job, description = _make_job(stage, source, output, settings, method)
    directory = job.stage_directory()
    finished = directory.store.exists(storage.join(directory.uri, "report.json"))
    with contextlib.nullcontext() if stage.prepare is None or finished else alone(job, "prepare"):
        prepared, plan = _prepare(stage, job, source, description, directory, executor)
    todo = plan.todo[:limit]
    progress = Progress(stage.name, len(plan.done) + len(todo), len(plan.done))
    if not source.finished:
        logger.warning(
            "%s: the stage before has not finished %s: only the units that are there are read", stage.name, input
        )
    left = len(plan.todo) - len(todo)
    with shared(job) if todo or plan.gone else contextlib.nullcontext(job) as job:
        if todo or plan.gone:
            _clear(stage.name, directory, plan, todo)
        rows = _known_rows(source, input, directory.store) if todo else None
        total, ends = _run_units(job, todo, directory, plan, executor, progress, rows)
        report = make_report(
            description, total, units=len(plan.done) + len(todo), extra={**source.account, **prepared.report}
        )
        if left == 0:
            with contextlib.nullcontext() if job.claims is None else alone(job, "finish"):
                _finish(directory, report, prepared.units, stage.help)
    if total.rows_in and not total.kept:
        logger.warning("%s: nothing was kept: %s says why of each row", stage.name, directory.excluded_folder)
    seconds = time.monotonic() - began
    if left:
        logger.info("%s: %d units left", stage.name, left)
    return StageResult(
        directory=job.directory,
        report=report,
        units_run=len(todo),
        units_left=left,
        seconds=seconds,
        unit_seconds=tuple(after - before for before, after in itertools.pairwise(ends)),
    )


def check_stage(stage: Stage, settings: PreprocessSettings, method: MethodSettings | None = None) -> PreprocessSettings:
    """The settings with models by absolute path or revision. Raises UsageError that names all missing models."""
    stage.check_settings(settings, method)
    models: dict[str, str] = {}

    def resolve(name: str, model: str) -> None:
        try:
            models[name] = resolve_model(model)  # a worker's working directory differs, and a hub model may change
        except UsageError as error:
            raise UsageError(f"{stage.name}.{name}: {error}") from error

    require_all(*(partial(resolve, name, model) for name, model in stage.models_of(settings).items()))
    if models:
        section = dataclasses.replace(stage.section(settings), **models)
        settings = dataclasses.replace(settings, **{stage.name: section})
    check_models(stage, settings)
    return settings


def _check_places(stage: Stage, input: str, output: str, settings: PreprocessSettings) -> None:
    """Check within seconds that the stores accept us and that the output is valid."""
    check_readable(input)
    if stage.open_source is not None and settings.ingest.metadata is not None:
        check_readable(settings.ingest.metadata)
    check_writable(output)
    if Store(settings.execution.retries).exists(storage.join(output, "stage.json")):
        parent = output.rstrip("/").rpartition("/")[0]
        raise UsageError(f"{output} is a stage's own directory, and the root of all stages is wanted: give {parent}")


def _make_job(
    stage: Stage, source: StageInput, output: str, settings: PreprocessSettings, method: MethodSettings | None
) -> tuple[StageJob, dict[str, Any]]:
    """The job and the description (stage.json) of its directory."""
    models = identities_of(stage, settings)
    description = describe(stage, settings, source.upstream, models, method)
    mark = fingerprint(description)
    job = stage.job(settings, storage.join(output, f"{stage.name}@{mark}"), models, method)
    return job, {**description, "fingerprint": mark}


def _prepare(
    stage: Stage,
    job: StageJob,
    source: StageInput,
    description: dict[str, Any],
    directory: StageDirectory,
    executor: Executor,
) -> tuple[Prepared, Plan]:
    """Run all checks, write the description, run the phase over all units; returns the plan."""
    fresh = not directory.store.exists(storage.join(directory.uri, "stage.json"))
    if fresh:
        if source.description is not None:
            check_columns(stage, source, directory.store)
        executor.check(job)
        if stage.check_input is not None:
            stage.check_input(job, source)
    prepared = Prepared(units=source.units)
    if stage.prepare is None:
        plan = make_plan(prepared.units, directory.manifests(), directory.rows_present())
        if stage.check_services is not None and (fresh or plan.todo):
            stage.check_services(job)
        directory.describe(description)  # also where all is done: manifests do not say what made them
        return prepared, plan
    directory.describe(description)
    try:
        prepared = stage.prepare(job, source, executor)
    except UsageError:
        if fresh:
            directory.withdraw()
        raise
    return prepared, make_plan(prepared.units, directory.manifests(), directory.rows_present())


def _clear(name: str, directory: StageDirectory, plan: Plan, todo: Sequence[Unit]) -> None:
    """Before anything changes, remove the report, which marks the stage as complete, and units that are out of date."""
    directory.store.delete(storage.join(directory.uri, "report.json"))
    names = {unit.name for unit in todo}
    directory.remove(manifest for manifest in plan.stale if manifest.unit in names)
    if plan.gone:
        logger.info("%s: %d units are no longer in the input and are removed", name, len(plan.gone))
        directory.remove(plan.gone, with_outputs=True)


def _run_units(
    job: StageJob,
    todo: Sequence[Unit],
    directory: StageDirectory,
    plan: Plan,
    executor: Executor,
    progress: Progress,
    rows: int | None,
) -> tuple[Counts, list[float]]:
    """Run the planned units; returns the counts of all units, and when each one ended (first: when the work began).

    Args:
        rows: of all units, where they are known.
    """
    earlier = _counts_before(directory, plan, len(todo))
    execution = job.settings.execution
    total, here = Counts(), 0
    expected = ExpectedRows(rows, todo, len(plan.done))
    left = {unit.name: unit for unit in todo}
    ends = [time.monotonic()]
    for outcome in run_shared(job, todo, directory, executor):
        ends.append(time.monotonic())
        progress.unit_done(outcome.counts)
        here += outcome.here
        expected.done(left.pop(outcome.unit))
        total.add(outcome.counts)
        for number, some in itertools.islice(earlier, 1):
            total.add(some)
            expected.done_before(number)
        _check_errors(total, expected.of(total.rows_in), execution, directory)
    if here < len(todo):
        logger.info("%s: %d units were done here, %d by other clients", job.name, here, len(todo) - here)
    if left:
        total.add(directory.counts(manifests_of([*left.values()], directory)))
    for _, some in earlier:
        total.add(some)
    _check_errors(total, total.rows_in, execution, directory)
    return total, ends


def _known_rows(source: StageInput, uri: str, store: Store) -> int | None:
    """How many rows all units have, where that is known: a finished stage's report says what it wrote."""
    if source.description is None or not source.finished:
        return source.rows
    return int(read_json(storage.join(uri, "report.json"), store)["rows_out"])


def _counts_before(directory: StageDirectory, plan: Plan, pieces: int) -> Iterator[tuple[int, Counts]]:
    """The counts of the units that are done, some units at a time, and how many. Where all are done the report has them.

    To read a million manifests takes half an hour: a run reads a piece after each of its units, while workers go on.
    """
    uri = storage.join(directory.uri, "report.json")
    if not plan.todo and not plan.gone and directory.store.exists(uri):
        report = read_json(uri, directory.store)
        if report["units"] == len(plan.done):
            yield len(plan.done), Counts.from_dict(report)
            return
    size = max(_MANIFESTS, math.ceil(len(plan.done) / max(1, pieces)))
    for start in range(0, len(plan.done), size):
        some = plan.done[start : start + size]
        yield len(some), directory.counts(some)


class ExpectedRows:
    """How many rows the whole input will have had: as they are known, else guessed from those of the units that are done."""

    def __init__(self, known: int | None, todo: Sequence[Unit], before: int):
        self._known = known
        self._units, self._bytes = len(todo) + before, sum(map(_size, todo))  # of the units done before none are known
        self._counted, self._read = 0, 0

    def done(self, unit: Unit) -> None:
        """Count a unit whose rows came in."""
        self._counted += 1
        self._read += _size(unit)

    def done_before(self, units: int) -> None:
        """Count units of an earlier run."""
        self._counted += units

    def of(self, rows_in: int) -> float:
        """At least so many as came in. Units may be of any size: the larger of two guesses, by their number and by bytes."""
        if self._known is not None:
            return max(self._known, rows_in)
        if rows_in < _ENOUGH:
            return math.inf
        return rows_in * max(self._units / self._counted, self._bytes / self._read if self._read else 1.0)


def _size(unit: Unit) -> int:
    """Bytes of a unit's files; of those that a stage wrote none are known."""
    return sum(file.size for file in unit.files)


def _check_errors(total: Counts, expected: float, execution: ExecutionSettings, directory: StageDirectory) -> None:
    """Raise TooManyErrors if more rows are quarantined than the limit allows of all rows that are expected.

    The bad ones may stand at the front. Where all of very many are bad, the rest is not waited for.
    """
    hopeless = total.errors == total.rows_in >= _ENOUGH
    if hopeless or total.errors > max(execution.max_error_floor, execution.max_error_fraction * expected):
        faults = ", ".join(f"{fault} {number}" for fault, number in sorted(total.quarantined.items()))
        raise TooManyErrors(
            f"{total.errors} of {total.rows_in} rows are quarantined ({faults}), more than "
            f"execution.max_error_fraction={execution.max_error_fraction} allows; the rows are listed in "
            f"{directory.excluded_folder}. If they may be lost: --set preprocess.execution.max_error_fraction=1"
        )


def _finish(directory: StageDirectory, report: dict[str, Any], units: Sequence[Unit], says: str) -> None:
    """All is done: remove what killed runs left, and write the report."""
    if not directory.store.exists(storage.join(directory.uri, "report.json")):
        storage.remove_partial_files(directory.uri)
        directory.remove_strays({unit.name for unit in units})
    write_report(directory, report, units, says)
