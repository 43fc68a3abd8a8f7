"""The description of a stage for the engine: one frozen row. preprocessing/catalogue.py has one for each stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.engine.worker import StageJob, Work
from realcustom.preprocessing.settings import PreprocessSettings
from realcustom.store import Store

if TYPE_CHECKING:
    from realcustom.preprocessing.engine.executors import Executor
    from realcustom.settings import MethodSettings


@dataclass(frozen=True, kw_only=True)
class StageInput:
    """The units that a stage reads."""

    units: tuple[Unit, ...]  # sorted by name
    upstream: str  # identity of their source; part of the fingerprint
    description: dict[str, Any] | None  # stage.json of the stage that wrote them; null: no stage wrote them
    finished: bool  # whether that stage is complete
    account: Mapping[str, Any] = field(default_factory=dict)  # of a corpus: what report.json says of its files
    rows: int | None = None  # of a corpus: rows of all units, or at least so many; null: known when all are read


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The units to process, after the phase that looks at all of them at once."""

    units: tuple[Unit, ...]
    report: Mapping[str, Any] = field(default_factory=dict)  # what that phase adds to report.json


@dataclass(frozen=True, kw_only=True)
class ModelSetting:
    """A setting of a stage that names a model: a folder or a hub id."""

    name: str
    model_type: str | None = None  # `model_type` in its config.json; null: any
    has_label: bool = False  # an image classification model with a label of the setting's name
    check: Callable[[str], None] | None = None  # a check instead of that of config.json; raises UsageError
    wanted: Callable[[Any], bool] = lambda section: True  # whether these settings of the stage use it


def _no_check(settings: PreprocessSettings, method: MethodSettings | None) -> None:
    return


def _as_it_is(description: dict[str, Any], settings: PreprocessSettings, method: MethodSettings | None) -> None:
    return


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage. Its settings are the section of its name in PreprocessSettings."""

    name: str
    help: str  # one sentence for the command line
    version: int  # increased when a change of code changes the output (tests/preprocessing/golden.json)
    load: Callable[[StageJob], Work]  # makes the work in the process that runs it: imports what it needs, loads models
    reads: tuple[str, ...] = ()  # stages whose output it can read, the usual one first; none: it reads a corpus
    needs: tuple[pa.Field, ...] = ()  # required columns of a user's own table
    models: tuple[ModelSetting, ...] = ()
    suffix: str = ".parquet"  # of the files it writes
    loads_without_weights: bool = True  # whether its models can be built without their weights, as a check
    check_settings: Callable[[PreprocessSettings, MethodSettings | None], None] = _no_check
    # Changes the description (stage.json) so that it holds only what decides the output.
    describe: Callable[[dict[str, Any], PreprocessSettings, MethodSettings | None], None] = _as_it_is
    # For a stage that reads a corpus: lists the units at a URI.
    open_source: Callable[[str, PreprocessSettings, Store], StageInput] | None = None
    # Raises UsageError for an unsuitable input, before anything is written.
    check_input: Callable[[StageJob, StageInput], None] | None = None
    # Raises UsageError if something that the work needs is missing; called only where there is work to do.
    check_services: Callable[[StageJob], None] | None = None
    # A phase over all units before any of them is processed.
    prepare: Callable[[StageJob, StageInput, Executor], Prepared] | None = None
    # The job with its shared limits divided among that many workers, and a warning for the user.
    share: Callable[[StageJob, Sequence[Unit], int], tuple[StageJob, list[str]]] | None = None

    def section(self, settings: PreprocessSettings) -> Any:
        """The stage's own settings."""
        return settings.section(self.name)

    def job(
        self,
        settings: PreprocessSettings,
        directory: str,
        models: dict[str, str] | None = None,
        method: MethodSettings | None = None,
    ) -> StageJob:
        """The job for its workers. `models`: setting -> identity; `directory`: units are committed to it."""
        return StageJob(
            name=self.name,
            load=self.load,
            settings=settings,
            method=method,
            models=models or {},
            given=self.models_of(settings),
            directory=directory,
            suffix=self.suffix,
            reads_table=self.open_source is None,
            loads_without_weights=self.loads_without_weights,
            share=self.share,
        )

    def models_of(self, settings: PreprocessSettings) -> dict[str, str]:
        """The models that it runs with these settings: setting -> hub id or folder."""
        section = self.section(settings)
        named = {model.name: getattr(section, model.name) for model in self.models if model.wanted(section)}
        return {name: model for name, model in named.items() if model is not None}
