"""The model that a run trains: the base, what is added to it, and the weights that it begins with."""

from __future__ import annotations

import numpy as np
import torch

from realcustom.base import Base
from realcustom.checkpoint import load_adapter
from realcustom.compiling import compile_regions
from realcustom.errors import UsageError
from realcustom.model import PROJECTOR, RealCustomModel
from realcustom.settings import Fusion, Projector
from realcustom.store import Store
from realcustom.training.encoders import FrozenEncoders
from realcustom.training.features import BadRecord, FeatureStore, Kind
from realcustom.training.job import TrainingJob
from realcustom.training.settings import BadRecords, Precision, TrainSettings

# Parameters that a fusion or a projector leaves out of the forward: they get no gradient.
IDLE: dict[Fusion | Projector, tuple[str, ...]] = {
    Fusion.TEXT: ("adaptive_scoring.latent_",),
    Fusion.VISUAL: ("adaptive_scoring.text_",),
    Projector.SHALLOW_V1_COMPAT: (f"{PROJECTOR}.min_attention.", f"{PROJECTOR}.projector."),
}


def first_good(features: FeatureStore, numbers: np.ndarray, settings: TrainSettings) -> int:
    """The first of some records whose features can be had. Raises BadRecord where bad ones may not be dropped, or all are."""
    augmented = any(point.ref_aug for point in settings.curriculum)
    if augmented and features.picture(int(numbers[0])).image is None:
        raise UsageError(
            "train.curriculum: ref_aug needs the records' pictures, and there are none; run encode with keep_image=true"
        )
    for number in map(int, numbers[:-1]):
        try:
            for kind in features.kinds:
                features.get(kind, number)
            return number
        except BadRecord:
            if settings.bad_records is BadRecords.STOP:
                raise
            features.shapes.clear()
    for kind in features.kinds:
        features.get(kind, int(numbers[-1]))
    return int(numbers[-1])


def make_model(
    job: TrainingJob, base: Base, encoders: FrozenEncoders, features: FeatureStore, number: int, store: Store
) -> RealCustomModel:
    """The model on the CPU, as it is before the first step; its parameters that take gradients are marked.

    Args:
        number: of a record whose features show the image encoder's width.
    Raises UsageError where the initial adapter does not fit the base.
    """
    embed_dim = features.get(Kind.IMAGE, number).shape[-1]
    generator = torch.Generator().manual_seed(job.settings.seed)
    model = RealCustomModel(base.unet, job.method, embed_dim, generator, encoders.local_views)
    if job.settings.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    if job.settings.compile:
        compile_regions(model.unet, channels_last=True, dynamic=False)
    tokens = job.method.tokens
    idle = IDLE.get(tokens.fusion, ()) + IDLE.get(tokens.projector, ())
    for name, parameter in model.trained_parameters().items():
        parameter.requires_grad_(not name.startswith(idle))
    if job.initial_adapter is not None:
        adapter = load_adapter(job.initial_adapter, store)
        try:
            model.load_adapter_state_dict(adapter.tensors)
        except UsageError as error:
            raise UsageError(
                f"{job.initial_adapter}: {error}; give the base {adapter.base} and the image encoder {adapter.image_encoder} that "
                "it was trained with, or begin without --initial-adapter"
            ) from error
    if job.settings.base_dtype is Precision.BF16:
        trained = set(model.trained_parameters().values())
        for parameter in set(model.parameters()) - trained:
            parameter.data = parameter.data.bfloat16()
    return model
