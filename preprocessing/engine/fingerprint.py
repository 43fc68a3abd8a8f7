"""A hash of all that a stage's output depends on.

It is part of the directory's name, so each parameter value has its own.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from realcustom.config import to_dict
from realcustom.identity import model_identity
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.settings import BatchSize, PreprocessSettings

if TYPE_CHECKING:
    from realcustom.settings import MethodSettings


def identities_of(stage: Stage, settings: PreprocessSettings) -> dict[str, str]:
    """Setting -> identity (id and revision, or content) of each of a stage's models."""
    return {name: model_identity(model) for name, model in stage.models_of(settings).items()}


def describe(
    stage: Stage,
    settings: PreprocessSettings,
    upstream: str,
    models: dict[str, str],
    method: MethodSettings | None,
) -> dict[str, Any]:
    """All that a stage's output depends on besides its input's bytes, as plain data (saved as stage.json).

    Args:
        upstream: `stage@fingerprint` of the input, or what identifies a source.
        models: setting -> identity.
    """
    parameters = to_dict(stage.section(settings))
    for model in stage.models:
        parameters.pop(model.name)  # given by the identity in `models`; a folder may move
    description: dict[str, Any] = {
        "stage": stage.name,
        "version": stage.version,
        "upstream": upstream,
        "parameters": parameters,
        "models": models,
    }
    stage.describe(description, settings, method)
    if models:
        compute = {**to_dict(settings.compute), "dtype": settings.compute.number_format.value}
        if parameters.get("batch_size") != BatchSize.AUTO.value:
            compute.pop("largest_batch")  # decides the number that is found; has no effect once it is known
        description["compute"] = compute
    return description


def fingerprint(description: dict[str, Any]) -> str:
    """12 hex digits over a stage's description."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]
