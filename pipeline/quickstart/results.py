"""What a run of the quickstart has made: what its page and its report tell of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realcustom.pipeline.recipes import RunSettings

if TYPE_CHECKING:
    from realcustom.evaluation.table import Case, Row, Table
    from realcustom.pipeline.quickstart.film import Films
    from realcustom.pipeline.quickstart.learning import Measured
    from realcustom.training.run import TrainResult


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The training run."""

    result: TrainResult
    output: str  # its folder
    initial_adapter: str | None  # None: it began with random weights


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that a run has made."""

    output: Path
    settings: RunSettings
    corpus: str  # its folder
    directories: Mapping[str, str]  # of the stages, by name
    stages: Mapping[str, Mapping[str, Any]]  # their accounts
    trained: Trained
    request: Mapping[str, Any]  # the case that was asked for, and the endpoint's answer
    table: Table
    cases: Sequence[Case]
    learned: Sequence[Measured]  # adapters saved on the way, fewest steps first
    shipped: Row | None  # the method's row for the adapter that ships; None: the recipe names none
    films: Sequence[Films]
    reused: Sequence[str]  # parts that an earlier run had finished
