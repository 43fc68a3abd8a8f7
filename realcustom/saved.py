"""What lies below `realcustom/` in the folder of a saved pipeline. Imports no model: a server looks before it loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from realcustom.checkpoint import read_header
from realcustom.model_cache import local
from realcustom.settings import EncoderKind

OWN_FOLDER, ADAPTER = "realcustom", "adapter.safetensors"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Where the adapter and the image encoder of a saved pipeline are."""

    adapter: str
    image_encoder: str


def saved_in(base: str) -> Saved | None:
    """The adapter and the image encoder that `save_folder` put into this folder, if it did."""
    own = Path(local(base)) / OWN_FOLDER
    if not (own / ADAPTER).is_file():
        return None
    kind = read_header(own / ADAPTER).settings.image_encoder.kind
    encoders = ("clip",) if kind is EncoderKind.CLIP else ("siglip", "dino")
    return Saved(adapter=str(own / ADAPTER), image_encoder=",".join(str(own / name) for name in encoders))
