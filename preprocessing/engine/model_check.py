"""Checks of models before anything starts: a wrong one is reported at once, not by the worker that loads it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from realcustom.errors import UsageError, require_all
from realcustom.identity import split_models, split_revision
from realcustom.model_cache import local
from realcustom.preprocessing.engine.stage import ModelSetting, Stage
from realcustom.preprocessing.engine.worker import StageJob, load_work
from realcustom.preprocessing.settings import PreprocessSettings

_WEIGHTS = ("*.safetensors", "*.bin")


def check_models(stage: Stage, settings: PreprocessSettings) -> None:
    """Raise UsageError if this cannot be the model that a setting wants: by its files; for a hub model by its config.json."""
    given = stage.models_of(settings)
    require_all(
        *(
            partial(_check_model, model, f"{stage.name}.{wanted.name}", wanted)
            for wanted in stage.models
            if wanted.name in given
            for model in split_models(given[wanted.name])
        )
    )


def check_loading(job: StageJob) -> None:
    """Raise UsageError, naming them, if the job's models cannot be loaded; takes seconds, as no weights are read.

    Hub models whose weights are not on this machine are not checked; the worker that loads them reports errors.
    """
    if all(_is_here(model) for models in job.given.values() for model in split_models(models)):
        load_work(dataclasses.replace(job, weights=False))


def find_label(labels: Mapping[str | int, str], name: str, setting: str, model: str) -> int:
    """The index of the label of that name. Raises UsageError, naming the labels, if there is none.

    A model with one label is a regression, which has no probability.
    """
    for index, label in labels.items():
        if label.lower() == name and len(labels) > 1:
            return int(index)
    raise UsageError(f"{setting}: {model} has no label '{name}' beside others, only {', '.join(labels.values())}")


def check_weights(folder: Path, setting: str) -> None:
    """Raise UsageError if a folder holds no weights, or incomplete safetensors files."""
    from safetensors import SafetensorError, safe_open

    files = sorted(path for pattern in _WEIGHTS for path in folder.rglob(pattern))
    if not files:
        raise UsageError(f"{setting}: {folder} has no weights ({' or '.join(_WEIGHTS)})")
    for path in files:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="numpy"):  # its header gives its full length
                    pass
            except (SafetensorError, OSError) as error:
                raise UsageError(f"{setting}: {path} cannot be loaded: {error}") from error


def _check_model(model: str, setting: str, wanted: ModelSetting) -> None:
    folder = Path(local(model))
    if wanted.check is not None:
        wanted.check(model)
    elif folder.is_dir():
        _check_config(model, folder / "config.json", setting, wanted)
        check_weights(folder, setting)
    else:
        _check_config(model, _hub_config(model, setting), setting, wanted)


def _check_config(model: str, config: Path, setting: str, wanted: ModelSetting) -> None:
    try:
        values = json.loads(config.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"{setting}: {model} is no model: it has no config.json") from error
    except ValueError as error:
        raise UsageError(f"{setting}: config.json of {model} is not JSON: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("id2label") or {}, dict):
        raise UsageError(f"{setting}: config.json of {model} is no model's configuration")
    found = values.get("model_type")
    if wanted.model_type is not None and found != wanted.model_type:
        raise UsageError(
            f"{setting}: {model} is a model of type '{found}', and '{wanted.model_type}' is what runs there"
        )
    if wanted.has_label:
        find_label(values.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}, wanted.name, setting, model)


def _hub_config(model: str, setting: str) -> Path:
    """config.json of a hub model, fetched if it is not in the cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, revision = split_revision(model)
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except Exception as error:  # errors of the hub's library, of its HTTP client, or of the network
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise UsageError(f"{setting}: {model} is no model: it has no config.json") from error
        raise UsageError(f"{setting}: config.json of {model} cannot be fetched: {error}") from error


def _is_here(model: str) -> bool:
    """Whether a model's weights are on this machine: in a folder, or in the hub's cache."""
    name, revision = split_revision(model)
    if Path(name).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return isinstance(config, str) and any(any(Path(config).parent.glob(pattern)) for pattern in _WEIGHTS)
