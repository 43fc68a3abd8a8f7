"""A stage's work on one unit: read, process, commit. Runs in a Ray worker or in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc

from realcustom.errors import UsageError
from realcustom.leases import Claims
from realcustom.machine import is_out_of_memory
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.directory import StageDirectory
from realcustom.preprocessing.engine.ledger import UnitResult
from realcustom.preprocessing.engine.unit import Counts, SealedUnit, Unit
from realcustom.preprocessing.errors import StageBug
from realcustom.preprocessing.settings import PreprocessSettings
from realcustom.store import Store, refusals

if TYPE_CHECKING:
    from realcustom.preprocessing.engine.models import Runtime
    from realcustom.settings import MethodSettings


class Work(Protocol):
    """A stage, ready for units."""

    def __call__(self, unit: Unit, data: bytes) -> SealedUnit:
        """A unit's outputs. `data`: the bytes of its table, empty where the work reads its input itself."""
        ...


class TableStage(Protocol):
    """A stage that reads a table."""

    def __call__(self, unit: Unit, table: pa.Table) -> UnitResult:
        """The result for a unit's rows."""
        ...


@runtime_checkable
class ModelStage(TableStage, Protocol):
    """A work that runs models on batches."""

    def try_batch(self, size: int) -> None:
        """Run the models on a batch of that size; torch.OutOfMemoryError where it does not fit."""
        ...


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """Everything that a worker needs besides its unit. Sent to the workers once."""

    name: str  # of the stage, and of its section in the settings
    load: Callable[[StageJob], Work]
    settings: PreprocessSettings
    method: MethodSettings | None = None  # how references are prepared, for a stage that prepares them
    models: dict[str, str] = field(default_factory=dict)  # setting -> identity
    given: dict[str, str] = field(default_factory=dict)  # setting -> hub id or folder of the same models
    directory: str  # units are committed to it
    suffix: str = ".parquet"  # of the files of rows
    reads_table: bool = True  # the work gets the bytes of a unit's one table; else it reads its input itself
    weights: bool = True  # false: models are built as their files say, but no weight is read
    loads_without_weights: bool = True  # whether that is possible
    claims: Claims | None = None  # of a run that shares its units with others
    share: Callable[[StageJob, Sequence[Unit], int], tuple[StageJob, list[str]]] | None = None  # as Stage has it
    units_at_once: int = 1  # of one worker, each in a thread: for work that waits more than it computes

    @property
    def section(self) -> Any:
        """The stage's own settings."""
        return self.settings.section(self.name)

    @property
    def store(self) -> Store:
        """The store that the job reads and writes with."""
        return Store(self.settings.execution.retries)

    def stage_directory(self) -> StageDirectory:
        """The directory of the outputs."""
        return StageDirectory(self.directory, self.store, self.suffix)

    def runtime(self) -> Runtime | None:
        """The device of its models; None: it has no models, and torch is not loaded."""
        if not self.models:
            return None
        from realcustom.preprocessing.engine.models import Runtime

        return Runtime(self.settings.compute, weights=self.weights)


class TableWork:
    """The work of a stage that reads one table per unit."""

    def __init__(self, stage: TableStage):
        self.stage = stage

    def __call__(self, unit: Unit, data: bytes) -> SealedUnit:
        """The outputs for the table in `data`."""
        return self.stage(unit, table_of(unit, data)).seal(unit)


class SourceWork:
    """The work of a stage that reads a source's files piece by piece."""

    def __init__(self, source: Callable[[Unit], UnitResult]):
        self._source = source

    def __call__(self, unit: Unit, data: bytes) -> SealedUnit:
        """The outputs for the unit's files."""
        with refusals("read", unit.files[0].uri):
            return self._source(unit).seal(unit)


class UnitTaken(Exception):
    """Another client does this unit."""


class UnitDone(Exception):
    """This unit is done: another client was faster, or a worker that was lost with its bundle had done it."""

    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A unit that is done."""

    unit: str  # its name
    counts: Counts
    here: bool = True  # by this run; False: another client, or a worker that was lost with its bundle, had done it


def read_unit(job: StageJob, unit: Unit, known: Mapping[str, Counts] | None = None) -> bytes:
    """The Parquet bytes of a unit's table. Empty where the work reads its input itself. Raises UnitTaken, UnitDone.

    Args:
        known: counts of units that are known to be done.
    """
    if job.claims is not None:
        if known and unit.name in known:
            raise UnitDone(known[unit.name])
        if job.claims.take(unit.name) is not None:
            raise UnitTaken
        counts = job.stage_directory().counts_of(unit)
        if counts is not None:
            job.claims.release(unit.name)
            raise UnitDone(counts)
    return job.store.read(unit.files[0].uri) if job.reads_table else b""


class Processor:
    """A job's work on units. Models are loaded at the first one, once per worker."""

    def __init__(self, job: StageJob):
        self._job = job
        self._work: Work | None = None

    def __call__(self, unit: Unit, data: bytes) -> SealedUnit:
        """Process a unit. Raises StageBug, naming the row, for anything unforeseen; UsageError for wrong settings."""
        work = self._work or self.load()
        try:
            return work(unit, data)
        except StageBug as error:
            if self._job.models:
                _refuse_batch(self._job, error)
            raise

    def load(self) -> Work:
        """Load the models now. Raises UsageError, naming them, where they cannot be."""
        self._work = load_work(self._job)
        return self._work


def load_work(job: StageJob) -> Work:
    """The job's work with its models. Raises UsageError, naming them, where they cannot be loaded."""
    try:
        return job.load(job)
    except (AssertionError, AttributeError, NameError):  # bugs, independent of the models
        raise
    except Exception as error:  # transformers and safetensors raise many kinds of errors for wrong files
        if not job.given:
            raise
        names = " and ".join(f"{job.name}.{name}={model}" for name, model in job.given.items())
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise UsageError(f"{names} cannot be loaded: {kind}{error}") from error


def do_unit(processor: Processor, job: StageJob, unit: Unit, known: Mapping[str, Counts] | None = None) -> Counts:
    """Read, process and commit a unit; its counts. Raises UnitTaken, UnitDone."""
    sealed = processor(unit, read_unit(job, unit, known))
    commit_unit(job, unit, sealed)
    return sealed.counts


def commit_unit(job: StageJob, unit: Unit, sealed: SealedUnit) -> None:
    """Write a unit's outputs, its manifest last."""
    job.stage_directory().commit(unit, sealed)
    if job.claims is not None:
        job.claims.release(unit.name)


def table_of(unit: Unit, data: bytes) -> pa.Table:
    """A unit's table. Raises UsageError if it is not a table, or if two of its rows have the same uid."""
    uri = unit.files[0].uri
    try:
        table = tables.from_parquet(data)
    except pa.ArrowInvalid as error:
        raise UsageError(
            f"unit {unit.name}: {uri} is not a readable table ({error}); if a stage wrote it, remove it and run that "
            f"stage again"
        ) from error
    counts = pc.value_counts(table["uid"]) if "uid" in table.schema.names else []
    twice = next((str(count["values"]) for count in counts if count["counts"].as_py() > 1), None)
    if twice is not None:  # happens in a table that a user made of two sources
        raise UsageError(f"{uri}: two rows have the uid {twice}; every picture needs its own")
    return table


def _refuse_batch(job: StageJob, error: StageBug) -> None:
    """Raise UsageError if a batch did not fit into memory: a wrong setting, not a bug."""
    if is_out_of_memory(error.__cause__):
        raise UsageError(
            f"{error}; {job.name}.batch_size={job.section.batch_size} does not fit: give a smaller one, or `auto` to "
            f"have it found"
        ) from error
