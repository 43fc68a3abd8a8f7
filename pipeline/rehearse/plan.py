"""What is rehearsed of a recipe: its settings with folders for models, no thresholds, few pictures, few steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from realcustom.pipeline.recipes import RunSettings
from realcustom.pipeline.rehearse.folders import write_heads
from realcustom.pipeline.rehearse.parts import WORD, Plan, model_folder
from realcustom.pipeline.rehearse.public import PublicModel, names_in
from realcustom.preprocessing.settings import Device, PreprocessSettings, SelectSettings
from realcustom.training.settings import Precision, TrainSettings


def model_names(settings: RunSettings) -> list[str]:
    """The models that a run with these settings loads, each once: folders and hub ids."""
    preprocess = settings.for_stages()
    named = [
        preprocess.score.clip,
        preprocess.score.aesthetic,
        preprocess.score.nsfw,
        preprocess.score.watermark,
        preprocess.caption.model,
        preprocess.subjects.detector,
        preprocess.subjects.segmenter,
        preprocess.encode.base,
        preprocess.encode.image_encoder,
        settings.method.image_encoder.model,
        settings.base,
    ]
    return list(dict.fromkeys(name for models in named if models is not None for name in names_in(models)))


def make_plan(
    settings: RunSettings, folder: Path, models: Sequence[PublicModel], steps: int, pictures: int, side: int | None
) -> Plan:
    """The plan for a recipe's settings: on the GPU where there is one, else on the CPU with batches of one picture.

    Args:
        folder: of all files.
        models: of the hub that the settings name, to be made below `folder`.
        The others are those of `rehearse`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folders = {model.name: str(model_folder(folder, model.name)) for model in models}
    heads = settings.preprocess.score.heads
    for model in models if heads is not None else ():
        if model.name == str(settings.preprocess.score.clip).partition("@")[0]:  # else they fit the recipe's own folder
            heads = write_heads(folder / "heads", model.parts[""].config["projection_dim"])
    encoder = replace(settings.method.image_encoder, model=_folders_for(settings.method.image_encoder.model, folders))
    own = replace(
        settings,
        base=_folders_for(settings.base, folders),
        method=replace(settings.method, image_encoder=encoder),
        preprocess=_stages(settings.preprocess, folders, heads, device, side),
        train=_training(settings.train, device, steps),
    )
    return Plan(
        settings=own,
        folder=folder,
        steps=steps,
        pictures=pictures,
        side=side,
        device=device,
        models=tuple(models),
    )


def _stages(
    preprocess: PreprocessSettings, folders: Mapping[str, str], heads: str | None, device: str, side: int | None
) -> PreprocessSettings:
    small: Mapping[str, Any] = {} if device == "cuda" else {"batch_size": 1}  # a CPU's memory ends without an error
    return replace(
        preprocess,
        compute=replace(preprocess.compute, device=Device(device), threads=torch.get_num_threads()),
        score=replace(_renamed(preprocess.score, folders), heads=heads, **small),
        select=SelectSettings(min_side=1, exact_duplicates=False, near_duplicate_radius=None),
        caption=replace(_renamed(preprocess.caption, folders), word=None, nouns=(WORD,), more_nouns=(), **small),
        subjects=replace(
            _renamed(preprocess.subjects, folders),
            min_detection_score=0.0,
            min_segmentation_score=-1e9,
            min_box_side=0,
            min_area=0.0,
            max_area=1.0,
            min_box_mask_iou=0.0,
            **small,
        ),
        encode=replace(_renamed(preprocess.encode, folders), resolution=side or preprocess.encode.resolution, **small),
    )


def _training(train: TrainSettings, device: str, steps: int) -> TrainSettings:
    return replace(
        train,
        steps=steps,
        batch_size=train.batch_size // train.num_workers if device == "cuda" else 1,
        gradient_accumulation=1,
        warmup=0,
        precision=Precision.BF16,
        base_dtype=Precision.BF16,
        gradient_checkpointing=True,
        validation_fraction=0.5,
        validation_records=1,
        validation_timesteps=1,
        val_every=0,
        log_every=1,
        sample_records=0,
        checkpoint_every=0,
        num_workers=1,
        threads=torch.get_num_threads(),
        use_gpu=device == "cuda",
    )


def _renamed(section: Any, folders: Mapping[str, str]) -> Any:
    """A section of settings in which every model of the hub is a folder."""
    names = {name.name: getattr(section, name.name) for name in dataclasses.fields(section)}
    return replace(
        section,
        **{
            name: _folders_for(value, folders)
            for name, value in names.items()
            if isinstance(value, str) and any(one.partition("@")[0] in folders for one in names_in(value))
        },
    )


def _folders_for(models: str, folders: Mapping[str, str]) -> str:
    return ",".join(folders.get(name.partition("@")[0], name) for name in names_in(models))
