"""The engine under a mixed crowd: our order of steps against what others do, on the same engine and models.

    python benchmarks/serving.py                  # about 15 minutes on two cores
    python benchmarks/serving.py --rounds 1       # a short look
    python benchmarks/serving.py --device cuda

The sprites model that ships, two adapters (the shipped one, and the same weights with other settings). Policies take
turns within a round, in an order that changes from round to round, and ratios are of the same round:
  one_slot          one job at a time
  request_batches   compatible jobs fused before they start
  keyed_steps       step batching with one compatibility key (size, guidance, adapter), first in, first out
  ours              `realcustom.inference.order.LargestStretch`
Eight staggered jobs (20 steps, direct guidance, other prompts, subjects, weights, scopes and adapters) arrive within two
steps of each other. The crowd arrives by a Poisson process at 80 % of what `ours` ends a second when all wait at once: 3
sizes, 4 to 50 steps, 2 guidance modes of 3 weights, 0 to 2 subjects, 2 adapters; seeds are those of the round.

Writes benchmarks/results/serving.json.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import record
import torch
from serving_orders import KeyedSteps, OneSlot, RequestBatches
from synthetic_world import shipped

from realcustom.config import override
from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.inference.engine import Engine
from realcustom.inference.jobs import GenerationJob
from realcustom.inference.order import LargestStretch, Order
from realcustom.pipeline.quickstart.cases import drawn_cases
from realcustom.pipeline.recipes import sprites
from realcustom.sampling import SamplingParams
from realcustom.sprites.world import BACKGROUNDS, NOUNS

RESULTS = record.RESULTS / "serving.json"
ORDERS: dict[str, Callable[[], Order]] = {
    "one_slot": OneSlot,
    "request_batches": RequestBatches,
    "keyed_steps": KeyedSteps,
    "ours": LargestStretch,
}
SIZES = ((32, 32), (32, 48), (48, 48))
STEPS = (4, 8, 20, 50)
LOAD = 0.8
CROWD = 48  # jobs of a round's crowd
CASES = drawn_cases(8)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A job, and when it comes: seconds after the first."""

    at: float
    job: GenerationJob


@dataclass(frozen=True, kw_only=True)
class Served:
    """How a crowd fared."""

    seconds: float  # from the first arrival to the last end
    latencies: list[float]  # of each job, seconds

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def p95(self) -> float:
        return float(np.percentile(self.latencies, 95))


def models(device: str) -> dict[str, RealCustomPipeline]:
    """The shipped adapter, whose guidance is cascade, and its weights once more with direct guidance and other masks."""
    first = shipped().to(device)
    adapter = sprites().adapter
    assert adapter is not None
    second = first.with_adapter(adapter)
    changes = {"guidance": {"mode": "direct"}, "mask": {"source": "previous", "influence_scope": 0.3}}
    second.settings = override(second.settings, changes)
    return {"first": first, "second": second}


def serve(pipelines: dict[str, RealCustomPipeline], order: Order, crowd: Sequence[Arrival], threads: int) -> Served:
    """Send the jobs at their times, whatever the engine does, and wait for all."""
    engine = Engine(
        pipelines["first"],
        adapter={"sha256": "first"},
        max_queue=10_000,
        deadline_seconds=1e6,
        threads=threads,
        order=order,
    )
    engine.add_adapter("second", pipelines["second"])
    ends: dict[int, float] = {}
    done = threading.Semaphore(0)
    came: list[float] = []
    start = time.monotonic()
    for number, arrival in enumerate(crowd):
        time.sleep(max(0.0, start + arrival.at - time.monotonic()))
        came.append(start + arrival.at)
        ticket = engine.submit(arrival.job)

        def ended(future: object, number: int = number) -> None:
            ends[number] = time.monotonic()
            done.release()

        ticket.future.add_done_callback(ended)
        ticket.future.add_done_callback(lambda future: future.result())
    for _ in crowd:
        done.acquire()
    engine.close()
    latencies = [ends[number] - came[number] for number in range(len(crowd))]
    return Served(seconds=max(ends.values()) - start, latencies=latencies)


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


def eight_prompts(pipeline: RealCustomPipeline, threads: int) -> float:
    """Seconds of one call of the pipeline with eight prompts of the same kind, in a thread as the engine's.

    This process's own thread must have no pool of threads: with more threads than cores OpenMP's barriers sleep.
    """
    seconds: list[float] = []

    def call() -> None:
        torch.set_num_threads(threads)
        for _ in range(2):  # the first makes the thread's pool
            start = time.monotonic()
            pipeline(
                [case.prompt for case in CASES], [[subject(number)] for number in range(8)], num_inference_steps=20
            )
            seconds.append(time.monotonic() - start)
        torch.set_num_threads(1)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return seconds[-1]


def short_behind_long(pipelines: dict[str, RealCustomPipeline], threads: int) -> float:
    """Seconds of a 4-step job behind four of 50 steps, over its seconds alone."""

    def job(steps: int, number: int) -> GenerationJob:
        sampling = SamplingParams(seed=number, num_inference_steps=steps)
        return GenerationJob(
            prompt=CASES[number].prompt, subjects=(subject(number),), sampling=sampling, adapter="second"
        )

    short = Arrival(at=0.0, job=job(4, 0))
    alone = statistics.median(serve(pipelines, LargestStretch(), [short], threads).latencies[0] for _ in range(3))
    crowd = [Arrival(at=0.0, job=job(50, number)) for number in range(1, 5)]
    behind = serve(pipelines, LargestStretch(), [*crowd, Arrival(at=1.0, job=short.job)], threads).latencies[-1]
    return behind / alone


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of torch, in each of the engine's threads")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipelines = models(arguments.device)
    values: dict[str, list[float]] = {}

    def note(metric: str, value: float) -> None:
        values.setdefault(metric, []).append(value)
        print(f"{metric}: {value:.3f}", file=sys.stderr)

    names = list(ORDERS)
    serve(pipelines, LargestStretch(), staggered(random.Random(0)), arguments.threads)  # warms up
    for number in range(arguments.rounds):
        turns = names[number % 4 :] + names[: number % 4]
        eight = {
            name: serve(pipelines, ORDERS[name](), staggered(random.Random(number)), arguments.threads)
            for name in turns
        }
        batch = eight_prompts(pipelines["second"], arguments.threads)
        note("serve_batching_gain", eight["ours"].per_second / eight["one_slot"].per_second)
        note("serve_batching_gain_request_batches", eight["request_batches"].per_second / eight["one_slot"].per_second)
        note("serve_batching_gain_keyed_steps", eight["keyed_steps"].per_second / eight["one_slot"].per_second)
        note("serve_batch_efficiency", batch / eight["ours"].seconds)
        note("serve_short_behind_long", short_behind_long(pipelines, arguments.threads))
        burst = serve(pipelines, LargestStretch(), mixed(random.Random(number), CROWD, None), arguments.threads)
        note("serve_capacity_jobs_per_second", burst.per_second)
        crowd = mixed(random.Random(number), CROWD, LOAD * burst.per_second)
        peers = [name for name in turns if name in ("keyed_steps", "ours")]  # the others end far fewer a second
        shown = {name: serve(pipelines, ORDERS[name](), crowd, arguments.threads) for name in peers}
        note("serve_gain_vs_keyed", shown["ours"].per_second / shown["keyed_steps"].per_second)
        note("serve_p95_vs_keyed", shown["ours"].p95 / shown["keyed_steps"].p95)
        for name, served in shown.items():
            note(f"serve_crowd_{name}_jobs_per_second", served.per_second)
            note(f"serve_crowd_{name}_p95_seconds", served.p95)
    if arguments.dry:
        return
    commit = record.head() if record.is_clean(["realcustom", "inference", "benchmarks"]) else "uncommitted"
    units = {"_seconds": "s", "_per_second": "1/s"}
    records = [
        record.record(
            metric,
            statistics.median(found),
            next((unit for end, unit in units.items() if metric.endswith(end)), "ratio"),
            n=len(found),
            spread=(min(found), max(found)),
            command="python benchmarks/serving.py",
            commit=commit,
        )
        for metric, found in values.items()
    ]
    record.write(RESULTS, records)


if __name__ == "__main__":
    main()
