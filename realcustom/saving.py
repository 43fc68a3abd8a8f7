"""A pipeline as a folder: the stock parts as diffusers saves them, and below `realcustom/` the adapter and its encoder.

diffusers loads the folder as a stock pipeline; it reads nothing below `realcustom/`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

from realcustom.attention import PROJECTIONS
from realcustom.base import Base
from realcustom.checkpoint import Adapter, save_adapter
from realcustom.encoders import ImageEncoder
from realcustom.errors import UsageError
from realcustom.maps import text_cross_attentions
from realcustom.model import RealCustomModel
from realcustom.saved import ADAPTER, OWN_FOLDER
from realcustom.settings import MethodSettings


def adapter_of(
    model: RealCustomModel,
    settings: MethodSettings,
    base: Base,
    encoder: ImageEncoder,
    checkpoint: Adapter | None,
) -> Adapter:
    """The model's adapter as it is now; `checkpoint` is what it was loaded from, None = trained with this base and encoder."""
    return Adapter(
        tensors=model.adapter_state_dict(),
        settings=settings,
        base=base.identity if checkpoint is None else checkpoint.base,
        image_encoder=encoder.identity if checkpoint is None else checkpoint.image_encoder,
        provenance={} if checkpoint is None else checkpoint.provenance,
    )


def save_folder(
    folder: str | Path,
    base: Base,
    adapter: Adapter,
    encoder: ImageEncoder,
    scheduler: Any,
    *,
    safe_serialization: bool,
    variant: str | None,
) -> None:
    """Write the folder; files of the same names are replaced.

    Args:
        scheduler: of diffusers, to save as the base's own.
        safe_serialization, variant: of the base's weights, as in diffusers.
    Raises:
        UsageError: there is a file at `folder`, or a LoRA is loaded, which a folder does not hold.
    """
    if Path(folder).is_file():
        raise UsageError(f"{folder} is a file; name a folder")
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if getattr(getattr(base.pipeline, part, None), "peft_config", None):
            raise UsageError(
                f"a LoRA is loaded into the {part}, and a folder does not hold one: pipe.fuse_lora() and then "
                "pipe.unload_lora_weights() to keep its effect, or pipe.unload_lora_weights() alone"
            )
    with _scheduler_of(base, scheduler), _without_projections(base.unet):
        base.pipeline.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
    own = Path(folder) / OWN_FOLDER
    encoder.save(own)
    save_adapter(own / ADAPTER, adapter)


@contextlib.contextmanager
def _without_projections(unet: UNet2DConditionModel) -> Iterator[None]:
    """The UNet without the adapter's layers, which a stock UNet does not have."""
    taken: list[tuple[nn.Module, str, nn.Module]] = []
    for attn in text_cross_attentions(unet).values():
        for name in PROJECTIONS:
            taken.append((attn, name, getattr(attn, name)))
            delattr(attn, name)
    try:
        yield
    finally:
        for attn, name, layer in taken:
            attn.add_module(name, layer)


@contextlib.contextmanager
def _scheduler_of(base: Base, scheduler: Any) -> Iterator[None]:
    own = base.pipeline.scheduler
    base.pipeline.scheduler = scheduler
    try:
        yield
    finally:
        base.pipeline.scheduler = own
