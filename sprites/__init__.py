"""A synthetic image-text world with ground truth, its small models and its judge."""

from __future__ import annotations

from pathlib import Path

from realcustom.errors import UsageError

ZOO = Path(__file__).parent / "zoo"


def zoo_path(name: str) -> str:
    """Folder (or file) of a shipped model.

    Args:
        name: `pipeline`, `clip`, `image_encoder`, `blip`, `grounding_dino`, `sam`, `heads`, `judge` or
            `adapter.safetensors`.
    Raises:
        UsageError: it was neither shipped nor trained.
    """
    path = ZOO / name
    if not path.exists():
        recipe = (
            "realcustom.pipeline.quickstart.zoo_adapter"
            if name == "adapter.safetensors"
            else f"realcustom.sprites.train {name}"
        )
        raise UsageError(f"the zoo has no '{name}' at {path}; train it with: python -m {recipe}")
    return str(path)
