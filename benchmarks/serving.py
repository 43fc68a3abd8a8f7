"""The engine under a mixed crowd: our order of steps against what others do, on the same engine and models.

    python benchmarks/serving.py                  # about 15 minutes on two cores
    python benchmarks/serving.py --only efficiency
    python benchmarks/serving.py --rounds 1 --dry    # a short look
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
from serving_crowds import CASES, Arrival, mixed, staggered, subject
from serving_orders import KeyedSteps, OneSlot, RequestBatches
from synthetic_world import shipped

from realcustom.config import override
from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.inference.engine import Engine
from realcustom.inference.jobs import GenerationJob
from realcustom.inference.order import LargestStretch, Order
from realcustom.pipeline.recipes import sprites
from realcustom.sampling import SamplingParams

RESULTS = record.RESULTS / "serving.json"
ORDERS: dict[str, Callable[[], Order]] = {
    "one_slot": OneSlot,
    "request_batches": RequestBatches,
    "keyed_steps": KeyedSteps,
    "ours": LargestStretch,
}
LOAD = 0.8
CROWD = 48  # jobs of a round's crowd


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


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the parts share."""

    pipelines: dict[str, RealCustomPipeline]
    threads: int
    note: Callable[[str, float], None]

    def run(self, name: str, crowd: Sequence[Arrival]) -> Served:
        """A crowd under one of `ORDERS`."""
        return serve(self.pipelines, ORDERS[name](), crowd, self.threads)

    def efficiency(self, number: int) -> None:
        """Eight staggered jobs, and one call with eight prompts, by turns."""
        seconds: dict[str, float] = {}
        for side in ("ours", "batch") if number % 2 else ("batch", "ours"):
            if side == "ours":
                seconds[side] = self.run("ours", staggered(random.Random(number))).seconds
            else:
                seconds[side] = eight_prompts(self.pipelines["second"], self.threads)
        self.note("serve_batch_efficiency", seconds["batch"] / seconds["ours"])

    def gain(self, number: int) -> None:
        """Eight staggered jobs under each order."""
        eight = {name: self.run(name, staggered(random.Random(number))) for name in turns(list(ORDERS), number)}
        for name, served in eight.items():
            if name != "one_slot":
                metric = "serve_batching_gain" + ("" if name == "ours" else f"_{name}")
                self.note(metric, served.per_second / eight["one_slot"].per_second)

    def short(self, number: int) -> None:
        """A short job behind long ones."""
        self.note("serve_short_behind_long", short_behind_long(self.pipelines, self.threads))

    def crowd(self, number: int) -> None:
        """A mixed crowd at 80 % of what ours can do."""
        burst = self.run("ours", mixed(random.Random(number), CROWD, None))
        self.note("serve_capacity_jobs_per_second", burst.per_second)
        crowd = mixed(random.Random(number), CROWD, LOAD * burst.per_second)
        peers = turns(["keyed_steps", "ours"], number)  # the others end far fewer a second
        shown = {name: self.run(name, crowd) for name in peers}
        self.note("serve_gain_vs_keyed", shown["ours"].per_second / shown["keyed_steps"].per_second)
        self.note("serve_p95_vs_keyed", shown["ours"].p95 / shown["keyed_steps"].p95)
        for name, served in shown.items():
            self.note(f"serve_crowd_{name}_jobs_per_second", served.per_second)
            self.note(f"serve_crowd_{name}_p95_seconds", served.p95)


PARTS: dict[str, tuple[Callable[[Bench, int], None], int]] = {  # and rounds
    "efficiency": (Bench.efficiency, 15),
    "gain": (Bench.gain, 5),
    "short": (Bench.short, 5),
    "crowd": (Bench.crowd, 3),
}


def turns(names: Sequence[str], number: int) -> list[str]:
    """The order in which the sides of a round run: each is first in its turn."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(PARTS), action="append", help="measure just this (repeatable)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, help="of each part")
    parser.add_argument("--threads", type=int, default=2, help="of torch, in each of the engine's threads")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    values: dict[str, tuple[str, list[float]]] = {}  # by metric: the part that measures it
    pipelines = models(arguments.device)
    serve(pipelines, LargestStretch(), staggered(random.Random(0)), arguments.threads)  # warms up
    for part in arguments.only or PARTS:

        def note(metric: str, value: float, part: str = part) -> None:
            values.setdefault(metric, (part, []))[1].append(value)
            print(f"{metric}: {value:.3f}", file=sys.stderr)

        run, rounds = PARTS[part]
        for number in range(arguments.rounds or rounds):
            run(Bench(pipelines=pipelines, threads=arguments.threads, note=note), number)
    if arguments.dry:
        return
    commit = record.commit_of(["realcustom", "inference", "benchmarks/*.py"])
    units = {"_seconds": "s", "_per_second": "1/s"}
    records = [
        record.record(
            metric,
            statistics.median(found),
            next((unit for end, unit in units.items() if metric.endswith(end)), "ratio"),
            n=len(found),
            spread=(float(np.percentile(found, 5)), float(np.percentile(found, 95))),
            command=f"python benchmarks/serving.py --only {part}",
            commit=commit,
        )
        for metric, (part, found) in values.items()
    ]
    record.write(RESULTS, records)


if __name__ == "__main__":
    main()
