"""What the engine is told of a stage: one frozen row, of which preprocessing/catalogue.py holds one for each."""

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
    upstream: str  # what identifies where they come from; part of the fingerprint
    description: dict[str, Any] | None  # stage.json of the stage that wrote them; null: not one of ours
    finished: bool  # whether that stage says it is complete


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The units that are to be processed, after a phase that looks at all of them at once."""

    units: tuple[Unit, ...]
    report: Mapping[str, Any] = field(default_factory=dict)  # what it adds to report.json


@dataclass(frozen=True, kw_only=True)
class ModelSetting:
    """A setting of a stage that names a model: a folder or a hub id."""

    name: str
    model_type: str | None = None  # as its config.json has to say; null: any
    has_label: bool = False  # an image classification model with a label that is called as the setting is
    check: Callable[[str], None] | None = None  # raises UsageError; instead of looking at config.json
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
    version: int  # raised when its code is changed so that its output changes (tests/preprocessing/golden.json)
    load: Callable[[StageJob], Work]  # the work, made where it runs: imports what it needs, loads models
    reads: tuple[str, ...] = ()  # names of the stages whose output it can read, the usual one first; none: a source
    needs: tuple[pa.Field, ...] = ()  # columns of a user's own table
    models: tuple[ModelSetting, ...] = ()
    suffix: str = ".parquet"  # of the files it writes
    loads_without_weights: bool = True  # whether its models can be built without their weights, to see if they fit
    check_settings: Callable[[PreprocessSettings, MethodSettings | None], None] = _no_check
    # Changes the description (stage.json) so that it holds what decides the output and nothing else.
    describe: Callable[[dict[str, Any], PreprocessSettings, MethodSettings | None], None] = _as_it_is
    # Of a source: lists the units at a URI.
    open_source: Callable[[str, PreprocessSettings, Store], StageInput] | None = None
    # Raises UsageError for an input that does not fit, before anything is written.
    check_input: Callable[[StageJob, StageInput], None] | None = None
    # Raises UsageError for what the work depends on and is not there; asked only where there is work to do.
    check_services: Callable[[StageJob], None] | None = None
    # A phase over all units before any of them is processed.
    prepare: Callable[[StageJob, StageInput, Executor], Prepared] | None = None
    # The job with what its workers have to share divided among so many of them, and what the user should know of it.
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
        """What its workers are told. `models`: setting -> identity; `directory`: that units are committed to."""
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
        """The models that it runs under these settings: setting -> hub id or folder."""
        section = self.section(settings)
        named = {model.name: getattr(section, model.name) for model in self.models if model.wanted(section)}
        return {name: model for name, model in named.items() if model is not None}
