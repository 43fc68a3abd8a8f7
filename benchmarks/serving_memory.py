"""What one engine holds at Stable Diffusion 1.5's size, and what a step takes by the number of requests that share it.

    python benchmarks/serving_memory.py         # no weights are needed; without a GPU it counts bytes alone, in seconds
    python benchmarks/serving_memory.py --tiny  # a short look on any device: a small UNet, no compiler, nothing is written

Bytes are counted from tensors: a running row, a cached subject. Steps are measured on a GPU, in bf16, not compiled and compiled
as `serve.compile` does it: milliseconds of a step of so many requests with a subject each, and the most bytes beside weights.
A running row is a request's image between two steps: latents, text of both branches, and the subject's keys and values of
every layer, which are made once. Numbers of image tokens are those of CLIP ViT-L/14 (256). Weights are not counted.

Writes benchmarks/results/serving_memory.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import record
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from sampler_sides import SD1

from realcustom.compiling import compile_regions
from realcustom.inference.settings import ServeSettings
from realcustom.launch import run_together
from realcustom.maps import text_cross_attentions
from realcustom.model import RealCustomModel
from realcustom.sampler import Rows, Sampler
from realcustom.settings import MethodSettings
from realcustom.start import Start

RESULTS = record.RESULTS / "serving_memory.json"
LATENT, TEXT, TOKENS, WIDTH = 64, 77, 256, 768
BATCHES = (1, 2, 4, 8, 16, 32)  # requests
STEPS = 5  # that are timed, after one that is not
TINY = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
}


def sampler(unet: UNet2DConditionModel, model: RealCustomModel, latent: int) -> Sampler:
    """A request of one image with one subject, of random tensors."""
    device, dtype, rows = unet.device, unet.dtype, 1
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
        start=Start(latents=random(rows, 4, latent, latent), timesteps=scheduler.timesteps, steps=20),
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


def measured(device: str, tiny: bool, compiled: bool) -> dict[str, float]:
    """Milliseconds and, on a GPU, peak MB of a step, by number of requests."""
    found: dict[str, float] = {}
    latent, dtype, kind = (8, torch.float32, TINY) if tiny else (LATENT, torch.bfloat16, SD1)
    unet = UNet2DConditionModel(sample_size=latent, **kind).to(device, dtype).requires_grad_(False)
    model = RealCustomModel(unet, MethodSettings(), WIDTH).to(device).requires_grad_(False)
    model.cast(dtype)
    if compiled:
        compile_regions(unet, channels_last=True, dynamic=False, backend="eager" if tiny else "inductor")
    for batch in BATCHES:
        requests = [sampler(unet, model, latent) for _ in range(batch)]
        seconds, before = [], 0
        for turn in range(1 + STEPS):
            if device == "cuda" and turn == 1:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            for result in run_together(unet, [one.launches() for one in requests], sizes=ServeSettings.batch_sizes):
                if isinstance(result, Exception):
                    raise result
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        name = f"step_{batch}_requests" + "_compiled" * compiled
        found[f"{name}_ms"] = statistics.median(seconds[1:]) * 1e3
        print(f"{name}: {found[f'{name}_ms']:.1f} ms, the first time {seconds[0]:.1f} s", file=sys.stderr)
        if device == "cuda":
            found[f"{name}_peak"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    return found


def table(values: dict[str, float]) -> str:
    """Steps by number of requests, not compiled and compiled."""
    lines = ["requests    step ms    compiled    peak MB    compiled"]
    for batch in BATCHES:
        names = [f"step_{batch}_requests{how}{what}" for what in ("_ms", "_peak") for how in ("", "_compiled")]
        cells = [f"{values[name]:.1f}" if name in values else "-" for name in names]
        lines.append("{:>8}{:>11}{:>12}{:>11}{:>12}".format(batch, *cells))
    return "\n".join(lines)


def main() -> None:
    """Count, measure where there is a GPU, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="steps of a small UNet; write nothing")
    tiny = parser.parse_args().tiny
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps: dict[str, float] = {}
    if device == "cpu":
        torch.set_num_threads(1)  # more of them wait for each other where other programs run
    if tiny or device == "cuda":
        for compiled in (False, True):
            steps |= measured(device, tiny, compiled)
        print(table(steps))
    if tiny:
        return
    commit = record.commit_of(["realcustom", "benchmarks/*.py"])
    hardware = torch.cuda.get_device_name() if device == "cuda" else ""
    records = []
    for name, value in (counted() | steps).items():
        unit = "ms" if name.endswith("_ms") else "MB"
        print(f"serve_memory_{name}: {value:.3f} {unit}", file=sys.stderr)
        command = "python benchmarks/serving_memory.py"
        own = hardware if name in steps else ""
        records.append(record.record(f"serve_memory_{name}", value, unit, command=command, commit=commit, hardware=own))
    record.write(RESULTS, records)


if __name__ == "__main__":
    main()
