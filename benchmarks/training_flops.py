"""FLOPs of a training step of one picture, counted on tensors without data: it needs no GPU and no memory.

python benchmarks/training_flops.py    # a line of JSON: TFLOP of the forward and of the backward pass, by recipe

The base's UNet and the adapter as the recipe has them, with text, image features and latents from caches; two FLOPs for a
multiply-add. Gradient checkpointing, which both recipes use, computes the forward a second time. docs/costs.py has the numbers.
"""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from realcustom.model import RealCustomModel
from realcustom.pipeline.recipes import RECIPES
from realcustom.pipeline.rehearse.public import public_model
from realcustom.settings import TokenSettings

TEXT = 77
# tokens and width of the image encoder's features: CLIP ViT-L/14; SigLIP and DINOv2, one global and four local views
FEATURES = {"paper_sd15": (256, 1024), "released_sdxl": (5 * 729, 1152 + 1024)}


def step_tflops(recipe: str) -> dict[str, float]:
    """TFLOP of one picture."""
    settings = RECIPES[recipe]()
    config = public_model(settings.base).parts["unet"].config
    tokens, width = FEATURES[recipe]
    side = settings.preprocess.encode.resolution // 8
    method = settings.method
    if method.tokens.scoring:  # its part is small, and its topk needs data
        method = replace(method, tokens=TokenSettings(scoring=False))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config))
        model = RealCustomModel(unet, method, width)
        dim = config["cross_attention_dim"]
        noisy_latents, text = torch.zeros(1, 4, side, side), torch.zeros(1, TEXT, dim)
        image, timesteps, alphas = torch.zeros(1, tokens, width), torch.zeros(1, dtype=torch.int64), torch.ones(1)
        added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
    with FlopCounterMode(display=False) as counter:
        output = model(noisy_latents, timesteps, text, image, alphas, 0.8, added)
        forward = counter.get_total_flops()
        output.sum().backward()
    return {"forward": forward / 1e12, "backward": (counter.get_total_flops() - forward) / 1e12}


if __name__ == "__main__":
    counted = {recipe: step_tflops(recipe) for recipe in FEATURES}
    print(
        json.dumps(
            {recipe: {name: round(value, 3) for name, value in parts.items()} for recipe, parts in counted.items()}
        )
    )
