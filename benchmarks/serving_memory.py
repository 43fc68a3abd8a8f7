"""What one engine holds at Stable Diffusion 1.5's size, and what a step takes by the number of requests that share it.

    python benchmarks/serving_memory.py         # no weights are needed; without a GPU it counts bytes alone, in seconds
    python benchmarks/serving_memory.py --dry   # the same, and writes nothing
    python benchmarks/serving_memory.py --tiny  # a short look on any device: a small UNet, no compiler, nothing is written

Bytes are counted from tensors, in half precision. Weights: those of the base, of CLIP ViT-L/14 (256 tokens of 1024 values) and of
an adapter with scoring. A running row is one image of a request between two steps: all tensors that its sampler holds (latents,
text of both branches, masks, and the subjects' keys and values of every layer) after a step without the UNet's arithmetic.
Steps are measured on a GPU, in bf16, not compiled and compiled as `serve.compile` does it: milliseconds of a step of so many
requests with a subject each, and the most bytes beside weights and rows; so is the decoding of an image. There every row must
hold what was counted.

Prints the tables of docs/serving.md, and writes benchmarks/results/serving_memory.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import record
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from sampler_sides import SD1
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from realcustom.compiling import compile_regions
from realcustom.inference.settings import ServeSettings
from realcustom.launch import Launch, Work, run_together
from realcustom.maps import text_cross_attentions
from realcustom.model import RealCustomModel
from realcustom.presets import paper_sd15
from realcustom.sampler import Rows, Sampler
from realcustom.start import Start
from realcustom.work import Masking

RESULTS = record.RESULTS / "serving_memory.json"
COMMAND = "python benchmarks/serving_memory.py"
LATENT, TEXT, TOKENS = 64, 77, 256
TEXT_WIDTH, IMAGE_WIDTH = 768, 1024
BATCHES = (1, 2, 4, 8, 16, 32)  # requests
STEPS = 5  # that are timed, after one that is not
MB = 1e6
TINY = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 4,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
TEXT_ENCODER = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
IMAGE_ENCODER = {
    "hidden_size": IMAGE_WIDTH,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}


def sampler(unet: UNet2DConditionModel, model: RealCustomModel, latent: int, subjects: int = 1) -> Sampler:
    """A request of one image, of random tensors on the UNet's device."""
    device, dtype = unet.device, unet.dtype
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(20, device=None if device.type == "meta" else device)
    where = "cpu" if device.type == "meta" else device  # what decides the work, not only its size
    words = torch.zeros(1, subjects, TEXT, device=where)
    words[:, :, 2] = 1

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    return Sampler(
        unet=unet,
        model=model,
        scheduler=scheduler,
        start=Start(latents=random(1, 4, latent, latent), timesteps=scheduler.timesteps, steps=20),
        rows=Rows(
            prompt_embeds=random(1, TEXT, TEXT_WIDTH),
            negative_prompt_embeds=random(1, TEXT, TEXT_WIDTH),
            words=words,
            image_embeds=random(1, subjects, TOKENS, IMAGE_WIDTH),
            present=torch.ones(1, subjects, dtype=torch.bool, device=where),
            influence_scope=torch.full((1, subjects), 0.25, dtype=torch.float64),
            influence_quantity=0.8,
        ),
        guidance=model.settings.guidance,
        mask=model.settings.mask,
    )


def adapted(kind: Mapping[str, Any], latent: int, device: str, dtype: torch.dtype) -> RealCustomModel:
    """A UNet of random weights with an adapter of the paper's settings."""
    with torch.device(device):
        unet = UNet2DConditionModel(sample_size=latent, **kind).to(dtype).requires_grad_(False)
        model = RealCustomModel(unet, paper_sd15(), IMAGE_WIDTH).requires_grad_(False)
    model.cast(dtype)
    return model


def held_by(value: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors that can be reached from a value, but those of modules."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (nn.Module, type, str)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    parts = value if isinstance(value, (list, tuple)) else getattr(value, "__dict__", {}).values()
    for part in value.values() if isinstance(value, Mapping) else parts:
        yield from held_by(part, seen)


def held_bytes(value: object) -> int:
    """Bytes of these tensors; what several of them share counts once."""
    storages = {StorageWeakRef(tensor.untyped_storage()): tensor.untyped_storage() for tensor in held_by(value)}
    return sum(storage.nbytes() for storage in storages.values())


def stepped(one: Sampler, shares: bool = False) -> Sampler:
    """After a step whose UNet calls give tensors of the right shape, without any arithmetic.

    Args:
        shares: the calls are shared with others: then the keys of the target words are the call's, else the request keeps them.
    """
    steps, found = one.launches(), None
    while True:
        try:
            work = steps.send(found)
        except StopIteration:
            return one
        found = _answer(one, work, shares)


def _answer(one: Sampler, work: Work, shares: bool) -> Any:
    device = one.latents.device
    if isinstance(work, Launch):
        for subject in work.subjects:
            for attn in text_cross_attentions(one.unet).values():
                subject.all_keys_values(attn)
        if work.recorder is not None and not shares:
            words = work.recorder.words
            layers = work.recorder.layers
            for attn in text_cross_attentions(one.unet).values() if layers is None else layers:
                width = attn.inner_dim // attn.heads
                words.keys(attn, torch.empty(1, attn.heads, TEXT, width, device=words.index.device))
        return torch.empty_like(work.sample)
    if isinstance(work, Masking):
        return torch.empty(*work.influence_scope.shape, *work.grid, device=device)
    count = int(work.influence_quantity * TOKENS)
    return torch.empty(1, count, dtype=torch.int64, device=device), torch.empty(1, count, device=device)


def row_bytes(model: RealCustomModel, latent: int, subjects: int, shares: bool = False) -> int:
    """What a row holds after a step."""
    return held_bytes(stepped(sampler(model.unet, model, latent, subjects), shares))


def parameter_bytes(parts: nn.Module | Mapping[str, Tensor]) -> int:
    """Bytes of weights."""
    values = parts.values() if isinstance(parts, Mapping) else parts.parameters()
    return sum(value.nbytes for value in values)


def counted() -> dict[str, float]:
    """MB by kind, from the shapes alone."""
    half = torch.float16
    model = adapted(SD1, LATENT, "meta", half)
    adapter = model.trained_parameters()
    with torch.device("meta"):
        text = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER, num_attention_heads=12)).to(half)
        vae, images = AutoencoderKL(**VAE).to(half), CLIPVisionModel(CLIPVisionConfig(**IMAGE_ENCODER)).to(half)
    inside = sum(value.nbytes for name, value in adapter.items() if "attn2" in name)  # of the UNet's parameters
    rows = [row_bytes(model, LATENT, subjects) for subjects in (0, 1, 2)]
    kinds = {
        "unet": parameter_bytes(model.unet) - inside,
        "vae": parameter_bytes(vae),
        "text_encoder": parameter_bytes(text),
        "image_encoder": parameter_bytes(images),
        "adapter": parameter_bytes(adapter),
        "row": rows[0],
        "row_subject": rows[2] - rows[1],
        "cached_subject": TOKENS * IMAGE_WIDTH * half.itemsize,
        "cached_prompt": TEXT * TEXT_WIDTH * half.itemsize,
    }
    return {name: size / MB for name, size in kinds.items()}


def counted_table(values: Mapping[str, float]) -> str:
    """The table of what is counted, as in docs/serving.md."""
    base = [values[name] for name in ("unet", "vae", "text_encoder")]
    lines = {
        "the base: UNet, VAE, text encoder": sum(base),
        "the image encoder, CLIP ViT-L/14": values["image_encoder"],
        "each adapter that is loaded": values["adapter"],
        "a running row: each image of a request that runs": values["row"],
        "each subject of that row": values["row_subject"],
        "a subject that is kept for its id (in the host's memory), and its tokens": values["cached_subject"],
        "a prompt that is kept": values["cached_prompt"],
    }
    return "\n".join(["| what | MB |", "|---|---|", *(f"| {name} | {size:,.2f} |" for name, size in lines.items())])


def measured(device: str, tiny: bool, compiled: bool) -> dict[str, float]:
    """Milliseconds and, on a GPU, peak MB of a step, by number of requests."""
    found: dict[str, float] = {}
    latent, dtype, kind = (8, torch.float32, TINY) if tiny else (LATENT, torch.bfloat16, SD1)
    model = adapted(kind, latent, device, dtype)
    unet, shapes = model.unet, adapted(kind, latent, "meta", dtype)
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
        expected = row_bytes(shapes, latent, 1, shares=batch > 1)
        if (held := held_bytes(requests)) != batch * expected:  # the masks of several are parts of one tensor
            raise RuntimeError(f"{batch} rows hold {held} bytes, and {expected} were counted of each")
        name = f"step_{batch}_requests" + "_compiled" * compiled
        found[f"{name}_ms"] = statistics.median(seconds[1:]) * 1e3
        print(f"{name}: {found[f'{name}_ms']:.1f} ms, the first time {seconds[0]:.1f} s", file=sys.stderr)
        if device == "cuda":
            found[f"{name}_peak"] = (torch.cuda.max_memory_allocated() - before) / MB
    return found


def decoded(device: str, tiny: bool) -> dict[str, float]:
    """Milliseconds and, on a GPU, peak MB of decoding an image."""
    latent, dtype = (8, torch.float32) if tiny else (LATENT, torch.bfloat16)
    with torch.device(device):
        vae = AutoencoderKL(**VAE).to(dtype).requires_grad_(False)
        latents = torch.randn(1, 4, latent, latent, dtype=dtype)
    seconds, before = [], 0
    for turn in range(1 + STEPS):
        if device == "cuda" and turn == 1:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        vae.decode(latents)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    found = {"decode_ms": statistics.median(seconds[1:]) * 1e3}
    if device == "cuda":
        found["decode_peak"] = (torch.cuda.max_memory_allocated() - before) / MB
    return found


def steps_table(values: Mapping[str, float]) -> str:
    """Steps by number of requests, not compiled and compiled, as in docs/serving.md."""
    lines = ["| requests | step ms | compiled | peak MB | compiled |", "|---|---|---|---|---|"]
    for batch in BATCHES:
        names = [f"step_{batch}_requests{how}{what}" for what in ("_ms", "_peak") for how in ("", "_compiled")]
        cells = [f"{values[name]:,.1f}" if name in values else "" for name in names]
        lines.append(f"| {batch} | {' | '.join(cells)} |")
    decoding = [f"{values[name]:,.1f}" if name in values else "" for name in ("decode_ms", "decode_peak")]
    return "\n".join([*lines, f"| an image decoded | {decoding[0]} | | {decoding[1]} | |"])


def main() -> None:
    """Count, measure where there is a GPU, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="steps of a small UNet; write nothing")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes: dict[str, float] = {}
    steps: dict[str, float] = {}
    if device == "cpu":
        torch.set_num_threads(1)  # more of them wait for each other where other programs run
    if not arguments.tiny:
        sizes = counted()
        print(counted_table(sizes), flush=True)
    if arguments.tiny or device == "cuda":
        for compiled in (False, True):
            steps |= measured(device, arguments.tiny, compiled)
        steps |= decoded(device, arguments.tiny)
        print(steps_table(steps))
    else:
        print("no GPU here: no step was measured", file=sys.stderr)
    if arguments.tiny or arguments.dry:
        return
    commit = record.commit_of(["realcustom", "benchmarks/*.py"])
    hardware = torch.cuda.get_device_name() if device == "cuda" else ""
    records = []
    for name, value in (sizes | steps).items():
        unit = "ms" if name.endswith("_ms") else "MB"
        own = hardware if name in steps else ""
        records.append(record.record(f"serve_memory_{name}", value, unit, command=COMMAND, commit=commit, hardware=own))
    record.write(RESULTS, records)


if __name__ == "__main__":
    main()
