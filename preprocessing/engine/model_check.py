"""Models looked at before anything starts: a wrong one is said at once, not by the worker that loads it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from realcustom.errors import UsageError
from realcustom.identity import check_base, split_models, split_revision
from realcustom.preprocessing.engine.fingerprint import models_of
from realcustom.preprocessing.settings import JUDGED, PreprocessSettings, Stage

if TYPE_CHECKING:
    from realcustom.preprocessing.engine.worker import Job

# What config.json says of the models that a stage runs.
_TYPES = {
    "score.clip": "clip",
    "caption.model": "blip",
    "subjects.detector": "grounding-dino",
    "subjects.segmenter": "sam",
}
_CLASSIFIERS = tuple(f"score.{name}" for name in JUDGED)
_WEIGHTS = ("*.safetensors", "*.bin")


def check_models(stage: Stage, settings: PreprocessSettings) -> None:
    """Raise ValueError for what cannot be the model that a setting wants: by its files, of a hub's its config.json."""
    for name, models in models_of(stage, settings).items():
        setting = f"{stage.value}.{name}"
        for model in split_models(models):
            folder = Path(model)
            if setting == "encode.base":
                if folder.is_dir():
                    check_base(model)
                    _check_weights(folder, setting)
            elif setting == "score.heads":
                if not (folder / "heads.safetensors").is_file():
                    raise UsageError(f"score.heads: no file at {folder / 'heads.safetensors'}")
            elif folder.is_dir():
                _check_config(model, folder / "config.json", setting)
                _check_weights(folder, setting)
            else:
                _check_config(model, _hub_config(model, setting), setting)


def check_loading(job: Job) -> None:
    """Raise ValueError, naming them, if the job's models cannot be loaded; their weights are not read, so in seconds.

    Models of the hub whose weights are not on this machine are left to the worker that loads them, and so is what
    `encode` runs.
    """
    from realcustom.preprocessing.engine.models import (
        WithoutWeights,  # torch and transformers only for models that are to run
    )
    from realcustom.preprocessing.engine.worker import load_table_stage

    models = [model for models in models_of(job.stage, job.settings).values() for model in split_models(models)]
    if job.stage is not Stage.ENCODE and all(_is_here(model) for model in models):
        load_table_stage(dataclasses.replace(job, settings=dataclasses.replace(job.settings, compute=WithoutWeights())))


def _check_config(model: str, config: Path, setting: str) -> None:
    try:
        values = json.loads(config.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"{setting}: {model} is no model: it has no config.json") from error
    except ValueError as error:
        raise UsageError(f"{setting}: config.json of {model} is not JSON: {error}") from error
    found, wanted = values.get("model_type"), _TYPES.get(setting)
    if wanted is not None and found != wanted:
        raise UsageError(f"{setting}: {model} is a model of type '{found}', and '{wanted}' is what runs there")
    if setting in _CLASSIFIERS:
        find_label(values.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}, setting.partition(".")[2], model)


def find_label(labels: Mapping[str | int, str], score: str, model: str) -> int:
    """The index of the label that the score is named after. Raises ValueError, naming the labels, if there is none.

    One label alone is a regression's, and has no probability.
    """
    for index, label in labels.items():
        if label.lower() == score and len(labels) > 1:
            return int(index)
    raise UsageError(f"score.{score}: {model} has no label '{score}' beside others, only {', '.join(labels.values())}")


def _check_weights(folder: Path, setting: str) -> None:
    from safetensors import SafetensorError, safe_open

    files = sorted(path for pattern in _WEIGHTS for path in folder.rglob(pattern))
    if not files:
        raise UsageError(f"{setting}: {folder} has no weights ({' or '.join(_WEIGHTS)})")
    for path in files:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="numpy"):  # its header says how long it has to be
                    pass
            except (SafetensorError, OSError) as error:
                raise UsageError(f"{setting}: {path} cannot be loaded: {error}") from error


def _hub_config(model: str, setting: str) -> Path:
    """config.json of a hub's model, fetched if it is not here yet."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, revision = split_revision(model)
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except Exception as error:  # of the hub's library, of whichever HTTP client it uses, or of the network
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise UsageError(f"{setting}: {model} is no model: it has no config.json") from error
        raise UsageError(f"{setting}: config.json of {model} cannot be fetched: {error}") from error


def _is_here(model: str) -> bool:
    """Whether a model's weights are on this machine: a folder's, or a hub's in the cache."""
    if Path(model).is_dir():
        return True
    name, revision = split_revision(model)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return isinstance(config, str) and any(any(Path(config).parent.glob(pattern)) for pattern in _WEIGHTS)
