"""How far each neural metric can be trusted: its rank correlation with what is true, over methods of known order.

    python benchmarks/metric_validity.py            # about 15 minutes on one core; goes on where it stopped
    python benchmarks/metric_validity.py --images 8 --output /tmp/look.json

At least 2,000 pictures by the methods of METHODS, half of them of plain questions and half of prompts that contradict their
reference. True are `similarity` (the judge's object against the subject's own rendering) and `control` (noun, background
and place, `Graded.control`). Tables:

    correlations   of each metric with each truth: over all pictures, and over methods' means
    pairs          share of the pairs of methods, truly different by more than their interval, that a metric orders wrongly
    rungs          drawings that are worse by construction, whatever a judge says: share of questions in which the metric
                   prefers the worse drawing of two
    methods        means of all of them

Writes benchmarks/results/drawn/metric_validity.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import record
import torch
from drawn_methods import Method, baselines, binary, customised, graded, mixed_cases, only
from drawn_tables import Row, interval, kept_answers, resample, write_table
from neural_metrics import Metrics
from PIL import Image
from rank_correlation import correlations
from synthetic_world import shipped

from realcustom.evaluation.table import Case
from realcustom.pipeline.quickstart.cases import picture
from realcustom.sprites import defects, zoo_path
from realcustom.sprites.judge import Judge
from realcustom.sprites.world import (
    BACKGROUNDS,
    BODY_COLOURS,
    NOUNS,
    OPPOSITE,
    PATTERNS,
    SECOND_COLOURS,
    SIZE,
    Identity,
    Scene,
)

RESULTS = record.RESULTS / "drawn" / "metric_validity.json"
TRUTHS = ("similarity", "control")
Values = Mapping[str, np.ndarray]  # by metric or truth, (n,)
# worse by construction with every step, and in nothing else
RUNGS = {
    "similarity": ("true_drawing", "other_second", "other_colours", "other_identity"),
    "control": ("true_drawing", "other_place", "other_scene", "other_noun"),
}


def next_of(kinds: Sequence[str], one: str) -> str:
    """Another of a list: always the same."""
    return kinds[(kinds.index(one) + 3) % len(kinds)]


def identity(change: Callable[[Identity], Identity]) -> Callable[[Scene], Scene]:
    """The scene with its subject changed."""

    def changed(scene: Scene) -> Scene:
        placed = scene.subjects[0]
        return dataclasses.replace(scene, subjects=(dataclasses.replace(placed, identity=change(placed.identity)),))

    return changed


def other_second(one: Identity) -> Identity:
    return dataclasses.replace(one, second=next_of(tuple(SECOND_COLOURS), one.second))


def other_colours(one: Identity) -> Identity:
    return dataclasses.replace(other_second(one), body=next_of(tuple(BODY_COLOURS), one.body))


def other_identity(one: Identity) -> Identity:
    changed = other_colours(one)
    return dataclasses.replace(changed, pattern=PATTERNS[(PATTERNS.index(one.pattern) + 1) % len(PATTERNS)])


def other_place(scene: Scene) -> Scene:
    placed = scene.subjects[0]
    return dataclasses.replace(scene, subjects=(dataclasses.replace(placed, place=OPPOSITE[placed.place]),))


def other_scene(scene: Scene) -> Scene:
    return dataclasses.replace(other_place(scene), background=next_of(BACKGROUNDS, scene.background))


def other_noun(scene: Scene) -> Scene:
    return identity(lambda one: dataclasses.replace(one, noun=next_of(NOUNS, one.noun)))(other_scene(scene))


def drawing(change: Callable[[Scene], Scene]) -> Method:
    """The true scene, changed and drawn."""
    return lambda cases: [picture(change(case.truth.question.target)) for case in cases]


def blurred(cases: Sequence[Case]) -> list[Image.Image]:
    """The true drawing without its details."""
    return [Image.fromarray(defects.blur(np.asarray(case.oracle), 1.5)) for case in cases]


def copier(cases: Sequence[Case]) -> list[Image.Image]:
    """The picture that was shown."""
    return [case.reference for case in cases]


def uniform_noise(cases: Sequence[Case]) -> list[Image.Image]:
    """Nothing."""
    rngs = [np.random.default_rng(case.seed) for case in cases]
    return [Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for rng in rngs]


def methods() -> dict[str, Method]:
    """By name: sampled ones, and drawings of known faults."""
    pipeline, crop = shipped(), shipped(adapter="adapter_crop")
    sampled = {
        "scope_0.1": customised(pipeline, influence_scope=0.1),
        "scope_0.5": customised(pipeline, influence_scope=0.5),
        "binary": customised(binary()),
        "steps_5": customised(pipeline, num_inference_steps=5),
        "steps_2": customised(pipeline, num_inference_steps=2),
        "crop_adapter": customised(crop),
    }
    drawn = {
        "other_second": drawing(identity(other_second)),
        "other_colours": drawing(identity(other_colours)),
        "other_identity": drawing(identity(other_identity)),
        "other_place": drawing(other_place),
        "other_scene": drawing(other_scene),
        "other_noun": drawing(other_noun),
        "blurred": blurred,
        "copier": copier,
        "noise": uniform_noise,
    }
    return {**baselines(), **sampled, **drawn}


def measured(images: int, work: Path, wanted: Sequence[str]) -> tuple[dict[str, Values], list[Case]]:
    """Truths and metrics of the pictures of every method, or of those that are wanted, and the cases."""
    cases = mixed_cases(images)
    judge, metrics = Judge.load(zoo_path("judge")), Metrics()
    found: dict[str, Values] = {}
    for name, method in only(methods(), wanted).items():
        drawn = kept_answers(work / f"{name}-{images}.npy", lambda method=method: method, cases)  # type: ignore[misc]
        truth = graded(judge, drawn, cases)
        found[name] = {**{one: getattr(truth, one) for one in TRUTHS}, **metrics(drawn, cases)}
    return found, cases


def metric_names(found: Mapping[str, Values]) -> list[str]:
    return [name for name in next(iter(found.values())) if name not in TRUTHS]


def correlation_rows(found: Mapping[str, Values], counts: np.ndarray) -> Iterator[Row]:
    """By metric and truth: over all pictures, and over methods' means."""
    every = np.tile(counts, (1, len(found)))  # a resample's subjects are those of every method
    for metric, truth in itertools.product(metric_names(found), TRUTHS):
        x, y = (np.concatenate([values[name] for values in found.values()]) for name in (metric, truth))
        yield {"over": "pictures", "metric": metric, "truth": truth, "n": len(x), **correlations(x, y, every)}
        means = [
            np.array([values[name] @ counts.T / counts.sum(1) for values in found.values()]) for name in (metric, truth)
        ]
        yield {
            "over": "methods",
            "metric": metric,
            "truth": truth,
            "n": len(found),
            **of_means(found, means[0], means[1], metric, truth),
        }


def of_means(
    found: Mapping[str, Values], metric_means: np.ndarray, truth_means: np.ndarray, metric: str, truth: str
) -> dict[str, list[float]]:
    """Correlations of the methods' means, with intervals over resamples of (methods, r) means."""
    once = np.ones((1, len(found)))
    points = [np.array([values[name].mean() for values in found.values()]) for name in (metric, truth)]
    value = correlations(points[0], points[1], once)
    draws = [correlations(x, y, once) for x, y in zip(metric_means.T, truth_means.T, strict=True)]
    result = {}
    for kind, (point, *_) in value.items():
        low, high = np.quantile([draw[kind][0] for draw in draws], [0.025, 0.975])
        result[kind] = [point, round(float(low), 3), round(float(high), 3)]
    return result


def pair_rows(found: Mapping[str, Values], counts: np.ndarray) -> Iterator[Row]:
    """By metric and truth: of the pairs of methods that truly differ, the share that the metric orders wrongly."""
    for truth in TRUTHS:
        differing = []
        for one, other in itertools.combinations(found, 2):
            mean, low, high = interval(found[one][truth] - found[other][truth], counts)
            if low > 0 or high < 0:
                differing.append((one, other) if mean > 0 else (other, one))
        for metric in metric_names(found):
            wrong = [
                (better, worse)
                for better, worse in differing
                if found[better][metric].mean() <= found[worse][metric].mean()
            ]
            share = round(len(wrong) / len(differing), 3)
            yield {"metric": metric, "truth": truth, "pairs": len(differing), "wrong": share}


def rung_rows(found: Mapping[str, Values], counts: np.ndarray) -> Iterator[Row]:
    """By metric, truth and rung: the share of questions whose worse drawing it prefers (half of a tie)."""
    for truth, ladder in RUNGS.items():
        if not set(ladder) <= set(found):
            continue  # only some methods were wanted
        for metric, (better, worse) in itertools.product([*TRUTHS, *metric_names(found)], itertools.pairwise(ladder)):
            change = found[better][metric] - found[worse][metric]
            share = interval((change < 0) + 0.5 * (change == 0), counts)
            yield {"truth": truth, "better": better, "worse": worse, "metric": metric, "prefers_worse": share}


def method_rows(found: Mapping[str, Values], counts: np.ndarray) -> Iterator[Row]:
    """Means of everything by method."""
    for name, values in found.items():
        yield {"method": name, **{metric: interval(value, counts) for metric, value in values.items()}}


def main() -> None:
    """Draw what is missing, measure it, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=84, help="of each method")
    parser.add_argument("--methods", nargs="+", default=(), metavar="NAME", help="just these, and no others")
    parser.add_argument("--work", type=Path, default=Path("outputs/drawn_methods"), help="where pictures are kept")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, cases = measured(options.images, options.work, options.methods)
    counts = resample(cases)[:500]
    command = f"python benchmarks/metric_validity.py --images {options.images}"
    command += f" --methods {' '.join(options.methods)}" if options.methods else ""
    tables = {
        "correlations": correlation_rows,
        "pairs": pair_rows,
        "rungs": rung_rows,
        "methods": method_rows,
    }
    for name, rows in tables.items():
        write_table(options.output, name, rows(found, counts), command)


if __name__ == "__main__":
    main()
