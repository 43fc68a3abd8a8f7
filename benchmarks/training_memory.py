"""Memory of a GPU in training, counted on tensors without data: it needs no GPU and no memory.

python benchmarks/training_memory.py              # Stable Diffusion 1.5, 512 px, batch 16: see `saved_activation_bytes`
python benchmarks/training_memory.py RECIPE...    # by recipe, see `recipe_memory`; docs/costs.py has the numbers

Both print a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from training_flops import FEATURES, TEXT

from realcustom.model import RealCustomModel
from realcustom.pipeline.recipes import RECIPES
from realcustom.pipeline.rehearse.public import public_model
from realcustom.training.activations import Activations, count_activations


def saved_activation_bytes(checkpointing: bool) -> int:
    """What the forward of Stable Diffusion 1.5 with the adapter, in fp32, batch 16, keeps for its backward."""
    return activations("paper_sd15", 16, checkpointing, mixed=False).kept


def recipe_memory(recipe: str) -> dict[str, int]:
    """Parameters of the frozen UNet and of what is trained, and bytes of a forward's activations in bf16: those of each row, those
    beside them whatever the rows (weights that autocast rounded), and the same with gradient checkpointing.
    """
    model = make_model(recipe, scoring=RECIPES[recipe]().method.tokens.scoring)
    trained = sum(value.numel() for value in model.trained_parameters().values())
    counted = {"frozen": sum(value.numel() for value in model.parameters()) - trained, "trained": trained}
    for checkpointing in (False, True):
        one, two = (activations(recipe, rows, checkpointing, mixed=True).most for rows in (1, 2))
        name = "checkpointed_" if checkpointing else ""
        counted |= {f"{name}row": two - one, f"{name}beside": 2 * one - two}
    return counted


def make_model(recipe: str, scoring: bool) -> RealCustomModel:
    """A recipe's UNet and adapter without weights."""
    settings = RECIPES[recipe]()
    method = settings.method
    if not scoring:
        method = replace(method, tokens=replace(method.tokens, scoring=False))
    config = public_model(settings.base).parts["unet"].config
    with torch.device("meta"):
        return RealCustomModel(UNet2DConditionModel.from_config(dict(config)), method, FEATURES[recipe][1])


def activations(recipe: str, rows: int, checkpointing: bool, mixed: bool) -> Activations:
    """Of the forward of so many rows; `mixed`: in bf16 with frozen weights in bf16, else in fp32.

    The scoring module is left out: its part is small, and it chooses tokens by their values, which fake ones do not have.
    """
    settings = RECIPES[recipe]()
    side = settings.preprocess.encode.resolution // 8
    tokens, width = FEATURES[recipe]
    model = make_model(recipe, scoring=False)
    with FakeTensorMode(), _as_on_a_gpu() if mixed else contextlib.nullcontext():
        _fake_weights(model, torch.bfloat16 if mixed else torch.float32)
        if checkpointing:
            model.unet.enable_gradient_checkpointing()
        text = torch.zeros(rows, TEXT, model.unet.config.cross_attention_dim)
        noisy_latents, image = torch.zeros(rows, 4, side, side), torch.zeros(rows, tokens, width)
        added = {"text_embeds": torch.zeros(rows, 1280), "time_ids": torch.zeros(rows, 6)}
        timesteps, alphas = torch.zeros(rows, dtype=torch.int64), torch.ones(rows)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            return count_activations(model, lambda: model(noisy_latents, timesteps, text, image, alphas, 0.8, added))


def _fake_weights(model: RealCustomModel, frozen: torch.dtype) -> None:
    """Give a model of the device meta fake weights of the CPU, the only ones that autocast takes."""
    trained = set(model.trained_parameters().values())
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            dtype = torch.float32 if value in trained else frozen
            module.register_parameter(name, nn.Parameter(torch.empty(value.shape, dtype=dtype), value in trained))


@contextlib.contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """A context in which autocast computes norms in fp32, as it does on CUDA and not on a CPU."""
    before = functional.group_norm, functional.layer_norm

    def in_fp32(norm: Any) -> Any:
        def computed(*arguments: Any) -> torch.Tensor:
            floats = [value.float() if isinstance(value, torch.Tensor) else value for value in arguments]
            with torch.autocast("cpu", enabled=False):
                output: torch.Tensor = norm(*floats)
            return output

        return computed

    functional.group_norm, functional.layer_norm = map(in_fp32, before)
    try:
        yield
    finally:
        functional.group_norm, functional.layer_norm = before


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps({recipe: recipe_memory(recipe) for recipe in sys.argv[1:]}))
    else:
        print(json.dumps({"without": saved_activation_bytes(False), "with": saved_activation_bytes(True)}))
