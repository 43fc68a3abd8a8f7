"""The endpoint as clients see it: overhead, previews, cancellation, fuzzing, memory; on Ray Serve over loopback.

    python benchmarks/serving_http.py                      # about 25 minutes on two quiet cores
    python benchmarks/serving_http.py --only overhead --only preview
    python benchmarks/serving_http.py --only cancel --cancels 20 --dry    # a short look

`overhead`: a request of 20 steps over HTTP and the same job in an engine of this process, PNG included, by turns; the two
engines never work at the same time. `preview`: streams while eight others run; the client's own steps before its first
preview, those among them that were done while it was sent. `cancel`: jobs of an engine, four at a time, that are cancelled at
random moments; steps that end after the cancellation, that of the moment itself among them. `fuzz`: schemathesis
on the document, all phases and checks, 3 seeds: answers of 5xx or of a status that the document does not name. `soak`: PSS of
the process tree after 10,000 small requests, half of them with a subject, over that after 500 (`--soak N` for fewer).

Writes benchmarks/results/serving_http.json.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np
import ray
import record
from process_tree import tree_pss
from serving import models
from serving_crowds import CASES, subject

from realcustom.inference.client import encode
from realcustom.inference.engine import Engine
from realcustom.inference.errors import Cancelled
from realcustom.inference.images import encode_picture
from realcustom.inference.jobs import GenerationJob
from realcustom.inference.settings import ServeSettings
from realcustom.inference.starting import start, stop
from realcustom.pipeline.cluster import start_local
from realcustom.pipeline.local_cluster import free_ports
from realcustom.pipeline.recipes import sprites
from realcustom.sampling import SamplingParams

RESULTS = record.RESULTS / "serving_http.json"
CONFIG = record.ROOT / "tests" / "inference" / "schemathesis.toml"
GENERATIONS = "/v1/images/generations"
PICTURES = [encode(case.reference) for case in CASES]
THREADS = 2
SEEDS = (1, 2, 3)  # of fuzz


def request(steps: int = 20, seed: int = 1, case: int = 0, **more: Any) -> dict[str, Any]:
    """A request with a subject of the synthetic world."""
    return {
        "prompt": CASES[case].prompt,
        "subjects": [{"image": PICTURES[case], "word": CASES[case].target_word}],
        "num_inference_steps": steps,
        "seed": seed,
        **more,
    }


def job(steps: int, seed: int = 1) -> GenerationJob:
    """The same for an engine."""
    sampling = SamplingParams(seed=seed, num_inference_steps=steps)
    return GenerationJob(prompt=CASES[0].prompt, subjects=(subject(0),), sampling=sampling, adapter="first")


def own_engine() -> Engine:
    return Engine(models("cpu")["first"], adapter={"sha256": "first"}, max_queue=100, threads=THREADS)


def overhead(url: str, pairs: int) -> list[float]:
    """Ratios of paired seconds."""
    engine, ratios = own_engine(), []

    def direct() -> None:
        generation = engine.submit(job(20)).future.result()
        encode_picture(generation.images[0])

    with httpx.Client(base_url=url, timeout=120.0) as client:

        def over_http() -> None:
            client.post(GENERATIONS, json=request()).raise_for_status()

        for side in (direct, over_http):
            side()
        for number in range(pairs):
            seconds: dict[Callable[[], None], float] = {}
            for side in (direct, over_http) if number % 2 else (over_http, direct):
                began = time.perf_counter()
                side()
                seconds[side] = time.perf_counter() - began
            ratios.append(seconds[over_http] / seconds[direct])
    engine.close()
    return ratios


def steps_before_preview(url: str, streams: int) -> list[float]:
    """Of each stream: its steps up to the first preview, while eight other requests run."""
    stopped = threading.Event()

    def crowd(number: int) -> None:
        with httpx.Client(base_url=url, timeout=300.0) as client:
            while not stopped.is_set():
                client.post(GENERATIONS, json=request(20, seed=number, case=number)).raise_for_status()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = [pool.submit(crowd, number) for number in range(8)]
        found = [float(_steps_of(url, 100 + number)) for number in range(streams)]
        stopped.set()
        for one in running:
            one.result()
    return found


def _steps_of(url: str, seed: int) -> int:
    """Steps that a stream's job had done when its first preview was sent.

    They are counted from the next event of a step. Of steps that are done while an event is sent the stream tells the last one
    alone, so a preview that came late counts as late.
    """
    body, seen = request(20, seed=seed, stream=True, partial_images=3), False
    with httpx.stream("POST", url + GENERATIONS, json=body, timeout=300.0) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: "):
                continue
            event = json.loads(line.removeprefix("data: "))
            if seen and event["type"] == "realcustom.step":
                return int(event["step"]) - 1
            seen = seen or event["type"] == "image_generation.partial_image"
    raise RuntimeError("the stream ended without a step after its first preview")


def steps_after_cancel(jobs: int) -> list[float]:
    """Of each of so many jobs that were cancelled before their end: the steps that ended afterwards."""
    engine = own_engine()

    def attempt(chance: random.Random) -> float | None:
        told: list[float] = []
        ticket = engine.submit(job(8), lambda progress: told.append(time.monotonic()))
        time.sleep(chance.random() * 0.3)
        at = time.monotonic()
        ticket.cancel()
        try:
            ticket.future.result(60)
        except Cancelled:
            return float(sum(ended > at for ended in told))
        return None  # it was done before

    def cancelled(chance: random.Random) -> float:
        while (steps := attempt(chance)) is None:
            pass
        return steps

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(cancelled, [random.Random(number) for number in range(jobs)]))
    assert engine.submit(job(1)).future.result(60).images
    engine.close()
    return found


def fuzz(url: str) -> int:
    """Faults that schemathesis finds with three seeds."""
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            program = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"]
            options = ["--checks", "all", "--seed", str(seed), "--max-examples", "6", "--warnings", "off", "--no-color"]
            done = subprocess.run(
                [*program, f"{url}/openapi.json", *options], cwd=folder, capture_output=True, text=True, timeout=900
            )
            faults += done.stdout.count("\n- ") if done.returncode else 0
            if done.returncode:
                print(done.stdout[-3000:], file=sys.stderr)
                faults = max(faults, 1)
    return faults


def soak(url: str, requests: int) -> float:
    """PSS of this process's tree after all requests over that after the first 500, or a twentieth of them."""
    first, began = min(500, requests // 20), time.monotonic()
    bodies = [request(1, case=case, size="16x16") for case in range(8)]
    bodies += [{name: value for name, value in body.items() if name != "subjects"} for body in bodies]
    with httpx.Client(base_url=url, timeout=300.0) as client, concurrent.futures.ThreadPoolExecutor(32) as pool:

        def send(number: int) -> None:
            client.post(GENERATIONS, json=bodies[number % len(bodies)] | {"seed": number}).raise_for_status()
            if (number + 1) % 500 == 0:
                print(f"soak: {number + 1} requests, {time.monotonic() - began:.0f} s", file=sys.stderr)

        list(pool.map(send, range(first)))
        early = tree_pss(os.getpid())
        list(pool.map(send, range(first, requests)))
        late = tree_pss(os.getpid())
    print(f"soak: {early / 1e6:.0f} MB after {first} requests, {late / 1e6:.0f} MB after {requests}", file=sys.stderr)
    return late / early


def measure_server(wanted: Sequence[str], sizes: argparse.Namespace) -> dict[str, list[float]]:
    """Values of what is measured on a server, by part."""
    parts: dict[str, Callable[[str], list[float]]] = {
        "overhead": lambda url: overhead(url, sizes.pairs),
        "preview": lambda url: steps_before_preview(url, sizes.streams),
        "fuzz": lambda url: [float(fuzz(url))],
        "soak": lambda url: [soak(url, sizes.soak)],
    }
    values: dict[str, list[float]] = {}
    for name in [name for name in parts if name in wanted]:  # each on a server of its own: memory grows from nothing
        start_local(num_cpus=4)
        settings = ServeSettings(port=free_ports(1)[0], threads=THREADS, device="cpu", max_queue=64)
        recipe = sprites()
        url = start(settings, recipe.base, recipe.adapter, recipe.method.image_encoder.model)
        try:
            values[name] = parts[name](url)
        finally:
            stop()
            ray.shutdown()
    return values


METRICS: dict[str, tuple[str, str, Callable[[Sequence[float]], float]]] = {
    "overhead": ("serve_overhead", "ratio", statistics.median),
    "preview": ("serve_first_preview_steps", "steps", max),
    "cancel": ("serve_cancel_steps", "steps", max),
    "fuzz": ("serve_fuzz_5xx", "count", sum),
    "soak": ("serve_soak_growth", "ratio", statistics.median),
}


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(METRICS), action="append", help="measure just this (repeatable)")
    parser.add_argument("--pairs", type=int, default=31, help="of overhead")
    parser.add_argument("--streams", type=int, default=100, help="of preview")
    parser.add_argument("--cancels", type=int, default=1000, help="of cancel")
    parser.add_argument("--soak", type=int, default=10_000, help="requests of soak")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    wanted = arguments.only or tuple(METRICS)
    values: dict[str, list[float]] = {}
    if "cancel" in wanted:
        values["cancel"] = steps_after_cancel(arguments.cancels)
    values |= measure_server(wanted, arguments)
    commit = record.commit_of(["realcustom", "inference", "benchmarks/*.py"])
    records = []
    for part, found in values.items():
        metric, unit, summary = METRICS[part]
        records.append(
            record.record(
                metric,
                summary(found),
                unit,
                n=len(SEEDS) if part == "fuzz" else len(found),
                spread=(float(np.percentile(found, 5)), float(np.percentile(found, 95))),
                command=f"python benchmarks/serving_http.py --only {part}",
                commit=commit,
            )
        )
        print(f"{metric}: {records[-1]['value']} {unit} {records[-1]['spread']} n={len(found)}", file=sys.stderr)
    if not arguments.dry:
        record.write(RESULTS, records)


if __name__ == "__main__":
    main()
