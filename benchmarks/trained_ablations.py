"""What must be trained to be compared: an adapter for each variant and seed, scored on the same questions.

    python benchmarks/trained_ablations.py                 # hours on one core; goes on where it stopped
    python benchmarks/trained_ablations.py --steps 1000    # a shorter training of each

A variant is a recipe: `settings_of` of the zoo's adapter with one change. All are trained on one corpus, in which some
nouns never stand on some backgrounds at some places (`world.is_held_out`), with three seeds each, and asked the plain
questions and those of what was left out. Table `variants`: their scores, with intervals over subjects and seeds. Table
`orders`: the probability that the first is more similar than the second, which is the share of the paired bootstrap's
resamples in which it is; and that of the whole order of the paper's table 3. Writes
benchmarks/results/drawn/trained_ablations.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import record
import torch
from drawn_methods import answers, cases_of, customised, graded
from drawn_tables import Row, resample, write_table

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.evaluation.table import Case
from realcustom.pipeline.quickstart.zoo_adapter import settings_of
from realcustom.pipeline.recipes import RunSettings
from realcustom.pipeline.stages import run_stages
from realcustom.preprocessing.catalogue import CHAIN
from realcustom.settings import Fusion, KVInit, Reference, TokenSettings
from realcustom.sprites import zoo_path
from realcustom.sprites.corpus import CorpusSettings, write_corpus
from realcustom.sprites.judge import Judge
from realcustom.sprites.questions import Kind
from realcustom.training.run import train
from realcustom.training.settings import CurriculumPoint

RESULTS = record.RESULTS / "drawn" / "trained_ablations.json"
SEEDS = (0, 1, 2)
KINDS = (Kind.PLAIN, Kind.UNSEEN)
SCORES = ("similarity", "noun", "background", "background_colour", "place_error")
PAPER = ("timestep", "text", "mean", "none", "visual")  # table 3 by CLIP-I, best first
FIRST_SCENE = 3 * 10**6  # of the corpus: no other one's

Scores = dict[str, list[float]]  # KIND_SCORE to a value for each question


def recipe(steps: int, seed: int, reference: Reference = Reference.IMAGE) -> RunSettings:
    """The zoo's adapter, trained for so many steps."""
    run = settings_of(steps, reference)
    every = dataclasses.replace(
        run.train, seed=seed, warmup=min(200, steps // 5), val_every=0, sample_every=0, sample_records=0
    )
    return dataclasses.replace(run, train=dataclasses.replace(every, ema_decay=0.99 if steps < 4000 else 0.999))


def with_tokens(change: Callable[[TokenSettings], TokenSettings]) -> Callable[[int, int], RunSettings]:
    """A recipe with other scoring."""

    def changed(steps: int, seed: int) -> RunSettings:
        run = recipe(steps, seed)
        method = dataclasses.replace(run.method, tokens=change(run.method.tokens))
        return dataclasses.replace(run, method=method)

    return changed


def with_init(init: KVInit) -> Callable[[int, int], RunSettings]:
    """A recipe with another beginning of the keys and values."""

    def changed(steps: int, seed: int) -> RunSettings:
        run = recipe(steps, seed)
        method = dataclasses.replace(run.method, attn=dataclasses.replace(run.method.attn, kv_init=init))
        return dataclasses.replace(run, method=method)

    return changed


def with_curriculum(steps: int, seed: int) -> RunSettings:
    """References that are other pictures of the subject come in the second half, more and more of them."""
    run = recipe(steps, seed)
    points = (
        CurriculumPoint(until_step=steps // 2, p_multiview=0.0),
        CurriculumPoint(until_step=steps, p_multiview=4 * run.train.p_multiview),  # so many in all as the recipe has
    )
    return dataclasses.replace(run, train=dataclasses.replace(run.train, p_multiview=0.0, curriculum=points))


VARIANTS: Mapping[str, Callable[[int, int], RunSettings]] = {
    "timestep": recipe,
    "none": with_tokens(lambda tokens: dataclasses.replace(tokens, scoring=False)),
    "text": with_tokens(lambda tokens: dataclasses.replace(tokens, fusion=Fusion.TEXT)),
    "visual": with_tokens(lambda tokens: dataclasses.replace(tokens, fusion=Fusion.VISUAL)),
    "mean": with_tokens(lambda tokens: dataclasses.replace(tokens, fusion=Fusion.MEAN)),
    "crop": lambda steps, seed: recipe(steps, seed, Reference.CROP),
    "init_normal": with_init(KVInit.NORMAL),
    "init_zero_v": with_init(KVInit.ZERO_V),
    "curriculum": with_curriculum,
}


def records_of(work: Path, pictures: int, settings: RunSettings) -> str:
    """The training records of the corpus without what is held out, made by the six stages in this process."""
    corpus = work / "corpus"
    if not (corpus / "truth.parquet").exists():
        asked = CorpusSettings(
            pictures=pictures, per_shard=240, views=3, first=FIRST_SCENE, corrupted=0, leave_out=True
        )
        write_corpus(corpus, asked)
    directory = str(corpus / "shards")
    for line in run_stages(CHAIN, directory, str(work / "stages"), settings, local=True):
        directory = line  # the last one is the directory of the last stage
    return directory


def adapter_of(name: str, seed: int, steps: int, work: Path, pictures: int) -> str:
    """The adapter of a variant and seed, trained if it is not there yet."""
    settings, start = VARIANTS[name](steps, seed), time.monotonic()
    # the corpus and its stages are there after the first time
    result = train(
        records=records_of(work, pictures, settings),
        output=str(work / f"{name}-{seed}-{steps}"),
        base=settings.base,
        image_encoder=None,
        method=settings.method,
        settings=settings.train,
        local=True,
    )
    print(f"{name}, seed {seed}: there after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return result.adapter


def scores_of(adapter: str, questions: Mapping[Kind, Sequence[Case]], kept: Path) -> Scores:
    """The graded scores of an adapter, `KIND_SCORE` to a value for each question; kept in a file."""
    if kept.exists():
        known: Scores = json.loads(kept.read_text())
        return known
    pipeline = RealCustomPipeline.from_pretrained(zoo_path("pipeline"), adapter, zoo_path("image_encoder"))
    pipeline.set_progress_bar_config(disable=True)
    judge, scores = Judge.load(zoo_path("judge")), Scores()
    for kind, cases in questions.items():
        found = graded(judge, answers(customised(pipeline), cases), cases)
        scores |= {f"{kind.value}_{name}": getattr(found, name).tolist() for name in SCORES}
    kept.write_text(json.dumps(scores))
    return scores


def resampled(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means (variants, resamples) of values (variants, seeds, questions).

    Args:
        counts: (resamples, questions), of `drawn_tables.resample`: subjects are drawn for all variants alike; seeds for
            each by itself.
    """
    rng = np.random.default_rng(0)
    variants, seeds, _ = values.shape
    of_seed = np.einsum("vsq,rq->vsr", values, counts) / counts.sum(1)  # (variants, seeds, resamples)
    drawn = rng.integers(0, seeds, (variants, seeds, len(counts)))
    means: np.ndarray = np.take_along_axis(of_seed, drawn, 1).mean(1)
    return means


def rows(scores: Mapping[str, Sequence[Scores]], questions: Mapping[Kind, Sequence[Case]]) -> Iterator[Row]:
    """Means by variant and kind of question; `scores` are those of each seed by variant."""
    for kind, cases in questions.items():
        counts = resample(cases)
        found = {score: of_kind(scores, kind, score) for score in SCORES}
        means = {score: resampled(values, counts) for score, values in found.items()}
        for number, name in enumerate(scores):
            row = {score: ends(found[score][number], means[score][number]) for score in SCORES}
            yield {"variant": name, "kind": kind.value, "seeds": len(scores[name]), "images": len(cases), **row}


def of_kind(scores: Mapping[str, Sequence[Scores]], kind: Kind, score: str) -> np.ndarray:
    """Values (variants, seeds, questions)."""
    return np.array([[seed[f"{kind.value}_{score}"] for seed in seeds] for seeds in scores.values()])


def ends(values: np.ndarray, means: np.ndarray) -> list[float]:
    """Mean, and the ends of its 95 % interval."""
    return [round(float(number), 3) for number in (values.mean(), *np.quantile(means, [0.025, 0.975]))]


def orders(scores: Mapping[str, Sequence[Scores]], questions: Mapping[Kind, Sequence[Case]]) -> Iterator[Row]:
    """Probability of every pairwise order by similarity, and of the whole order of the paper."""
    for kind, cases in questions.items():
        drawn = resampled(of_kind(scores, kind, "similarity"), resample(cases))
        means = dict(zip(scores, drawn, strict=True))
        for one, other in itertools.combinations(means, 2):
            holds = means[one] > means[other]
            yield {"kind": kind.value, "order": [one, other], "probability": round(float(holds.mean()), 3)}
        if set(PAPER) <= set(means):
            falling = [means[one] > means[other] for one, other in itertools.pairwise(PAPER)]
            share = float(np.logical_and.reduce(falling).mean())
            yield {"kind": kind.value, "order": list(PAPER), "probability": round(share, 3)}


def main() -> None:
    """Train what is missing, score it, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="of each training")
    parser.add_argument("--pictures", type=int, default=3000, help="of the corpus")
    parser.add_argument("--images", type=int, default=96, help="questions of each kind")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--variants", choices=VARIANTS, nargs="+", default=list(VARIANTS))
    parser.add_argument("--work", type=Path, default=Path("outputs/trained_ablations"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    questions = {kind: cases_of(kind, options.images) for kind in KINDS}
    scores: dict[str, list[Scores]] = {name: [] for name in options.variants}
    for seed, name in itertools.product(options.seeds, options.variants):
        adapter = adapter_of(name, seed, options.steps, options.work, options.pictures)
        kept = options.work / f"{name}-{seed}-{options.steps}-{options.images}.json"
        scores[name].append(scores_of(adapter, questions, kept))
    asked = f"--steps {options.steps} --pictures {options.pictures} --images {options.images}"
    command = f"python benchmarks/trained_ablations.py {asked}"
    write_table(options.output, "variants", rows(scores, questions), command)
    write_table(options.output, "orders", orders(scores, questions), command)


if __name__ == "__main__":
    main()
