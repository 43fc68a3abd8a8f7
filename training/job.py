"""A training run as plain data that travels to workers. Imports neither torch nor ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from realcustom.settings import MethodSettings
from realcustom.training.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What to train, on what, and where the result goes."""

    records: str
    output: str
    base: str  # hub id or folder
    image_encoder: str  # hub id or folder
    method: MethodSettings
    settings: TrainSettings
    initial_adapter: str | None
    resolved: Mapping[str, Any]  # all that decides the result, as settings.yaml says it
    identity: str  # hash of it, 16 hex digits
