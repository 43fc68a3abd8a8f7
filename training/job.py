"""A training run as plain data that is sent to workers. Imports neither torch nor ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from realcustom.settings import MethodSettings
from realcustom.training.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Parent:
    """Where a run branches off another one."""

    checkpoint: str  # uri; is read only while the new run has none of its own
    identity: str  # of the parent's configuration
    step: int

    @property
    def provenance(self) -> dict[str, Any]:
        """What decides the bytes, without where it lies."""
        return {"identity": self.identity, "step": self.step}


def split_parent(given: str) -> tuple[str, int | None]:
    """The run and the step of `RUN` or `RUN@STEP`, of which the run's path may have an @ too."""
    run, _, step = given.rpartition("@")
    return (run, int(step)) if run and step.isdecimal() else (given, None)


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """The inputs, settings and output of a training run."""

    records: str
    output: str
    base: str  # hub id or folder
    image_encoder: str  # hub id or folder
    method: MethodSettings
    settings: TrainSettings
    initial_adapter: str | None
    parent: Parent | None = None  # where it branches off another run
    resolved: Mapping[str, Any]  # all settings that decide the result, as in settings.yaml
    identity: str  # hash of those that may not change when the run is continued, 16 hex digits
