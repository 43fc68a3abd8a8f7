"""What a stage's output depends on, hashed to the name of its directory: change a parameter, and it is another one."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from realcustom import storage
from realcustom.config import to_dict
from realcustom.errors import UsageError
from realcustom.identity import model_identity
from realcustom.preprocessing.access import access
from realcustom.preprocessing.engine.unit import identity_of
from realcustom.preprocessing.settings import JUDGED, BatchSize, PreprocessSettings, Stage

if TYPE_CHECKING:
    from realcustom.settings import MethodSettings

# Raised when a stage's code is changed so that its output changes.
VERSIONS = {
    Stage.INGEST: 5,
    Stage.SCORE: 3,
    Stage.SELECT: 4,
    Stage.CAPTION: 2,
    Stage.SUBJECTS: 2,
    Stage.ENCODE: 1,
    Stage.EXPORT: 1,
}

_MODEL_SETTINGS: dict[Stage, tuple[str, ...]] = {
    Stage.INGEST: (),
    Stage.SCORE: ("clip", "heads", *JUDGED),
    Stage.SELECT: (),
    Stage.CAPTION: ("model",),
    Stage.SUBJECTS: ("detector", "segmenter"),
    Stage.ENCODE: ("base", "image_encoder"),
    Stage.EXPORT: (),
}


def models_of(stage: Stage, settings: PreprocessSettings) -> dict[str, str]:
    """The models that a stage runs under these settings: setting -> hub id or folder."""
    section = getattr(settings, stage.value)
    wanted: dict[str, str | None] = {name: getattr(section, name) for name in _MODEL_SETTINGS[stage]}
    if stage is Stage.ENCODE:
        wanted["base"] = section.base if section.latents or section.text_features else None
        wanted["image_encoder"] = section.image_encoder if section.image_features else None
    return {name: model for name, model in wanted.items() if model is not None}


def identities_of(stage: Stage, settings: PreprocessSettings) -> dict[str, str]:
    """Setting -> identity (id and revision, or content) of each of a stage's models."""
    return {name: model_identity(model) for name, model in models_of(stage, settings).items()}


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
    parameters = to_dict(getattr(settings, stage.value))
    for name in _MODEL_SETTINGS[stage]:
        parameters.pop(name)  # the identity in `models` says it; a folder may move
    if stage is Stage.INGEST:
        parameters.pop("corpus")  # is in `upstream`
        parameters.pop("metadata")  # what it says of a unit's pictures is in the unit's identity
        parameters.pop("download")  # how, not what
    if stage is Stage.CAPTION:
        endpoint = parameters.pop("endpoint")
        if settings.caption.endpoint.model is not None:  # its place, and how it is asked, decide no word
            parameters["endpoint"] = {name: endpoint[name] for name in ("model", "prompt", "seed", "longest_side")}
            parameters.pop("batch_size")
    if stage is Stage.SELECT and settings.select.evaluation_folder is not None:
        folder = settings.select.evaluation_folder
        with access("read", folder):
            if not storage.is_dir(folder):
                raise UsageError(f"select.evaluation_folder: no folder at {folder}")
            parameters["evaluation_folder"] = _content(folder)
    description: dict[str, Any] = {
        "stage": stage.value,
        "version": VERSIONS[stage],
        "upstream": upstream,
        "parameters": parameters,
        "models": models,
    }
    if models:
        compute = {**to_dict(settings.compute), "dtype": settings.compute.number_format.value}
        if parameters.get("batch_size") != BatchSize.AUTO.value:
            compute.pop("largest_batch")  # decides what the number becomes, and nothing once it is known
        description["compute"] = compute
    if stage is Stage.ENCODE and method is not None:
        reference = to_dict(method.image_encoder)
        reference.pop("model", None)  # encode.image_encoder is the one that runs, and is in `models`
        description["reference"] = reference
    return description


def _content(folder: str) -> str:
    """What is in a folder of pictures, wherever it lies; of an object store's by its ETags."""
    if not storage.is_remote(folder):
        return model_identity(folder).rpartition("@")[2]
    return identity_of([[entry.name, entry.size, entry.version] for entry in storage.list_files(folder)])


def fingerprint(description: dict[str, Any]) -> str:
    """12 hex digits over a stage's description."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]
