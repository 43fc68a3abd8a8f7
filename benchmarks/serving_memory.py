"""Bytes that one engine holds at Stable Diffusion 1.5's size, counted from tensors: a running row, a cached subject, a step.

    python benchmarks/serving_memory.py              # seconds; no weights are needed
    python benchmarks/serving_memory.py --device cuda    # and the seconds and peak bytes of a step by number of rows

A running row is a request's image between two steps: latents, text of both branches, and the subject's keys and values of
every layer, which are made once. Numbers of image tokens are those of CLIP ViT-L/14 (256). Weights are not counted.

Writes benchmarks/results/serving_memory.json.
"""

from __future__ import annotations

import argparse
import sys
import time

import record
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from sampler_sides import SD1

from realcustom.launch import run_together
from realcustom.maps import text_cross_attentions
from realcustom.model import RealCustomModel
from realcustom.sampler import Rows, Sampler
from realcustom.settings import MethodSettings
from realcustom.start import Start

RESULTS = record.RESULTS / "serving_memory.json"
LATENT, TEXT, TOKENS, WIDTH = 64, 77, 256, 768
BATCHES = (1, 2, 4, 8)


def sampler(unet: UNet2DConditionModel, model: RealCustomModel, rows: int) -> Sampler:
    """A request of so many images with one subject, of random tensors."""
    device, dtype = unet.device, unet.dtype
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(20, device=device)
    words = torch.zeros(rows, 1, TEXT, device=device)
    words[:, :, 2] = 1

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    return Sampler(
        unet=unet,
        model=model,
        scheduler=scheduler,
        start=Start(latents=random(rows, 4, LATENT, LATENT), timesteps=scheduler.timesteps, steps=20),
        rows=Rows(
            prompt_embeds=random(rows, TEXT, WIDTH),
            negative_prompt_embeds=random(rows, TEXT, WIDTH),
            words=words,
            image_embeds=random(rows, 1, TOKENS, WIDTH),
            present=torch.ones(rows, 1, dtype=torch.bool, device=device),
            influence_scope=torch.full((rows, 1), 0.25, dtype=torch.float64),
            influence_quantity=0.8,
        ),
        guidance=model.settings.guidance,
        mask=model.settings.mask,
    )


def counted() -> dict[str, float]:
    """MB by kind, in half precision, from the shapes alone."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=LATENT, **SD1)
    keys = sum(2 * TOKENS * attn.to_k.weight.shape[0] for attn in text_cross_attentions(unet).values())
    latents, text, features = 4 * LATENT * LATENT, 2 * TEXT * WIDTH, TOKENS * WIDTH
    kinds = {"row_latents": latents, "row_text": text, "row_subject_keys_and_values": keys, "row_subject": features}
    row = {name: values * 2 / 1e6 for name, values in kinds.items()}
    return {**row, "row": sum(row.values()), "cached_subject": features * 2 / 1e6}


def measured(device: str) -> dict[str, float]:
    """Milliseconds and peak MB of a step, by number of rows."""
    found: dict[str, float] = {}
    unet = UNet2DConditionModel(sample_size=LATENT, **SD1).to(device, torch.bfloat16)
    model = RealCustomModel(unet, MethodSettings(), WIDTH).to(device).requires_grad_(False)
    model.cast(torch.bfloat16)
    for rows in BATCHES:
        requests = [sampler(unet, model, 1) for _ in range(rows)]
        for turn in range(6):
            torch.cuda.synchronize()
            if turn == 1:
                torch.cuda.reset_peak_memory_stats()
                before, start = torch.cuda.memory_allocated(), time.perf_counter()
            run_together(unet, [one.launches() for one in requests])
        torch.cuda.synchronize()
        found[f"step_{rows}_rows_ms"] = (time.perf_counter() - start) / 5 * 1e3
        found[f"step_{rows}_rows_peak"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    return found


def main() -> None:
    """Count, measure where there is a GPU, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device = parser.parse_args().device
    values = counted() | (measured(device) if device == "cuda" else {})
    commit = record.commit_of(["realcustom", "benchmarks/*.py"])
    records = []
    for name, value in values.items():
        unit = "ms" if name.endswith("_ms") else "MB"
        print(f"serve_memory_{name}: {value:.3f} {unit}", file=sys.stderr)
        command = "python benchmarks/serving_memory.py" + (" --device cuda" if device == "cuda" else "")
        records.append(record.record(f"serve_memory_{name}", value, unit, command=command, commit=commit))
    record.write(RESULTS, records)


if __name__ == "__main__":
    main()
