"""The released RealCustom++ weights (`RealCustom_highres.pth`) as an adapter checkpoint of this project.

Their tensors have our names already: two K/V projections for each of SDXL's 70 cross-attentions, and the 17 tensors of
the projector. This file checks that the released file holds exactly those, in the shapes that base model and image
encoder require, and loads it without running any code in it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from realcustom.checkpoint import Adapter
from realcustom.errors import MissingFile, UsageError
from realcustom.identity import model_identity, resolve_model, split_revision
from realcustom.image_encoder import count_local_views, feature_width
from realcustom.loading import load_refusals
from realcustom.model import RealCustomModel, adapter_problems
from realcustom.presets import released_sdxl
from realcustom.settings import MethodSettings


def convert_released(
    weights: str | Path, base: str, image_encoder: str | None = None, settings: MethodSettings | None = None
) -> Adapter:
    """Read a released file.

    Args:
        weights: a local file that `torch.save` wrote, a flat mapping of names to tensors.
        base: diffusers folder or hub id of the SDXL model that the adapter acts on; only its UNet's configuration is read.
        image_encoder: "SIGLIP,DINOV2", folders or hub ids; None = the preset's.
        settings: None = `presets.released_sdxl`.
    Raises:
        MissingFile: no such file.
        UsageError: it holds anything but a mapping of tensors, or tensors are missing, unexpected or of another shape.
    """
    settings = settings or released_sdxl()
    encoder = resolve_model(image_encoder or settings.image_encoder.model)
    settings = replace(settings, image_encoder=replace(settings.image_encoder, model=encoder))
    state = _load(Path(weights))
    expected = _expected_shapes(base, encoder, settings)
    problems = adapter_problems(expected, {name: tuple(value.shape) for name, value in state.items()})
    if problems:
        raise UsageError(f"{weights} does not fit {base} with {encoder}: {problems}")
    base_identity = model_identity(resolve_model(base))
    return Adapter(
        tensors=state,
        settings=settings,
        base=base_identity,
        image_encoder=model_identity(encoder),
        provenance={"converted_from": Path(weights).name},
    )


def _load(weights: Path) -> Mapping[str, Tensor]:
    if not weights.is_file():
        raise MissingFile(f"no file at {weights}")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{weights} is not a file of plain tensors that torch.save wrote ({reason})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{weights} is not a flat mapping of names to tensors")
    return {str(name): value for name, value in state.items()}


def _expected_shapes(base: str, encoder: str, settings: MethodSettings) -> dict[str, tuple[int, ...]]:
    """Name and shape of each trained tensor, without any weights."""
    name, revision = split_revision(base)
    with load_refusals("base model", base):
        config = UNet2DConditionModel.load_config(name, subfolder="unet", revision=revision)
    with torch.device("meta"):
        model = RealCustomModel(
            UNet2DConditionModel.from_config(config),
            settings,
            feature_width(encoder),
            local_views=count_local_views(encoder, settings.image_encoder),
        )
    return {name: tuple(value.shape) for name, value in model.trained_parameters().items()}
