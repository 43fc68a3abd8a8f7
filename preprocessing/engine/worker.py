"""One stage's work on one unit: read, process, commit. What runs in a Ray worker, and in this process with `local`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.access import access, fetch
from realcustom.preprocessing.engine.fingerprint import models_of
from realcustom.preprocessing.engine.ledger import Outcome
from realcustom.preprocessing.engine.unit import SealedUnit, StageDirectory, Step, Unit
from realcustom.preprocessing.errors import StageBug
from realcustom.preprocessing.settings import PreprocessSettings, Stage

if TYPE_CHECKING:
    from realcustom.preprocessing.select.steps import Sealed
    from realcustom.settings import MethodSettings


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a worker needs to know besides its unit. Travels to the workers once."""

    stage: Stage
    settings: PreprocessSettings
    method: MethodSettings | None  # `encode` only: how references are prepared
    models: dict[str, str]  # setting -> identity
    directory: str  # of the stage
    step: Step = Step.STAGE

    @property
    def place(self) -> str:
        """The directory that units are committed to."""
        return self.directory if self.step is Step.STAGE else storage.join(self.directory, "global", self.step.value)

    def stage_directory(self) -> StageDirectory:
        """Where the outputs of this step go."""
        suffix = ".tar" if self.stage is Stage.EXPORT else ".parquet"
        return StageDirectory(self.place, self.settings.execution, suffix)


class TableStage(Protocol):
    """A stage that reads a table."""

    def __call__(self, unit: str, table: pa.Table) -> Outcome:
        """The outcome of a unit's rows."""
        ...


@runtime_checkable
class ModelStage(TableStage, Protocol):
    """One that runs models on batches."""

    def try_batch(self, size: int) -> None:
        """Run the models on a batch of that size; torch.OutOfMemoryError where it does not fit."""
        ...


def read_unit(job: Job, unit: Unit) -> bytes:
    """The Parquet bytes of a unit's table. Empty where work reads piece by piece itself: ingest, the global phase."""
    if job.stage is Stage.INGEST or job.step is not Step.STAGE:
        return b""
    return fetch(storage.read_bytes, unit.files[0].uri, job.settings.execution)


class Processor:
    """A stage, ready for units. Models are loaded at the first one, once per worker."""

    def __init__(self, job: Job):
        self._job = job
        self._stage: Callable[[Unit, bytes], Outcome | Sealed] | None = None

    def __call__(self, unit: Unit, data: bytes) -> SealedUnit:
        """Process a unit. Raises StageBug, naming the row, for anything unforeseen; ValueError for wrong settings."""
        stage = self._stage or self.load()
        # a source is read piece by piece; elsewhere a refusal would be another file's, a model's say
        with access("read", unit.files[0].uri) if self._job.stage is Stage.INGEST else contextlib.nullcontext():
            try:
                return stage(unit, data).seal(unit)
            except StageBug as error:
                if self._job.models:
                    _refuse_batch(self._job, error)
                raise

    def load(self) -> Callable[[Unit, bytes], Outcome | Sealed]:
        """Load the models now. Raises ValueError, naming them, where they cannot be."""
        self._stage = _load(self._job)
        return self._stage


def commit_unit(job: Job, unit: Unit, sealed: SealedUnit) -> None:
    """Write a unit's outputs, its manifest last."""
    job.stage_directory().commit(unit, sealed)


def _load(job: Job) -> Callable[[Unit, bytes], Outcome | Sealed]:
    settings = job.settings
    if job.step is not Step.STAGE:
        from realcustom.preprocessing.select.steps import load_step

        step = load_step(job.step, settings.select, settings.execution, job.directory)
        return lambda unit, data: step(unit)
    if job.stage is Stage.INGEST:
        from realcustom.preprocessing.ingest.stage import Ingest

        ingest = Ingest(settings.ingest, settings.execution)
        return lambda unit, data: ingest(unit)
    if job.stage is Stage.SELECT:
        from realcustom.preprocessing.select.stage import Select

        select = Select(settings.select, settings.execution)
        return lambda unit, data: select(unit, _table(unit, data))
    stage = load_table_stage(job)
    return lambda unit, data: stage(unit.name, _table(unit, data))


def load_table_stage(job: Job) -> TableStage:
    """The stage with its models. Raises ValueError, naming them, where they cannot be loaded."""
    try:
        return _load_table_stage(job)
    except Exception as error:
        if not job.models:
            raise
        given = models_of(job.stage, job.settings).items()
        names = " and ".join(f"{job.stage.value}.{name}={model}" for name, model in given)
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise UsageError(f"{names} cannot be loaded: {kind}{error}") from error


def _refuse_batch(job: Job, error: StageBug) -> None:
    """Raise ValueError if a batch did not fit into memory: no bug, but a setting's fault."""
    from realcustom.preprocessing.engine.models import is_out_of_memory

    if is_out_of_memory(error.__cause__):
        size = getattr(job.settings, job.stage.value).batch_size
        raise UsageError(
            f"{error}; {job.stage.value}.batch_size={size} does not fit: give a smaller one, or `auto` to have it found"
        ) from error


def _load_table_stage(job: Job) -> TableStage:
    # each stage is imported where it runs: a worker of a cheap one loads neither torch nor transformers
    settings = job.settings
    if job.stage is Stage.SCORE:
        from realcustom.preprocessing.score.stage import Score

        return Score(settings.score, settings.compute, job.models)
    if job.stage is Stage.CAPTION:
        from realcustom.preprocessing.caption.stage import Caption

        return Caption(settings.caption, settings.compute, settings.execution, job.models)
    if job.stage is Stage.SUBJECTS:
        from realcustom.preprocessing.subjects.stage import Subjects

        return Subjects(settings.subjects, settings.compute, job.models)
    if job.stage is Stage.EXPORT:
        from realcustom.preprocessing.export import Export

        return Export(settings.export)
    from realcustom.preprocessing.encode import Encode

    assert job.method is not None, "checked when the stage is prepared"
    return Encode(settings.encode, settings.compute, job.method, job.models)


def _table(unit: Unit, data: bytes) -> pa.Table:
    try:
        table = tables.from_parquet(data)
    except pa.ArrowInvalid as error:
        raise UsageError(
            f"unit {unit.name}: {unit.files[0].uri} is not a readable table ({error}); if a stage wrote it, remove it "
            f"and run that stage again"
        ) from error
    counts = pc.value_counts(table["uid"]) if "uid" in table.schema.names else []
    twice = next((str(count["values"]) for count in counts if count["counts"].as_py() > 1), None)
    if twice is not None:  # in a table that somebody put together of two sources
        raise UsageError(f"{unit.files[0].uri}: two rows have the uid {twice}; every picture needs its own")
    return table
