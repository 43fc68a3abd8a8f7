"""The jobs that serving's benchmarks send to an engine, and when they come."""

from __future__ import annotations

import random
from dataclasses import dataclass

from realcustom.diffusion_pipeline import Subject
from realcustom.inference.jobs import GenerationJob
from realcustom.pipeline.quickstart.cases import drawn_cases
from realcustom.sampling import SamplingParams
from realcustom.sprites.world import BACKGROUNDS, NOUNS

SIZES = ((32, 32), (32, 48), (48, 48))
STEPS = (4, 8, 20, 50)
CASES = drawn_cases(8)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A job, and when it comes: seconds after the first."""

    at: float
    job: GenerationJob


def subject(case: int, scope: float | None = None) -> Subject:
    return Subject(image=CASES[case].reference, word=CASES[case].target_word, scope=scope)


def staggered(chance: random.Random) -> list[Arrival]:
    """Eight jobs of 20 steps and one size: other prompts, subjects, weights, scopes and quantities, direct guidance."""
    return [
        Arrival(
            at=0.01 * number,
            job=GenerationJob(
                prompt=CASES[number].prompt,
                subjects=(subject(number, chance.choice((0.2, 0.3, 0.4))),),
                sampling=SamplingParams(
                    seed=chance.randrange(10**6),
                    num_inference_steps=20,
                    subject_guidance_scale=chance.choice((2.0, 3.0, 4.0)),
                    influence_quantity=chance.choice((0.6, 0.8, 1.0)),
                ),
                adapter="second",
            ),
        )
        for number in range(8)
    ]


def mixed(chance: random.Random, count: int, per_second: float | None) -> list[Arrival]:
    """A Poisson process of jobs that differ in everything; None = all come at once."""
    arrivals, at = [], 0.0
    for _ in range(count):
        number = chance.randrange(len(CASES))
        case, other = CASES[number], chance.choice(NOUNS)
        height, width = chance.choice(SIZES)
        subjects, prompt = [subject(number)], case.prompt
        kind = chance.choice((0, 1, 1, 1, 2))
        if kind == 2 and other != case.target_word:
            prompt = f"a {case.target_word} and a {other} on {chance.choice(BACKGROUNDS)}"
            subjects.append(Subject(image=CASES[(number + 1) % len(CASES)].reference, word=other))
        sampling = SamplingParams(
            seed=chance.randrange(10**6),
            num_inference_steps=chance.choice(STEPS),
            height=height,
            width=width,
            subject_guidance_scale=chance.choice((2.0, 3.0, 4.0)) if kind else None,
        )
        job = GenerationJob(
            prompt=prompt,
            subjects=tuple(subjects) if kind else (),
            sampling=sampling,
            adapter=chance.choice(("first", "second")),
        )
        arrivals.append(Arrival(at=at, job=job))
        if per_second is not None:
            at += chance.expovariate(per_second)
    return arrivals
