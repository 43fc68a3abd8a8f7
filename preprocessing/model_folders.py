"""Model folders looked at before anything starts: a wrong one is said at once, not by the worker that loads it."""

from __future__ import annotations

import json
from pathlib import Path

from preprocessing.fingerprint import models_of
from preprocessing.settings import PreprocessSettings, Stage
from realcustom.identity import check_base, split_models

# What config.json says of the models that a stage runs.
_TYPES = {
    "score.clip": "clip",
    "caption.model": "blip",
    "subjects.detector": "grounding-dino",
    "subjects.segmenter": "sam",
}
_WEIGHTS = ("*.safetensors", "*.bin")


def check_models(stage: Stage, settings: PreprocessSettings) -> None:
    """Raise ValueError for a local folder that cannot be the model that a setting wants. A hub's models load later."""
    for name, models in models_of(stage, settings).items():
        setting = f"{stage.value}.{name}"
        for model in split_models(models):
            folder = Path(model)
            if not folder.is_dir():
                continue
            if setting == "encode.base":
                check_base(model)
            elif setting == "score.heads":
                if not (folder / "heads.safetensors").is_file():
                    raise ValueError(f"score.heads: no file at {folder / 'heads.safetensors'}")
            else:
                _check_folder(folder, setting)


def _check_folder(folder: Path, setting: str) -> None:
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{setting}: {folder} is no model: it has no config.json") from error
    except ValueError as error:
        raise ValueError(f"{setting}: {folder}/config.json is not JSON: {error}") from error
    wanted = _TYPES.get(setting)
    found = config.get("model_type")
    if wanted is not None and found != wanted:
        raise ValueError(f"{setting}: {folder} is a model of type '{found}', and '{wanted}' is what runs there")
    if not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        raise ValueError(f"{setting}: {folder} has no weights ({' or '.join(_WEIGHTS)})")
