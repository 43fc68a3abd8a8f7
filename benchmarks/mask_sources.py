"""Where a step's mask may come from: a fresh guidance pass, the step before, or the first steps, on the synthetic world.

    python benchmarks/mask_sources.py                # about 10 minutes on two idle cores
    python benchmarks/mask_sources.py --images 32    # a short look; writes nothing

An adapter that ships draws the same cases from the same noise; rows differ in the mask's source alone, once in its own mode
(cascade) and once in `direct`. `fresh` is `mask.source: guidance`, `previous` ours, `reuse_1` and `reuse_half` keep the mask
after one step and after half of them. For each row:

    mask_source_MODE_ROW_similarity, _background, _noun   as in benchmarks/synthetic_world.py
    ..._background_error    mean absolute difference (0 to 1) to the plain image of the same noise, over the pixels that lie
                            outside every mask of the row `fresh`
    ..._mask_iou            of kept cells with those of `fresh` at the same step, mean over steps
    ..._similarity_change   minus that of `fresh`, paired
    ..._forwards, _launches of one image

Writes benchmarks/results/mask_sources.json and, with --picture FILE, one case's masks over the steps as a picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from PIL import Image
from synthetic_world import BATCH, Measure, column, mean_of, shipped
from torch import Tensor
from torch.nn import functional as F

from realcustom.config import override
from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.evaluation.statistics import bootstrap_difference
from realcustom.evaluation.table import Case
from realcustom.pipeline.quickstart.cases import DrawnJudge, drawn_cases

RESULTS = record.RESULTS / "mask_sources.json"
MODES: dict[str, dict[str, Any]] = {"cascade": {}, "direct": {"mode": "direct"}}  # the weights stay the adapter's
ROWS: dict[str, dict[str, Any]] = {
    "fresh": {"source": "guidance"},
    "previous": {"source": "previous"},
    "reuse_half": {"source": "guidance", "mask_reuse_after": 10},
    "reuse_1": {"source": "guidance", "mask_reuse_after": 1},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """The images of a row."""

    images: list[Image.Image]
    masks: Tensor  # (n, steps, H*, W*)
    forwards: int  # of one image
    launches: int


def drawn(cases: Sequence[Case], settings: dict[str, Any]) -> Drawn:
    """Every case's image and its masks."""
    pipeline = shipped(lambda method: override(method, settings))
    images: list[Image.Image] = []
    masks: list[Tensor] = []
    for first in range(0, len(cases), BATCH):
        batch = cases[first : first + BATCH]
        out = call(pipeline, batch, [[Subject(image=case.reference, word=case.target_word)] for case in batch])
        images += out.images
        masks.append(torch.stack([step[0][:, 0] for step in out.masks], 1))
    rows: list[int] = []
    handle = pipeline.base.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    call(pipeline, cases[:1], [[Subject(image=cases[0].reference, word=cases[0].target_word)]], return_masks=False)
    handle.remove()
    return Drawn(images=images, masks=torch.cat(masks), forwards=sum(rows), launches=len(rows))


def call(
    pipeline: RealCustomPipeline, cases: Sequence[Case], subjects: list[list[Subject]], return_masks: bool = True
) -> Any:
    generators = [torch.Generator().manual_seed(case.seed) for case in cases]
    prompts = [case.prompt for case in cases]
    return pipeline(prompts, subjects, generator=generators, return_masks=return_masks)


def plain_images(cases: Sequence[Case]) -> list[Image.Image]:
    """The same prompts and noise without a subject."""
    pipeline, images = shipped(), []
    for first in range(0, len(cases), BATCH):
        batch = cases[first : first + BATCH]
        images += call(pipeline, batch, [[] for _ in batch], return_masks=False).images
    return images


def iou(masks: Tensor, fresh: Tensor) -> np.ndarray:
    """(n,): of the kept cells, mean over steps."""
    one, other = masks > 0, fresh > 0
    both, either = (one & other).flatten(2).sum(2), (one | other).flatten(2).sum(2)
    shares: np.ndarray = (both / either.clamp(min=1)).mean(1).numpy()
    return shares


def background_error(images: Sequence[Image.Image], plain: Sequence[Image.Image], outside: Tensor) -> np.ndarray:
    """(n,): mean absolute difference of pixels in [0, 1] where `outside` (n, h, w) is true."""
    return np.array(
        [
            np.abs(np.asarray(ours, np.float32) - np.asarray(theirs, np.float32))[where].mean() / 255
            for ours, theirs, where in zip(images, plain, outside.numpy(), strict=True)
        ]
    )


def outside_all_masks(masks: Tensor, side: int) -> Tensor:
    """(n, side, side): pixels of cells that no step's mask keeps."""
    kept = (masks > 0).any(1, keepdim=True).float()
    return F.interpolate(kept, size=(side, side), mode="nearest")[:, 0] == 0


def measures(count: int, picture: Path | None) -> Iterator[Measure]:
    """All rows of both modes."""
    cases, judge = drawn_cases(count), DrawnJudge()
    plain = plain_images(cases)
    for mode, guidance in MODES.items():
        rows = {name: drawn(cases, {"guidance": guidance, "mask": mask}) for name, mask in ROWS.items()}
        fresh = rows["fresh"]
        outside = outside_all_masks(fresh.masks, plain[0].width)
        scores = {name: judge(row.images, cases) for name, row in rows.items()}
        for name, row in rows.items():
            prefix = f"mask_source_{mode}_{name}"
            for kind, unit in (("similarity", "similarity"), ("background", "accuracy"), ("noun", "accuracy")):
                yield mean_of(f"{prefix}_{kind}", column(scores[name], kind), unit)
            yield mean_of(f"{prefix}_background_error", background_error(row.images, plain, outside), "abs")
            yield mean_of(f"{prefix}_mask_iou", iou(row.masks, fresh.masks), "IoU")
            gap = bootstrap_difference(column(scores[name], "similarity"), column(scores["fresh"], "similarity"))
            change = f"{prefix}_similarity_change"
            yield Measure(metric=change, value=gap.mean, unit="similarity", n=count, low=gap.low, high=gap.high)
            for what, number in (("forwards", row.forwards), ("launches", row.launches)):
                yield Measure(metric=f"{prefix}_{what}", value=number, unit="count", n=1, low=number, high=number)
        if picture is not None and mode == "direct":
            strip(rows).save(picture)


def strip(rows: dict[str, Drawn], cell: int = 64) -> Image.Image:
    """A row of the picture for each row of the table: the first case's image, then every second mask."""
    lines = []
    for row in rows.values():
        tiles = [np.asarray(row.images[0].convert("RGB").resize((cell, cell)))]
        for mask in row.masks[0][::2]:
            grey = Image.fromarray((mask.numpy() * 255).astype(np.uint8)).resize((cell, cell), Image.Resampling.NEAREST)
            tiles.append(np.asarray(grey.convert("RGB")))
        lines.append(np.concatenate(tiles, 1))
    return Image.fromarray(np.concatenate(lines, 0))


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="cases of each row")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--picture", type=Path, help="write one case's masks over the steps to this PNG")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    commit = record.head()
    for measure in measures(options.images, options.picture):
        of = dataclasses.asdict(measure)
        spread = (of.pop("low"), of.pop("high"))
        if options.images == 256:
            made = record.record(**of, spread=spread, command="python benchmarks/mask_sources.py", commit=commit)
            record.write(RESULTS, [made])
        print(f"{measure.metric}: {measure.value:.4f} [{measure.low:.4f}, {measure.high:.4f}]", flush=True)


if __name__ == "__main__":
    main()
