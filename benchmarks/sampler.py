"""Seconds and memory per image: RealCustom's sampler against three others on the same weights.

    python benchmarks/sampler.py                    # this machine's processor, about 20 minutes
    python benchmarks/sampler.py --device cuda      # a GPU: bf16, eager and compiled, sizes of SD 1.5 and SDXL
    python benchmarks/sampler.py --compiled         # `pipe.compile()` against none, the same pictures
    python benchmarks/sampler.py --only sampler --metric map_overhead    # one comparison of one size
    python benchmarks/sampler.py --quick            # a smoke run at tiny size; writes nothing

Baselines: the order of the released code (benchmarks/release_order.py), diffusers' IP-Adapter pipeline with a given
mask, and stock Stable Diffusion with classifier-free guidance. All are the public calls at random weights, up to the
latents, with text embeddings ready-made and the subject's picture encoded beforehand. Before the timing the results are
checked to be equal: the release order on our masks, the IP-Adapter with a mask of ones. The ratios of counted forwards
are no floor of the seconds: one row costs the stock UNet more than half of two rows (`stock_row_share`).

Two sides alternate, A B B A, and the median of the paired ratios counts; its spread is the 5th to the 95th percentile.
Memory is what the allocator holds at most during a call above what it held before (the weights): on a CPU it is added
up from every allocation and release that torch's profiler reports, which does not depend on the machine's load, on
fragmentation, or on memory cached by earlier calls, as the process's resident size does.

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
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import record
import torch
import transformers
from diffusers import UNet2DConditionModel
from sampler_sides import SD1, SDXL, SMALL, Sides, Size
from torch import Tensor

from realcustom.compiling import compile_regions
from realcustom.settings import MaskSource

RESULTS = record.RESULTS / "sampler.json"
COMPARISONS = (
    *("half_reuse_vs_release_order", "half_reuse_vs_ip_adapter", "early_reuse_vs_ip_adapter", "half_reuse_vs_plain_sd"),
    *("free_mask_vs_plain_sd", "release_order_vs_three_stock_forwards", "half_reuse_vs_release_order_reusing"),
    *("map_overhead", "stock_row_share", "rows_vs_batch"),
)
SETTING_S = Size(name="sampler", unet=SMALL, latent=32)
WIDE = Size(name="sampler_64_batch4", unet=SMALL, latent=64, batch=4, steps=6, pairs=2)
TINY = Size(
    name="sampler_quick",
    unet={"block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 32, "attention_head_dim": 4}
    | {"layers_per_block": 1, "norm_num_groups": 8},
    latent=16,
    image_width=32,
    steps=2,
    pairs=1,
)
GPU_SIZES = (
    Size(name="sampler_sd15", unet=SD1, latent=64, image_tokens=256, image_width=1024),
    Size(name="sampler_sd15_batch4", unet=SD1, latent=64, batch=4, image_tokens=256, image_width=1024),
    Size(name="sampler_sdxl", unet=SDXL, latent=128, image_tokens=256, image_width=2048),
)


def check_equal(sides: Sides, tolerance: float) -> None:
    """Assert that all results are equal: the release order on our masks, the IP-Adapter with a mask of ones.

    A mask's selection is discontinuous, so the masks of two sides may differ in a cell; the first masks, made from the
    same latents, are compared directly.
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


def seconds(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def paired(
    a: Callable[[], object], b: Callable[[], object], pairs: int, device: str
) -> tuple[list[float], list[float]]:
    """Seconds of A and of B, which alternate; every second pair in reverse order."""
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
    """The rows of each call of a UNet inside this context."""
    rows: list[int] = []
    handle = unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        handle.remove()


Make = Callable[..., record.Record]


def ratio(make: Make, metric: str, a: list[float], b: list[float]) -> record.Record:
    """The median of the paired ratios of A's seconds to B's, with their spread."""
    ratios = np.array(a) / np.array(b)
    low, high = np.percentile(ratios, [5, 95])
    return make(metric, float(np.median(ratios)), "ratio", n=len(ratios), spread=(float(low), float(high)))


def measure(
    sides: Sides, make: Make, device: str, name: str, pairs: int, metrics: Collection[str] = ()
) -> list[record.Record]:
    """All records of one size, or those of these comparisons."""
    steps = sides.size.steps
    half = partial(sides.run_ours, steps // 2)
    early = partial(sides.run_ours, 2)
    free = partial(sides.run_ours, steps, source=MaskSource.PREVIOUS)
    release = partial(sides.run_release, steps)
    release_reusing = partial(sides.run_release, steps // 2)
    runs: dict[str, tuple[Callable[[], object], str]] = {
        "half_reuse": (half, "ours"),
        "early_reuse": (early, "ours"),
        "free_mask": (free, "ours"),
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
        if metrics and metric not in metrics:
            return
        run_a, run_b = paired(runs[a][0], runs[b][0], pairs, device)
        times[a] += run_a
        times[b] += run_b
        records.append(ratio(make, f"{name}_{metric}", run_a, run_b))
        floor = forwards[a] / forwards[b]
        records.append(make(f"{name}_{metric}_forwards", floor, "ratio"))
        print(f"{name}_{metric}: {shown(records[-2])}; by counted forwards {floor:.3f}", file=sys.stderr)

    compare("half_reuse_vs_release_order", "half_reuse", "release_order")
    compare("half_reuse_vs_ip_adapter", "half_reuse", "ip_adapter")
    compare("early_reuse_vs_ip_adapter", "early_reuse", "ip_adapter")
    compare("half_reuse_vs_plain_sd", "half_reuse", "plain_sd")
    compare("free_mask_vs_plain_sd", "free_mask", "plain_sd")
    few = max(1, pairs // 5)  # of what has no target
    for metric, a, b, count in (
        ("release_order_vs_three_stock_forwards", release, sides.run_three_forwards, few),
        ("half_reuse_vs_release_order_reusing", half, release_reusing, few),
        ("map_overhead", partial(sides.run_guidance_passes, True), partial(sides.run_guidance_passes, False), pairs),
        ("stock_row_share", partial(sides.run_stock_forwards, 1), partial(sides.run_stock_forwards, 2), pairs),
    ):
        if metrics and metric not in metrics:
            continue
        records.append(ratio(make, f"{name}_{metric}", *paired(a, b, count, device)))
        print(f"{name}_{metric}: {shown(records[-1])}", file=sys.stderr)
    one = sides.size.batch == 1  # eight rows; few steps, since each is eight times as long
    if one and (not metrics or "rows_vs_batch" in metrics):
        mixed, equal = partial(sides.run_rows, 8, 4), partial(sides.run_batch, 8, 4)
        with counted(sides.unets["ours"]) as of_mixed:
            mixed()
        with counted(sides.unets["ours"]) as of_equal:
            equal()
        assert of_mixed == of_equal, f"other UNet calls: {of_mixed}, {of_equal}"
        records.append(ratio(make, f"{name}_rows_vs_batch", *paired(mixed, equal, pairs, device)))
        print(f"{name}_rows_vs_batch: {shown(records[-1])}", file=sys.stderr)
    if metrics:
        return records
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


def measure_compiled(eager: Sides, compiled: Sides, make: Make, device: str, pairs: int) -> list[record.Record]:
    """Seconds of a call after `pipe.compile()` over those of one without, and the seconds of the first call."""
    compile_regions(compiled.ours.base.unet, channels_last=True)
    compile_regions(compiled.plain.unet, channels_last=True)
    half = eager.size.steps // 2
    first = seconds(partial(compiled.run_ours, half), device)
    difference = relative(compiled.run_ours(half).images, eager.run_ours(half).images)
    assert difference < 1e-3 or eager.latents.dtype is not torch.float32, difference
    records = [make(f"{eager.size.name}_compiled_first_call_seconds", first, "s")]
    print(f"largest difference to uncompiled: {difference:.1e}; first call {first:.1f} s", file=sys.stderr)
    for side, a, b in (
        ("half_reuse", partial(compiled.run_ours, half), partial(eager.run_ours, half)),
        ("plain_sd", compiled.run_plain, eager.run_plain),
    ):
        name = f"{eager.size.name}_{side}_compiled_vs_eager"
        records.append(ratio(make, name, *paired(a, b, pairs, device)))
        print(f"{name}: {shown(records[-1])}", file=sys.stderr)
    return records


def shown(item: record.Record) -> str:
    low, high = item["spread"]
    return f"{item['value']} {item['unit']}" + (f" ({low} to {high}, n={item['n']})" if item["n"] > 1 else "")


def benchmark(
    size: Size, device: str, pairs: int | None, make: Make, compiled: bool, metrics: Collection[str]
) -> list[record.Record]:
    """Eager everywhere; on a GPU compiled as well."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with tempfile.TemporaryDirectory(prefix="realcustom-sampler-") as folder:
        sides = Sides.make(size, Path(folder), device, dtype)
    if compiled:
        with tempfile.TemporaryDirectory(prefix="realcustom-sampler-") as folder:
            return measure_compiled(sides, Sides.make(size, Path(folder), device, dtype), make, device, pairs or 7)
    check_equal(sides, tolerance=1e-4 if dtype is torch.float32 else 0.1)
    if device == "cpu":
        return measure(sides, make, device, size.name, pairs or size.pairs, metrics)
    records = measure(sides, make, device, f"{size.name}_bf16_eager", pairs or size.pairs, metrics)
    for unet in sides.unets.values():
        compile_regions(unet, channels_last=True)
    return records + measure(sides, make, device, f"{size.name}_bf16_compiled", pairs or size.pairs, metrics)


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one pair at tiny size, nothing written")
    parser.add_argument("--only", action="append", help="a size by its name (repeatable)")
    parser.add_argument("--compiled", action="store_true", help="only: compiled against not compiled")
    parser.add_argument("--metric", action="append", choices=COMPARISONS, default=[], help="a comparison (repeatable)")
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
        command = "python benchmarks/sampler.py" + " --compiled" * arguments.compiled
        command += "".join(f" --only {name}" for name in arguments.only or ())
        command += "".join(f" --metric {name}" for name in arguments.metric)
        command += " --device cuda" * (arguments.device == "cuda")
        hardware = torch.cuda.get_device_name() if arguments.device == "cuda" else ""
        return record.record(metric, value, unit, n=n, spread=spread, command=command, commit=commit, hardware=hardware)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ip_adapter_masks.*")
        for size in sizes:
            records = benchmark(
                replace(size), arguments.device, arguments.pairs, make, arguments.compiled, arguments.metric
            )
            if not arguments.quick:
                record.write(RESULTS, records)


if __name__ == "__main__":
    main()
