"""Seconds and memory per image: RealCustom's sampler against three others on the same weights.

    python benchmarks/sampler.py                    # this machine's processor, about 20 minutes
    python benchmarks/sampler.py --device cuda      # a GPU: bf16, eager and compiled, sizes of SD 1.5 and SDXL
    python benchmarks/sampler.py --quick            # a smoke run at tiny size; writes nothing

Opponents: the order of the released code (benchmarks/release_order.py), diffusers' IP-Adapter pipeline with a given mask,
and stock Stable Diffusion with classifier-free guidance. All are the public calls at random weights, up to the latents;
diffusers' take their text embeddings ready-made, ours encodes its two prompts with a small text encoder inside the time.
The subject's picture is encoded beforehand. Before anything is timed, what is computed is held equal: the release order
on our masks, the IP-Adapter with a mask of ones.

Two sides alternate, A B B A, and the median of the paired ratios counts; its spread is the 5th to the 95th percentile.
Memory is what the allocator holds at most during a call above what it held before (the weights): on a CPU it is added
up from every allocation and release that torch's profiler reports, which does not depend on the machine's load, on
fragments, or on what earlier calls left to be used again, as the process's resident size does.

Writes benchmarks/results/sampler.json.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import record
import torch
import transformers
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from PIL import Image
from release_order import ReleaseOrder
from release_order import install as install_release_order
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from realcustom import RealCustomPipeline, Subject
from realcustom.attention import text_cross_attentions
from realcustom.checkpoint import Adapter, save_adapter
from realcustom.identity import model_identity
from realcustom.model import RealCustomModel
from realcustom.settings import (
    AttentionSettings,
    GuidanceMode,
    GuidanceSettings,
    KVInit,
    MaskSettings,
    MethodSettings,
    TokenSettings,
)
from sprites.text import make_clip_tokenizer

RESULTS = record.RESULTS / "sampler.json"
PROMPT, WORD = "a toy on the grass", "toy"
TEXT_TOKENS = 77
GUIDANCE_SCALE, SCOPE = 3.5, 0.25
SD1 = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is drawn, and by how large a model."""

    name: str  # what its metrics begin with
    unet: dict[str, Any]
    latent: int  # cells a side
    batch: int = 1
    image_tokens: int = 16  # a square number
    image_width: int = 256
    steps: int = 20
    pairs: int = 15

    @property
    def is_xl(self) -> bool:
        return self.unet.get("addition_embed_type") == "text_time"


SMALL = {"block_out_channels": (64, 128, 256, 256), "cross_attention_dim": 256, "attention_head_dim": 8}
SETTING_S = Size(name="sampler", unet=SMALL, latent=32)
WIDE = Size(name="sampler_64_batch4", unet=SMALL, latent=64, batch=4, steps=6, pairs=2)
TINY = Size(
    name="sampler_quick",
    unet={"block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 32, "attention_head_dim": 4}
    | {"layers_per_block": 1, "norm_num_groups": 8},
    latent=16,
    image_width=32,
    steps=4,
    pairs=1,
)
GPU_SIZES = (
    Size(name="sampler_sd15", unet=SD1, latent=64, image_tokens=256, image_width=1024),
    Size(name="sampler_sd15_batch4", unet=SD1, latent=64, batch=4, image_tokens=256, image_width=1024),
    Size(name="sampler_sdxl", unet=SDXL, latent=128, image_tokens=256, image_width=2048),
)


# --- the models -----------------------------------------------------------------------------------------------------


def stock_pipeline(size: Size) -> DiffusionPipeline:
    """A whole diffusers pipeline with random weights; only its UNet is of the size in question."""
    torch.manual_seed(0)
    tokenizer = make_clip_tokenizer(tuple(PROMPT.split()), TEXT_TOKENS)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(0,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    unet = UNet2DConditionModel(sample_size=size.latent, **size.unet)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    parts: dict[str, Any] = {"vae": vae, "unet": unet, "scheduler": scheduler, "tokenizer": tokenizer}
    if size.is_xl:
        parts["tokenizer_2"] = tokenizer
        parts["text_encoder"] = CLIPTextModel(text_config(len(tokenizer), 768))
        parts["text_encoder_2"] = CLIPTextModelWithProjection(text_config(len(tokenizer), 1280))
        return StableDiffusionXLPipeline(**parts, add_watermarker=False)
    parts["text_encoder"] = CLIPTextModel(text_config(len(tokenizer), size.unet["cross_attention_dim"]))
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def text_config(vocabulary: int, width: int) -> CLIPTextConfig:
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=width // 32,
        max_position_embeddings=TEXT_TOKENS,
        **ends,
    )


def image_encoder(size: Size, folder: Path) -> None:
    """A CLIP vision model with as many patches as there are to be image tokens."""
    side = 8 * round(size.image_tokens**0.5)
    config = CLIPVisionConfig(
        hidden_size=size.image_width,
        projection_dim=size.image_width,
        intermediate_size=size.image_width,
        num_hidden_layers=2,
        num_attention_heads=size.image_width // 32,
        image_size=side,
        patch_size=8,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder
    )


def method(mask_reuse_after: int) -> MethodSettings:
    """Setting S's: guidance `direct`, scoring off, so that all sides attend to the same tokens."""
    return MethodSettings(
        tokens=TokenSettings(scoring=False),
        attn=AttentionSettings(kv_init=KVInit.KAIMING),
        mask=MaskSettings(influence_scope=SCOPE, mask_reuse_after=mask_reuse_after),
        guidance=GuidanceSettings(mode=GuidanceMode.DIRECT, subject_guidance_scale=GUIDANCE_SCALE),
    )


@dataclass(kw_only=True)
class Sides:
    """All that take part, on one set of weights; each method is one call from noise to latents."""

    size: Size
    ours: RealCustomPipeline
    plain: DiffusionPipeline
    ip_adapter: DiffusionPipeline
    release: ReleaseOrder
    latents: Tensor  # (B, c, h, w), the noise that all begin with
    embeds: dict[str, Tensor]  # the text as diffusers takes it, one row
    tokens: Tensor  # (1, S, Di)
    subject: Subject
    given_mask: Tensor = field(default_factory=lambda: torch.zeros(0))  # (1, 1, H*, W*), for the IP-Adapter

    @classmethod
    def make(cls, size: Size, folder: Path, device: str, dtype: torch.dtype) -> Sides:
        """Write the folders that a user would have, and load every side from them."""
        stock, settings = stock_pipeline(size).to(dtype=dtype), method(size.steps)
        stock.save_pretrained(folder / "base")
        image_encoder(size, folder / "encoder")
        model = RealCustomModel(stock.unet, settings, size.image_width, torch.Generator().manual_seed(1))
        adapter = Adapter(
            tensors=model.adapter_state_dict(),
            settings=settings,
            base=model_identity(str(folder / "base")),
            image_encoder=model_identity(str(folder / "encoder")),
        )
        save_adapter(folder / "adapter.safetensors", adapter)
        del stock, model
        ours = RealCustomPipeline.from_pretrained(
            str(folder / "base"), folder / "adapter.safetensors", str(folder / "encoder"), device, dtype
        )
        plain, ip_adapter, third = (loaded(size, folder / "base", device, dtype) for _ in range(3))
        subject = Subject(
            image=Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), word=WORD
        )
        assert ours.image_encoder is not None
        tokens = ours.image_encoder.encode(ours.image_encoder.prepare(subject.image)[None]).to(device, dtype)
        vision = {
            path: (attn.to_k_vision.weight, attn.to_v_vision.weight)
            for path, attn in text_cross_attentions(ours.base.unet).items()
        }
        install_ip_adapter(ip_adapter.unet, vision, size.image_tokens)
        install_release_order(third.unet, vision)
        embeds = text_embeds(plain, size, device)
        noise = torch.Generator().manual_seed(2)
        shape = (size.batch, 4, size.latent, size.latent)
        position = 1 + PROMPT.split().index(WORD)
        return cls(
            size=size,
            ours=ours,
            plain=plain,
            ip_adapter=ip_adapter,
            release=ReleaseOrder(
                unet=third.unet,
                scheduler=third.scheduler,
                text=with_conditions(embeds, "", size),
                negative=with_conditions(embeds, "negative_", size),
                word=(torch.arange(TEXT_TOKENS, device=device) == position).float(),
                tokens=tokens.expand(size.batch, -1, -1),
                scope=SCOPE,
                guidance_scale=GUIDANCE_SCALE,
            ),
            latents=torch.randn(shape, generator=noise).to(device, dtype),
            embeds=embeds,
            tokens=tokens,
            subject=subject,
        )

    @property
    def unets(self) -> dict[str, UNet2DConditionModel]:
        return {
            "ours": self.ours.base.unet,
            "plain": self.plain.unet,
            "ip_adapter": self.ip_adapter.unet,
            "release": self.release.unet,
        }

    def run_ours(self, reuse_after: int, use_mask: bool = True, return_masks: bool = False) -> Any:
        """`RealCustomPipeline`, with fresh masks in so many steps; its output."""
        return self.ours(
            PROMPT,
            [self.subject],
            latents=self.latents,
            height=self.size.latent * self.ours.base.vae_scale_factor,
            width=self.size.latent * self.ours.base.vae_scale_factor,
            num_inference_steps=self.size.steps,
            num_images_per_prompt=self.size.batch,
            mask_reuse_after=reuse_after,
            use_mask=use_mask,
            output_type="latent",
            return_masks=return_masks,
        )

    def run_plain(self) -> Tensor:
        """Stock Stable Diffusion with classifier-free guidance."""
        return self._diffusers(self.plain)

    def run_ip_adapter(self, mask: Tensor | None = None) -> Tensor:
        """diffusers' IP-Adapter: two rows a step in one batch, the mask resized in every layer."""
        return self._diffusers(
            self.ip_adapter,
            ip_adapter_image_embeds=[torch.cat([torch.zeros_like(self.tokens), self.tokens])[:, None]],
            cross_attention_kwargs={"ip_adapter_masks": [self.given_mask if mask is None else mask]},
        )

    def run_release(self, reused_step: int, replay: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The release order, with fresh masks in so many steps."""
        return self.release(self.latents, self.size.steps, reused_step, replay)

    @torch.no_grad()
    def run_three_forwards(self) -> Tensor:
        """Three forwards of the stock UNet a step, one after another, and nothing else but the scheduler."""
        scheduler, latents = self.plain.scheduler, self.latents
        scheduler.set_timesteps(self.size.steps, device=latents.device)
        for timestep in scheduler.timesteps:
            for text, conditions in (self.release.text, self.release.text, self.release.negative):
                out = self.plain.unet(latents, timestep, text, added_cond_kwargs=conditions, return_dict=False)[0]
            latents = scheduler.step(out, timestep, latents, return_dict=False)[0]
        return latents

    def _diffusers(self, pipeline: DiffusionPipeline, **arguments: Any) -> Tensor:
        return pipeline(
            **self.embeds,
            latents=self.latents,
            num_inference_steps=self.size.steps,
            num_images_per_prompt=self.size.batch,
            guidance_scale=GUIDANCE_SCALE,
            output_type="latent",
            **arguments,
        ).images


def loaded(size: Size, folder: Path, device: str, dtype: torch.dtype) -> DiffusionPipeline:
    kind = StableDiffusionXLPipeline if size.is_xl else StableDiffusionPipeline
    off = {} if size.is_xl else {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = kind.from_pretrained(folder, dtype=dtype, **off).to(device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.requires_grad_(False).eval()
    return pipeline


def install_ip_adapter(unet: UNet2DConditionModel, vision: dict[str, tuple[Tensor, Tensor]], tokens: int) -> None:
    """What `load_ip_adapter` does, with our weights; the tokens arrive projected, which costs diffusers nothing."""
    layers, processors = text_cross_attentions(unet), {}
    for name in unet.attn_processors:
        path = name.removesuffix(".processor")
        if path not in layers:
            processors[name] = AttnProcessor2_0()
            continue
        key, value = vision[path]
        processor = IPAdapterAttnProcessor2_0(key.shape[0], key.shape[1], num_tokens=(tokens,)).to(
            key.device, key.dtype
        )
        with torch.no_grad():
            processor.to_k_ip[0].weight.copy_(key)
            processor.to_v_ip[0].weight.copy_(value)
        processors[name] = processor.requires_grad_(False)
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([torch.nn.Identity()])
    unet.config.encoder_hid_dim_type = "ip_image_proj"


@torch.no_grad()
def text_embeds(pipeline: DiffusionPipeline, size: Size, device: str) -> dict[str, Tensor]:
    """The prompt and the empty text, encoded as diffusers does; by the names of its arguments."""
    asked = {"prompt": PROMPT, "device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    names = ["prompt_embeds", "negative_prompt_embeds"]
    if size.is_xl:
        names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
        asked["negative_prompt"] = ""  # SDXL's pipeline would take zeros for none
    return dict(zip(names, pipeline.encode_prompt(**({"negative_prompt": ""} | asked)), strict=True))


def with_conditions(embeds: dict[str, Tensor], kind: str, size: Size) -> tuple[Tensor, dict[str, Tensor] | None]:
    """The text at the batch's size as a UNet takes it."""
    text = embeds[f"{kind}prompt_embeds"].expand(size.batch, -1, -1)
    if not size.is_xl:
        return text, None
    side = size.latent * 8
    ids = torch.tensor([[side, side, 0, 0, side, side]], device=text.device, dtype=text.dtype)
    pooled = embeds[f"{kind}pooled_prompt_embeds"].expand(size.batch, -1)
    return text, {"text_embeds": pooled, "time_ids": ids.expand(size.batch, -1)}


# --- the checks -----------------------------------------------------------------------------------------------------


def check_equal(sides: Sides, tolerance: float) -> None:
    """Assert that all compute the same: the release order on our masks, the IP-Adapter with a mask of ones.

    A mask's selection is discontinuous, so each side's own may differ in a cell; the first, which both make of the same
    latents, is compared by itself.
    """
    steps = sides.size.steps
    ours = sides.run_ours(steps, return_masks=True)
    own_masks = [mask for (mask,) in ours.masks]
    assert len(own_masks) == steps
    theirs, masks = sides.run_release(steps, replay=own_masks)
    difference = relative(ours.images, theirs)
    cells = ((own_masks[0] - masks[0]).abs() > tolerance).sum() / own_masks[0].numel()
    ones = torch.ones_like(own_masks[0][:1])
    everywhere = relative(sides.run_ours(steps, use_mask=False).images, sides.run_ip_adapter(ones))
    without_subject = relative(ours.images, sides.run_plain())
    sides.given_mask = own_masks[-1][:1].to(sides.latents.dtype)
    print(
        f"largest difference over the largest value: release order on our masks {difference:.1e}, IP-Adapter with a mask "
        f"of ones {everywhere:.1e} (plain Stable Diffusion, for scale: {without_subject:.1e}); the first mask differs in "
        f"{float(cells):.2%} of its cells",
        file=sys.stderr,
    )
    assert difference <= tolerance and everywhere <= tolerance, f"the sides differ by more than {tolerance}"
    assert float(cells) <= 0.01, "the sides' masks differ"
    assert without_subject > tolerance, "the subject has no effect: the comparison would not notice a missing term"


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


# --- the measures ---------------------------------------------------------------------------------------------------


def seconds(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def paired(
    a: Callable[[], object], b: Callable[[], object], pairs: int, device: str
) -> tuple[list[float], list[float]]:
    """Seconds of A and of B, which alternate, every second pair the other way round."""
    run_a: list[float] = []
    run_b: list[float] = []
    gc.collect()
    for number in range(pairs):
        for run, times in ((a, run_a), (b, run_b)) if number % 2 == 0 else ((b, run_b), (a, run_a)):
            times.append(seconds(run, device))
    return run_a, run_b


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """The most that the allocator holds during a call, above what it held before."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in changes]).max())


@contextlib.contextmanager
def counted(unet: UNet2DConditionModel) -> Iterator[list[int]]:
    """The rows of each call of a UNet while this is open."""
    rows: list[int] = []
    handle = unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        handle.remove()


Make = Callable[..., record.Record]


def measure(sides: Sides, make: Make, device: str, name: str, pairs: int) -> list[record.Record]:
    """All records of one size."""
    steps = sides.size.steps
    half = lambda: sides.run_ours(steps // 2)  # noqa: E731
    early = lambda: sides.run_ours(2)  # noqa: E731
    release = lambda: sides.run_release(steps)  # noqa: E731
    release_reusing = lambda: sides.run_release(steps // 2)  # noqa: E731
    runs: dict[str, tuple[Callable[[], object], str]] = {
        "half_reuse": (half, "ours"),
        "early_reuse": (early, "ours"),
        "release_order": (release, "release"),
        "ip_adapter": (sides.run_ip_adapter, "ip_adapter"),
        "plain_sd": (sides.run_plain, "plain"),
    }
    records: list[record.Record] = []
    times: dict[str, list[float]] = {side: [] for side in runs}
    forwards = {}
    for side, (run, unet) in runs.items():  # warms up, too
        with counted(sides.unets[unet]) as rows:
            run()
        forwards[side] = sum(rows) / sides.size.batch
    release_reusing()
    sides.run_three_forwards()

    def compare(metric: str, a: str, b: str) -> None:
        run_a, run_b = paired(runs[a][0], runs[b][0], pairs, device)
        times[a] += run_a
        times[b] += run_b
        records.append(ratio(metric, run_a, run_b))
        floor = forwards[a] / forwards[b]
        records.append(make(f"{name}_{metric}_forwards", floor, "ratio"))
        print(f"{name}_{metric}: {shown(records[-2])}; by counted forwards {floor:.3f}", file=sys.stderr)

    def ratio(metric: str, a: list[float], b: list[float]) -> record.Record:
        ratios = np.array(a) / np.array(b)
        low, high = np.percentile(ratios, [5, 95])
        return make(
            f"{name}_{metric}", float(np.median(ratios)), "ratio", n=len(ratios), spread=(float(low), float(high))
        )

    compare("half_reuse_vs_release_order", "half_reuse", "release_order")
    compare("half_reuse_vs_ip_adapter", "half_reuse", "ip_adapter")
    compare("early_reuse_vs_ip_adapter", "early_reuse", "ip_adapter")
    compare("half_reuse_vs_plain_sd", "half_reuse", "plain_sd")
    few = max(1, pairs // 2)
    for metric, a, b in (
        ("release_order_vs_three_stock_forwards", release, sides.run_three_forwards),
        ("half_reuse_vs_release_order_reusing", half, release_reusing),
    ):
        records.append(ratio(metric, *paired(a, b, few, device)))
        print(f"{name}_{metric}: {shown(records[-1])}", file=sys.stderr)
    for side, values in times.items():
        per_image = np.array(values) / sides.size.batch
        low, high = np.percentile(per_image, [5, 95])
        records.append(
            make(
                f"{name}_{side}_seconds",
                float(np.median(per_image)),
                "s",
                n=len(values),
                spread=(float(low), float(high)),
            )
        )
        print(f"{name}_{side}_seconds: {shown(records[-1])}, {forwards[side]:.0f} forwards an image", file=sys.stderr)
    peaks = {side: peak_bytes(run, device) for side, (run, _) in runs.items()}
    records.append(make(f"{name}_peak_memory_vs_plain_sd", peaks["half_reuse"] / peaks["plain_sd"], "ratio"))
    print(f"{name}_peak_memory_vs_plain_sd: {shown(records[-1])}", file=sys.stderr)
    for side, peak in peaks.items():
        records.append(make(f"{name}_{side}_peak_memory", peak / 1e6, "MB"))
        print(f"{name}_{side}_peak_memory: {shown(records[-1])}", file=sys.stderr)
    return records


def shown(item: record.Record) -> str:
    low, high = item["spread"]
    return f"{item['value']} {item['unit']}" + (f" ({low} to {high}, n={item['n']})" if item["n"] > 1 else "")


def benchmark(size: Size, device: str, pairs: int | None, make: Make) -> list[record.Record]:
    """Eager everywhere; on a GPU compiled as well."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with tempfile.TemporaryDirectory(prefix="realcustom-sampler-") as folder:
        sides = Sides.make(size, Path(folder), device, dtype)
    check_equal(sides, tolerance=1e-4 if dtype is torch.float32 else 0.1)
    if device == "cpu":
        return measure(sides, make, device, size.name, pairs or size.pairs)
    records = measure(sides, make, device, f"{size.name}_bf16_eager", pairs or size.pairs)
    for unet in sides.unets.values():
        unet.compile()
    return records + measure(sides, make, device, f"{size.name}_bf16_compiled", pairs or size.pairs)


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one pair at tiny size, nothing written")
    parser.add_argument("--only", action="append", help="a size by its name (repeatable)")
    parser.add_argument("--pairs", type=int, help="pairs of runs of each comparison")
    arguments = parser.parse_args()
    sizes: tuple[Size, ...] = GPU_SIZES if arguments.device == "cuda" else (SETTING_S, WIDE)
    sizes = (TINY,) if arguments.quick else tuple(s for s in sizes if s.name in (arguments.only or [s.name]))
    if not sizes:
        parser.error(f"--only names none of the sizes of --device {arguments.device}")
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler's own lines
    torch.set_num_threads(1 if arguments.quick else len(os.sched_getaffinity(0)))
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not (arguments.quick or record.is_clean(("realcustom", "benchmarks/*.py"))):
        print("the code differs from the commit that the records will name", file=sys.stderr)
    commit = record.head()

    def make(
        metric: str, value: float, unit: str, n: int = 1, spread: tuple[float, float] | None = None
    ) -> record.Record:
        command = "python benchmarks/sampler.py" + (" --device cuda" if arguments.device == "cuda" else "")
        hardware = torch.cuda.get_device_name() if arguments.device == "cuda" else ""
        return record.record(metric, value, unit, n=n, spread=spread, command=command, commit=commit, hardware=hardware)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ip_adapter_masks.*")
        for size in sizes:
            records = benchmark(replace(size), arguments.device, arguments.pairs, make)
            if not arguments.quick:
                record.write(RESULTS, records)


if __name__ == "__main__":
    main()
