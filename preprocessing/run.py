"""The public face of preprocessing: run a stage over an input, or see that there is nothing to do."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.identity import resolve_model
from realcustom.preprocessing.access import access, check_input, check_output
from realcustom.preprocessing.engine.batch_size import fix_batch_size, is_auto, probe, probe_on_worker
from realcustom.preprocessing.engine.fingerprint import describe, fingerprint, identities_of, models_of
from realcustom.preprocessing.engine.model_check import check_loading, check_models
from realcustom.preprocessing.engine.progress import Progress
from realcustom.preprocessing.engine.unit import Counts, StageDirectory, Step, Unit, to_json_bytes
from realcustom.preprocessing.engine.worker import Job, Processor, commit_unit, read_unit
from realcustom.preprocessing.errors import TooManyErrors
from realcustom.preprocessing.ingest.corpus import check_tables
from realcustom.preprocessing.inputs import Plan, StageInput, make_plan, open_input
from realcustom.preprocessing.report.report import make_report, write_report
from realcustom.preprocessing.select import stage
from realcustom.preprocessing.select.evaluation import prepare_evaluation
from realcustom.preprocessing.select.search import count_clusters, run_global_phase
from realcustom.preprocessing.select.steps import evaluation_uri
from realcustom.preprocessing.settings import ExecutionSettings, PreprocessSettings, Stage

if TYPE_CHECKING:
    from realcustom.settings import MethodSettings


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a run of a stage came to."""

    directory: str  # of the stage: the input of the next one
    report: dict[str, Any]  # as in report.json
    units_run: int  # by this run; the others were done before
    units_left: int  # not done, because of `limit`
    seconds: float
    unit_seconds: tuple[float, ...] = ()  # from one unit's end to the next one's, of this run; the first loads models


def run_stage(
    name: Stage,
    input: str,
    output: str,
    settings: PreprocessSettings,
    *,
    method: MethodSettings | None = None,
    local: bool = False,
    limit: int | None = None,
    start_ray: Callable[[], object] | None = None,
) -> StageResult:
    """Run one stage. Units that are done are left alone; with nothing to do neither Ray nor a model is started.

    Args:
        input: for `ingest` a corpus (webdataset shards, Parquet tables, a folder of pictures); else the directory that
            the stage before returned, or a Parquet table (or folder of them) with its columns. A path or `s3://`.
        output: the root; the stage writes to `<output>/<stage>@<fingerprint>/`.
        method: how references are prepared; `encode` needs it.
        local: run in this process, without Ray.
        limit: run at most this many units (a dry run; the report is that of the units done so far).
        start_ray: called just before work is distributed, if there is any. Else a Ray must be initialised already.
    Raises:
        ValueError: wrong input or settings; or (TooManyErrors) more rows quarantined than the settings allow.
        StageBug: anything unforeseen; the message names the row.
    """
    began = time.monotonic()
    input, output = _absolute(input), _absolute(output)
    settings = check_stage(name, settings, method)
    check_input(input)
    if name is Stage.INGEST and settings.ingest.metadata is not None:
        check_input(settings.ingest.metadata)
    check_output(output)
    with access("read", input):
        source = open_input(name, input, settings)
    job, description = _prepare(name, source, output, settings, method)
    workers = _Workers(local, start_ray)
    if is_auto(job):
        settings = fix_batch_size(job, output, workers.probe)
        job, description = _prepare(name, source, output, settings, method)
    directory = job.stage_directory()
    fresh = not storage.exists(storage.join(directory.uri, "stage.json"))
    if fresh:  # before anything is written
        workers.check(job)
        if name is Stage.INGEST:
            check_tables(source.units, settings.ingest, settings.execution)
    units = source.units
    clusters = evaluation = None
    if name is Stage.SELECT:
        stage.check_scores(settings.select, source.description)
        evaluation = prepare_evaluation(job)
    else:
        plan = make_plan(units, directory.manifests(), directory.rows_present())
        if fresh or plan.todo:
            _ask_endpoint(job)
    _write_description(directory, description)  # also where all is done: by whom, no manifest says
    if evaluation is not None:
        directory.write(evaluation_uri(job.directory), evaluation)
    if name is Stage.SELECT:
        upstream = source.description["upstream"] if source.description is not None else source.upstream
        own_uids = not upstream.startswith(f"{Stage.INGEST.value}@")
        try:
            units = run_global_phase(units, job, workers.run, own_uids)
        except UsageError:
            if fresh:
                _withdraw(directory)
            raise
        clusters = count_clusters(job)
        plan = make_plan(units, directory.manifests(), directory.rows_present())
    todo = plan.todo[:limit]
    progress = Progress(name.value, len(plan.done) + len(todo), len(plan.done))
    if not source.finished:
        progress.say(f"the stage before has not finished {input}: only the units that are there are read")
    if todo or plan.gone:
        _clear(directory, plan, todo, progress)
    total = Counts()
    for counts in directory.counts(plan.done):
        total.add(counts)
    _check_errors(total, settings.execution, directory)
    ends = [time.monotonic()]
    for counts in workers.run(job, todo):
        ends.append(time.monotonic())
        total.add(counts)
        progress.unit_done(counts)
        _check_errors(total, settings.execution, directory)
    left = len(plan.todo) - len(todo)
    report = make_report(description, total, units=len(plan.done) + len(todo), clusters=clusters)
    if left == 0:
        if not storage.exists(storage.join(directory.uri, "report.json")):
            storage.remove_partial_files(directory.uri)  # of runs that were killed
            directory.remove_strays({unit.name for unit in units})
        write_report(directory, report, units)
    if total.rows_in and not total.kept:
        progress.say(f"nothing was kept: {storage.join(directory.uri, 'aside')} says why of each row")
    seconds = time.monotonic() - began
    if left:
        per_unit = seconds / max(1, len(todo))
        progress.say(f"{left} units left; at {per_unit:.1f} s a unit they take about {left * per_unit:.0f} s")
    return StageResult(
        directory=job.directory,
        report=report,
        units_run=len(todo),
        units_left=left,
        seconds=seconds,
        unit_seconds=tuple(after - before for before, after in itertools.pairwise(ends)),
    )


def check_stage(stage: Stage, settings: PreprocessSettings, method: MethodSettings | None = None) -> PreprocessSettings:
    """The settings with models by absolute path or revision. Raises ValueError for what is not set, or is no model."""
    check_settings(stage, settings, method)
    settings = _resolve_models(stage, settings)
    check_models(stage, settings)
    return settings


def check_settings(stage: Stage, settings: PreprocessSettings, method: MethodSettings | None = None) -> None:
    """Raise ValueError if a setting that the stage cannot do without is not set."""
    needed: list[str] = []
    if stage is Stage.SUBJECTS:
        needed = [name for name in ("detector", "segmenter") if getattr(settings.subjects, name) is None]
    if stage is Stage.ENCODE:
        encode = settings.encode
        if (encode.latents or encode.text_features) and encode.base is None:
            needed.append("base")
        if encode.image_features and encode.image_encoder is None:
            needed.append("image_encoder")
        if not encode.keep_image and not encode.latents:
            raise UsageError("encode.keep_image=false needs encode.latents: a record must hold one of the two")
    if needed:
        raise UsageError(f"{stage.value} needs {' and '.join(f'{stage.value}.{name}' for name in needed)}")
    if stage is Stage.ENCODE and method is None:
        raise UsageError("encode needs the method's settings: they say how a reference is prepared")


def _prepare(
    stage: Stage, source: StageInput, output: str, settings: PreprocessSettings, method: MethodSettings | None
) -> tuple[Job, dict[str, Any]]:
    """The job and the description (stage.json) of its directory."""
    models = identities_of(stage, settings)
    description = describe(stage, settings, source.upstream, models, method)
    mark = fingerprint(description)
    directory = storage.join(output, f"{stage.value}@{mark}")
    job = Job(stage=stage, settings=settings, method=method, models=models, directory=directory)
    return job, {**description, "fingerprint": mark}


class _Workers:
    """Runs units where they are to run. Ray is started, or asked for, when the first one is distributed."""

    def __init__(self, local: bool, start_ray: Callable[[], object] | None):
        self._local = local
        self._start_ray = start_ray
        self._ready = False
        self._processor: Processor | None = None  # `local`: of a stage with models

    def check(self, job: Job) -> None:
        """Raise ValueError, naming them, if the stage's models cannot be loaded."""
        if job.models and self._local:
            self._processor = Processor(job)
            self._processor.load()
        elif job.models:
            check_loading(job)

    def probe(self, job: Job) -> int:
        """The largest batch that fits where units are to run."""
        if self._local:
            return probe(job)
        check_loading(job)
        self._connect()
        from realcustom.preprocessing.engine.cluster import fit_to_cluster  # Ray only where work is distributed

        self._say(job, fit_to_cluster(job, ())[1])
        return probe_on_worker(job)

    def run(self, job: Job, units: Sequence[Unit]) -> Iterator[Counts]:
        """Process and commit units; the counts of each as it is done."""
        # the only unit of a global step is not worth the seconds that Ray needs
        if self._local or (job.step is not Step.STAGE and len(units) == 1):
            processor = self._processor or Processor(job)
            for unit in units:
                sealed = processor(unit, read_unit(job, unit))
                commit_unit(job, unit, sealed)
                yield sealed.counts
        elif units:
            self._connect()
            from realcustom.preprocessing.engine.cluster import fit_to_cluster  # Ray only where work is distributed
            from realcustom.preprocessing.engine.ray_data import run_units

            job, notes = fit_to_cluster(job, units)
            self._say(job, notes)
            yield from run_units(job, tuple(units))

    def _connect(self) -> None:
        if not self._ready:
            _require_ray(self._start_ray)
            self._ready = True

    @staticmethod
    def _say(job: Job, notes: Sequence[str]) -> None:
        for note in notes:
            print(f"{job.stage.value}: {note}", file=sys.stderr, flush=True)


def _ask_endpoint(job: Job) -> None:
    """Raise ValueError if the endpoint that captions come from refuses or does not answer."""
    if job.stage is Stage.CAPTION and job.settings.caption.endpoint.url is not None:
        from realcustom.preprocessing.caption.endpoint import EndpointCaptioner  # an HTTP client only where one is used

        EndpointCaptioner(job.settings.caption, job.settings.execution).check()


def _clear(directory: StageDirectory, plan: Plan, todo: Sequence[Unit], progress: Progress) -> None:
    """Before anything changes: the report, which says that the stage is complete, and what is out of date."""
    report = storage.join(directory.uri, "report.json")
    if storage.exists(report):
        filesystem, path = storage.open_filesystem(report)
        filesystem.delete_file(path)
    names = {unit.name for unit in todo}
    directory.remove(manifest for manifest in plan.stale if manifest.unit in names)
    if plan.gone:
        progress.say(f"{len(plan.gone)} units are no longer in the input and are removed")
        directory.remove(plan.gone, with_outputs=True)


def _write_description(directory: StageDirectory, description: dict[str, Any]) -> None:
    """Say what the directory is before anything else lies there. Raises ValueError if it is something else's."""
    uri = storage.join(directory.uri, "stage.json")
    data = to_json_bytes(description)
    if storage.exists(uri):
        if directory.read(uri) != data:
            raise UsageError(
                f"{directory.uri} holds the files of another fingerprint: its stage.json is not this run's. Move it "
                f"away or give another --output"
            )
        return
    try:
        foreign = storage.list_files(directory.uri)
    except FileNotFoundError:
        foreign = []
    if foreign:
        raise UsageError(
            f"{directory.uri} holds files of no stage ({foreign[0].name}): move them away or give another --output"
        )
    directory.write(uri, data)


def _withdraw(directory: StageDirectory) -> None:
    """Leave nothing of an input that was refused when it was read, unless some of the work is done."""
    if not any("/manifests/" in f"/{entry.name}" for entry in storage.list_files(directory.uri)):
        filesystem, path = storage.open_filesystem(directory.uri)
        filesystem.delete_dir(path)


def _check_errors(total: Counts, execution: ExecutionSettings, directory: StageDirectory) -> None:
    if total.errors > max(execution.max_error_floor, execution.max_error_fraction * total.rows_in):
        faults = ", ".join(f"{fault} {number}" for fault, number in sorted(total.quarantined.items()))
        raise TooManyErrors(
            f"{total.errors} of {total.rows_in} rows are quarantined ({faults}), more than "
            f"execution.max_error_fraction={execution.max_error_fraction} allows; the rows are listed in "
            f"{storage.join(directory.uri, 'aside')}"
        )


def _require_ray(start_ray: Callable[[], object] | None) -> None:
    if start_ray is not None:
        start_ray()
    import ray  # Ray only where work is distributed; after what it reads of the environment has been set

    if not ray.is_initialized():
        raise UsageError("no Ray is initialised: call ray.init() first, or run with local=True (--local)")


def _absolute(uri: str) -> str:
    return uri if storage.is_remote(uri) else str(Path(uri.removeprefix("file://")).expanduser().absolute())


def _resolve_models(stage: Stage, settings: PreprocessSettings) -> PreprocessSettings:
    """Models by absolute path or revision: a worker's folder is another one, and a hub model may move on."""
    models = {}
    for name, model in models_of(stage, settings).items():
        try:
            models[name] = resolve_model(model)
        except UsageError as error:
            raise UsageError(f"{stage.value}.{name}: {error}") from error
    section = dataclasses.replace(getattr(settings, stage.value), **models)
    return dataclasses.replace(settings, **{stage.value: section})
