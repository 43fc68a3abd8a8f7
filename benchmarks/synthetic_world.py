"""Results of the shipped models of the synthetic world, on identities that no model was trained on, by ground truth.

    python benchmarks/synthetic_world.py                      # about 15 minutes on two idle cores
    python benchmarks/synthetic_world.py --only table models  # some parts

`table`: the same prompts and starting noise as plain text-to-image, with a subject without and with its mask, and with
another subject of the same noun, beside the true drawing. `models`: the data pipeline's models. `crop`: the second
shipped adapter, which is shown its subject cut out on white. `scope` and `scoring`: the paper's tables 2 and 3. The
scoring rows change the scoring of one trained adapter at inference; none is trained again. `seconds`: one customised
image of 20 steps on two cores. Writes benchmarks/results/sprites.json (this file is not called sprites.py, as that
would hide the package from the scripts beside it).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import record
import torch
from PIL import Image

from realcustom.base_loading import load_base
from realcustom.checkpoint import load_adapter
from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.evaluation.generators import PipelineGenerator
from realcustom.evaluation.settings import EvaluateSettings
from realcustom.evaluation.statistics import bootstrap_difference, bootstrap_mean
from realcustom.evaluation.table import Case, Scores, Setting, evaluate
from realcustom.image_encoder import load_image_encoder
from realcustom.model import SCORING, RealCustomModel
from realcustom.pipeline.quickstart.cases import DrawnJudge, drawn_cases
from realcustom.pipeline.zoo import measure_zoo
from realcustom.settings import Fusion, MethodSettings
from realcustom.sprites import zoo_path
from realcustom.sprites.world import Scene, draw

RESULTS = record.RESULTS / "sprites.json"
BATCH = 32  # images of one sampler call
SCOPES = (0.1, 0.2, 0.3, 0.4, 0.5)  # 0.25 is the row "masked"
QUANTITIES = (0.7, 0.9, 1.0)  # 0.8 is the row "scoring_timestep"
TIMED = 20  # images
MODELS = ("detection_recall", "detection_precision", "mask_iou", "caption_accuracy", "clip_retrieval")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One record of the result file, without the common fields."""

    metric: str
    value: float
    unit: str
    n: int
    low: float
    high: float


def shipped(
    change: Callable[[MethodSettings], MethodSettings] = lambda settings: settings, adapter: str = "adapter"
) -> RealCustomPipeline:
    """A shipped adapter on the shipped base model, its settings changed."""
    checkpoint, base = load_adapter(zoo_path(f"{adapter}.safetensors")), load_base(zoo_path("pipeline"))
    settings = change(checkpoint.settings)
    encoder = load_image_encoder(zoo_path("image_encoder"), settings.image_encoder)
    model = RealCustomModel(base.unet, settings, encoder.embed_dim)
    kept = settings.tokens.scoring
    model.load_adapter_state_dict(
        {name: value for name, value in checkpoint.tensors.items() if kept or not name.startswith(SCORING)}
    )
    pipeline = RealCustomPipeline(base, settings, model.requires_grad_(False).eval(), encoder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measured(
    pipeline: RealCustomPipeline, cases: Sequence[Case], rows: Sequence[Setting]
) -> dict[Setting, list[Scores]]:
    """The judge's scores of every case under the settings of `rows`."""
    settings = EvaluateSettings(images=len(cases), batch_size=BATCH)
    return evaluate(cases, PipelineGenerator(pipeline=pipeline), DrawnJudge(), settings, rows=rows, progress=say).scores


def say(setting: Setting, done: int, total: int) -> None:
    """A line for each finished row."""
    if done == total:
        print(f"  {setting.value}: {done} images", file=sys.stderr, flush=True)


def column(scores: Sequence[Scores], name: str) -> np.ndarray:
    """One number of each image, (n,)."""
    return np.array([float(getattr(score, name)) for score in scores])


def mean_of(metric: str, values: Sequence[float] | np.ndarray, unit: str) -> Measure:
    """A mean with its bootstrap interval."""
    interval = bootstrap_mean(values)
    return Measure(metric=metric, value=interval.mean, unit=unit, n=len(values), low=interval.low, high=interval.high)


def row(name: str, scores: Sequence[Scores]) -> Iterator[Measure]:
    """Similarity, background and noun accuracy of a cell."""
    yield mean_of(f"sprites_{name}_similarity", column(scores, "similarity"), "similarity")
    yield mean_of(f"sprites_{name}_background", column(scores, "background"), "accuracy")
    yield mean_of(f"sprites_{name}_noun", column(scores, "noun"), "accuracy")


def table(images: int) -> Iterator[Measure]:
    """The cells, compared with the targets."""
    names = {
        Setting.TEXT_TO_IMAGE: "plain",
        Setting.SUBJECT_WITHOUT_MASK: "no_mask",
        Setting.SUBJECT_WITH_MASK: "masked",
        Setting.WRONG_REFERENCE: "wrong",
        Setting.ORACLE: "oracle",
    }
    found = measured(shipped(), drawn_cases(images), list(names))
    scores = {name: found[setting] for setting, name in names.items()}
    for name, cell in scores.items():
        yield from row(name, cell)
    similar = {name: column(cell, "similarity") for name, cell in scores.items()}
    backgrounds = {name: column(cell, "background") for name, cell in scores.items()}
    yield share_of_the_way(similar["plain"], similar["masked"], similar["oracle"])
    for metric, unit, first, second in (
        ("masked_background_loss", "accuracy", backgrounds["plain"], backgrounds["masked"]),
        ("mask_gain_background", "accuracy", backgrounds["masked"], backgrounds["no_mask"]),
        ("mask_gain_similarity", "similarity", similar["masked"], similar["no_mask"]),
        ("reference_gain_similarity", "similarity", similar["masked"], similar["wrong"]),
    ):
        gap = bootstrap_difference(first, second)
        full = f"sprites_{metric}"
        yield Measure(metric=full, value=gap.mean, unit=unit, n=images, low=gap.low, high=gap.high)
        if metric == "reference_gain_similarity":  # the target is on the interval's lower end
            full = "sprites_wrong_reference_gap"
            yield Measure(metric=full, value=gap.low, unit=unit, n=images, low=gap.low, high=gap.high)


def crop(images: int) -> Iterator[Measure]:
    """The adapter that is shown its subject cut out on white instead of the whole picture."""
    cases = [dataclasses.replace(case, reference=see_through(case.truth.reference)) for case in drawn_cases(images)]
    names = {Setting.SUBJECT_WITHOUT_MASK: "crop_no_mask", Setting.SUBJECT_WITH_MASK: "crop_masked"}
    found = measured(shipped(adapter="adapter_crop"), cases, list(names))
    for setting, name in names.items():
        yield from row(name, found[setting])


def see_through(scene: Scene) -> Image.Image:
    """A scene's picture, transparent outside its first subject."""
    drawing = draw(scene)
    return Image.fromarray(np.dstack([drawing.image, drawing.masks[0].astype(np.uint8) * 255]))


def share_of_the_way(plain: np.ndarray, masked: np.ndarray, oracle: np.ndarray) -> Measure:
    """(masked - plain) / (oracle - plain) of the means, with the paired bootstrap's interval."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(plain), (4000, len(plain)))
    shares = (masked[drawn].mean(1) - plain[drawn].mean(1)) / (oracle[drawn].mean(1) - plain[drawn].mean(1))
    low, high = np.quantile(shares, [0.025, 0.975])
    value = (masked.mean() - plain.mean()) / (oracle.mean() - plain.mean())
    metric = "sprites_masked_similarity_share"
    return Measure(metric=metric, value=float(value), unit="share", n=len(plain), low=float(low), high=float(high))


def models(images: int) -> Iterator[Measure]:
    """The data pipeline's models and the base model's attention on held-out drawings.

    Intervals are those of shares (Wilson 1927), 95 %; for a mean IoU, which varies less than a share, they are wide.
    """
    for name, value in measure_zoo(images).items():
        low, high = record.wilson(value, images)
        metric = f"sprites_{name}" if name in MODELS else f"sprites_zoo_{name}"
        yield Measure(metric=metric, value=value, unit="share", n=images, low=low, high=high)


def scope(images: int) -> Iterator[Measure]:
    """The paper's table 2: the part of the picture that the subject may act on."""
    cases = drawn_cases(images)
    for value, binary in [*((value, False) for value in SCOPES), (0.25, True)]:
        name = f"scope_{value}{'_binary' if binary else ''}"
        pipeline = shipped(
            lambda settings, value=value, binary=binary: dataclasses.replace(  # type: ignore[misc]
                settings, mask=dataclasses.replace(settings.mask, influence_scope=value, binary=binary)
            )
        )
        yield from row(name, measured(pipeline, cases, [Setting.SUBJECT_WITH_MASK])[Setting.SUBJECT_WITH_MASK])


def scoring(images: int) -> Iterator[Measure]:
    """The paper's table 3: how image tokens are scored, and how many of them act."""
    cases = drawn_cases(images)
    choices: dict[str, dict[str, Any]] = {"none": {"scoring": False}}
    choices |= {fusion.value: {"fusion": fusion} for fusion in Fusion}
    choices |= {f"quantity_{value}": {"influence_quantity": value} for value in QUANTITIES}
    for name, change in choices.items():
        pipeline = shipped(
            lambda settings, change=change: dataclasses.replace(  # type: ignore[misc]
                settings, tokens=dataclasses.replace(settings.tokens, **change)
            )
        )
        scores = measured(pipeline, cases, [Setting.SUBJECT_WITH_MASK])[Setting.SUBJECT_WITH_MASK]
        yield from row(f"scoring_{name}", scores)


def seconds(images: int) -> Iterator[Measure]:
    """One customised image at a time, its reference encoded each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    pipeline, times = shipped(), []
    for case in drawn_cases(TIMED + 2):
        start = time.perf_counter()
        subject = Subject(image=case.reference, word=case.target_word)
        pipeline(case.prompt, [subject], num_inference_steps=20, generator=torch.Generator().manual_seed(case.seed))
        times.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    times = times[2:]  # the first ones warm up
    low, high = np.quantile(times, [0.05, 0.95])
    value = statistics.median(times)
    yield Measure(metric="sprites_image_seconds", value=value, unit="s", n=TIMED, low=float(low), high=float(high))


PARTS: dict[str, Callable[[int], Iterable[Measure]]] = {
    "table": table,
    "models": models,
    "crop": crop,
    "scope": scope,
    "scoring": scoring,
    "seconds": seconds,
}


def write(measures: Iterable[Measure], command: str) -> None:
    """Records one at a time, so that an interrupted run keeps what it has."""
    commit = record.head()
    for measure in measures:
        of = dataclasses.asdict(measure)
        spread = (of.pop("low"), of.pop("high"))
        record.write(RESULTS, [record.record(**of, spread=spread, command=command, commit=commit)])
        print(f"{measure.metric}: {measure.value:.4f} [{measure.low:.4f}, {measure.high:.4f}]", flush=True)


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="+", help="just these parts")
    parser.add_argument("--images", type=int, default=256, help="of each cell")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU; `seconds` always takes two")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.only or PARTS:
        write(
            PARTS[name](options.images), f"python benchmarks/synthetic_world.py --only {name} --images {options.images}"
        )


if __name__ == "__main__":
    main()
