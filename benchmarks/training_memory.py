"""What a training step holds for its backward pass, counted on tensors without data: it needs no GPU and no memory.

python benchmarks/training_memory.py    # prints one line of JSON: bytes without and with checkpointing
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional

from realcustom.model import RealCustomModel
from realcustom.settings import MethodSettings, TokenSettings

BATCH, SIDE, TEXT, TOKENS, WIDTH = 16, 64, 77, 257, 1024  # Stable Diffusion 1.5 at 512 px; CLIP ViT-L/14's features

SETTINGS = MethodSettings(tokens=TokenSettings(scoring=False))  # its part is small, and its topk needs data


def saved_activation_bytes(checkpointing: bool) -> int:
    """Bytes of the distinct tensors that the forward of Stable Diffusion 1.5 with the adapter keeps, without weights.

    With checkpointing these are the inputs of what is computed again, and what is outside of it.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=SIDE)
        model = RealCustomModel(unet, SETTINGS, WIDTH)
        noisy_latents = torch.zeros(BATCH, 4, SIDE, SIDE)
        text, image = torch.zeros(BATCH, TEXT, 768), torch.zeros(BATCH, TOKENS, WIDTH)
        timesteps, alphas = torch.zeros(BATCH, dtype=torch.int64), torch.ones(BATCH)
    return _count(model, (noisy_latents, timesteps, text, image, alphas, 0.8), checkpointing)


def _count(model: RealCustomModel, inputs: tuple[Any, ...], checkpointing: bool) -> int:
    weights = {value.untyped_storage()._cdata for value in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}  # by storage; held, so that none takes the place of another

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in weights:
            kept[storage] = tensor
        return tensor

    def counted(function: Any, *arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                keep(argument)
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            return function(*arguments)  # what it keeps itself would not be there

    if checkpointing:
        model.unet.enable_gradient_checkpointing(counted)
    with _fused_attention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(*inputs)
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    """A context in which attention keeps what it keeps on a GPU: its inputs, its output and a normaliser, never the weights.

    Without a device torch takes the kernel that keeps them all.
    """
    before = functional.scaled_dot_product_attention

    def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
        output: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]
        return output

    functional.scaled_dot_product_attention = fused  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


if __name__ == "__main__":
    print(json.dumps({"without": saved_activation_bytes(False), "with": saved_activation_bytes(True)}))
