"""LAION's aesthetic heads on CLIP's image embedding as `heads.safetensors`.

    python -m realcustom.preprocessing.score.convert_heads sa_0_4_vit_l_14_linear.pth --output models/laion_aesthetic

Both kinds are linear, on an embedding of length 1 of OpenAI's ViT-L/14: the one of LAION-AI/aesthetic-predictor is one layer,
the one of christophschuhmann/improved-aesthetic-predictor (sac+logos+ava1-l14-linearMSE.pth) five layers without activations
between them, whose product is one layer.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from safetensors.torch import load_file

from realcustom.errors import UsageError
from realcustom.preprocessing.settings import JUDGED

_NAME = re.compile(r"((?P<module>[\w.]*?)(?P<number>\d*)\.)?(?P<kind>weight|bias)")


def convert_heads(source: str | Path, folder: str | Path, name: str = "aesthetic") -> Path:
    """Write `folder`/heads.safetensors, into which a head of another name is added; returns its path.

    Args:
        source: a `.pth` (only tensors are read of it, no code is run) or `.safetensors` file of linear layers.
        name: of the score: aesthetic, nsfw or watermark.
    Raises:
        UsageError: it is not a file of linear layers that end in one value.
    """
    if name not in JUDGED:
        raise UsageError(f"a head is named {', '.join(JUDGED)}, not '{name}'")
    weight, bias = compose(_read(Path(source)), str(source))
    target = Path(folder) / "heads.safetensors"
    others = {key: value.numpy() for key, value in load_file(target).items()} if target.is_file() else {}
    target.parent.mkdir(parents=True, exist_ok=True)
    head = {f"{name}.weight": weight.astype(np.float32), f"{name}.bias": bias.astype(np.float32)}
    save_file({**others, **head}, target)
    return target


def compose(tensors: Mapping[str, torch.Tensor], source: str) -> tuple[np.ndarray, np.ndarray]:
    """The product of linear layers in their order: weight (1, D) and bias (1,), computed in float64."""
    layers: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for key, value in tensors.items():
        found = _NAME.fullmatch(key)
        if found is None:
            raise UsageError(f"{source}: '{key}' is no weight or bias of a linear layer")
        place = (found["module"] or "", int(found["number"] or 0))
        layers.setdefault(place, {})[found["kind"]] = value.double().numpy()
    if len({module for module, _ in layers}) != 1 or any(set(layer) != {"weight", "bias"} for layer in layers.values()):
        raise UsageError(f"{source}: expected linear layers with weight and bias, found {', '.join(tensors)}")
    ordered = [layers[place] for place in sorted(layers)]
    weight, bias = np.eye(ordered[0]["weight"].shape[-1]), np.zeros(ordered[0]["weight"].shape[-1])
    for layer in ordered:
        if layer["weight"].ndim != 2 or layer["weight"].shape[1] != len(bias):
            raise UsageError(f"{source}: a layer of shape {layer['weight'].shape} follows one of {len(bias)} values")
        weight, bias = layer["weight"] @ weight, layer["weight"] @ bias + layer["bias"]
    if len(bias) != 1:
        raise UsageError(f"{source}: the last layer has {len(bias)} values, a head has one")
    return weight, bias


def _read(source: Path) -> Mapping[str, torch.Tensor]:
    if not source.is_file():
        raise UsageError(f"no file at {source}")
    try:
        found = load_file(source) if source.suffix == ".safetensors" else torch.load(source, "cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        raise UsageError(f"{source} is not a file of tensors: {str(error).splitlines()[0]}") from error
    if not isinstance(found, Mapping) or not found or not all(isinstance(one, torch.Tensor) for one in found.values()):
        raise UsageError(f"{source} is not a file of named tensors")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Convert one file; a mistake is one line."""
    parser = argparse.ArgumentParser(
        prog="python -m realcustom.preprocessing.score.convert_heads",
        description="LAION's aesthetic head as heads.safetensors.",
    )
    parser.add_argument("source", help=".pth or .safetensors file of the head")
    parser.add_argument("--output", required=True, help="folder of heads.safetensors, for score.heads")
    parser.add_argument("--name", default="aesthetic", choices=JUDGED, help="of the score")
    options = parser.parse_args(arguments)
    try:
        print(convert_heads(options.source, options.output, options.name))
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
