"""The small heads that `score` reads: aesthetic, nsfw and watermark, linear on CLIP's image embedding of length one.

Their targets are drawn: quality falls with blur, noise and wash-out (10: as drawn, 1: worst), a lattice stands for a
watermark, a crossed-out sign for unsafe content. Fitted in seconds on the frozen CLIP of the zoo.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPModel

from realcustom.errors import UsageError
from realcustom.sprites import clip
from realcustom.sprites.world import Split, draw, scene

FIRST_SCENE = 8 * 10**8  # first scene; other models use other scenes
PICTURES = 6000
NAMES = ("aesthetic", "nsfw", "watermark")  # the columns of the heads' targets
SHRINKAGE = 1e-3  # of the weights, per picture


def train(output: Path, work: Path, steps: int | None = None) -> None:
    """Fit the heads on the CLIP beside `output` and save `heads.safetensors` there.

    Args:
        work: unused: a fit of seconds needs no resume.
        steps: of the optimiser (L-BFGS; default 100).
    Raises:
        UsageError: there is no trained CLIP beside `output`.
    """
    folder = output.parent / "clip"
    if not folder.is_dir():
        raise UsageError(f"the heads read CLIP's embedding, but there is no {folder}: train clip first")
    embeds, wanted = embed_pictures(folder, FIRST_SCENE, PICTURES)
    tensors = {}
    for column, name in enumerate(NAMES):
        weight, bias = _fit(embeds, wanted[:, column], is_probability=name != "aesthetic", steps=steps or 100)
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight[None].contiguous(), bias
    output.mkdir(parents=True, exist_ok=True)
    temporary = output / "heads.safetensors.tmp"
    save_file(tensors, temporary)
    os.replace(temporary, output / "heads.safetensors")


@torch.inference_mode()
def embed_pictures(folder: Path, first: int, count: int, split: Split = Split.ZOO) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (N, D) of length one of pictures with and without defects, and the heads' targets (N, 3)."""
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    embeds, wanted = [], []
    for start in range(first, first + count, 250):
        numbers = range(start, min(start + 250, first + count))
        pairs = [clip.picture_with_defect(number, draw(scene(split, number)).image, 0.7) for number in numbers]
        pixel_values = processor([Image.fromarray(image) for image, _ in pairs], return_tensors="pt").pixel_values
        embeds.append(nn.functional.normalize(model.get_image_features(pixel_values=pixel_values).pooler_output, dim=1))
        wanted += [[defects.aesthetic, defects.nsfw, defects.watermark] for _, defects in pairs]
        print(f"heads: {numbers.stop - first} of {count} pictures embedded", file=sys.stderr)
    return torch.cat(embeds), torch.tensor(np.array(wanted), dtype=torch.float32)


def _fit(
    embeds: torch.Tensor, wanted: torch.Tensor, is_probability: bool, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (D,) and bias (1,) of a linear (least squares) or logistic regression with a little shrinkage."""
    embeds, wanted = embeds.clone(), wanted.clone()  # out of inference mode
    weight, bias = torch.zeros(embeds.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        read = embeds @ weight + bias
        error = (
            nn.functional.binary_cross_entropy_with_logits(read, wanted)
            if is_probability
            else nn.functional.mse_loss(read, wanted)
        )
        value = error + SHRINKAGE / 10 * weight.square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()
