"""A training run as plain data that is sent to workers. Imports neither torch nor ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from realcustom.settings import MethodSettings
from realcustom.training.settings import TrainSettings


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
    resolved: Mapping[str, Any]  # all settings that decide the result, as in settings.yaml
    identity: str  # hash of those that may not change when the run is continued, 16 hex digits
