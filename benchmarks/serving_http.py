"""The endpoint as clients see it: overhead, previews, cancellation, fuzzing, memory; on Ray Serve over loopback.

    python benchmarks/serving_http.py                      # about 25 minutes on two quiet cores
    python benchmarks/serving_http.py --only overhead --only preview

`overhead`: a request of 20 steps over HTTP and the same job in an engine of this process, PNG included, by turns; the two
engines never work at the same time. `preview`: streams while eight others run; the client's own steps before its first
preview. `cancel`: jobs of an engine that are cancelled at random moments; steps after the cancellation. `fuzz`: schemathesis
on the document, all phases and checks, 3 seeds: answers of 5xx or of a status that the document does not name. `soak`: PSS of
the process tree after 10,000 requests over that after 500 (`--soak N` for fewer).

Writes benchmarks/results/serving_http.json.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import ray
import record
from process_tree import tree_pss
from serving import CASES, models, subject

from realcustom.inference.client import encode
from realcustom.inference.engine import Engine
from realcustom.inference.errors import RequestError
from realcustom.inference.images import encode_picture
from realcustom.inference.jobs import GenerationJob
from realcustom.inference.settings import ServeSettings
from realcustom.inference.starting import start, stop
from realcustom.pipeline.recipes import sprites
from realcustom.sampling import SamplingParams

RESULTS = record.RESULTS / "serving_http.json"
CONFIG = record.ROOT / "tests" / "inference" / "schemathesis.toml"
GENERATIONS = "/v1/images/generations"
THREADS = 2


def request(steps: int = 20, seed: int = 1, case: int = 0, **more: Any) -> dict[str, Any]:
    """A request with a subject of the synthetic world."""
    picture = encode(CASES[case].reference)
    return {
        "prompt": CASES[case].prompt,
        "subjects": [{"image": picture, "word": CASES[case].target_word}],
        "num_inference_steps": steps,
        "seed": seed,
        **more,
    }


def job(steps: int, seed: int = 1) -> GenerationJob:
    """The same for an engine."""
    sampling = SamplingParams(seed=seed, num_inference_steps=steps)
    return GenerationJob(prompt=CASES[0].prompt, subjects=(subject(0),), sampling=sampling, adapter="first")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
                client.post(GENERATIONS, json=request(20, seed=number, case=number))

    found = []
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = [pool.submit(crowd, number) for number in range(8)]
        for number in range(streams):
            body = request(20, seed=100 + number, stream=True, partial_images=3)
            steps = 0
            with httpx.stream("POST", url + GENERATIONS, json=body, timeout=300.0) as answer:
                for line in answer.iter_lines():
                    steps += line == "event: realcustom.step"
                    if line == "event: image_generation.partial_image":
                        break
            found.append(float(steps))
        stopped.set()
        for one in running:
            one.result()
    return found


def steps_after_cancel(jobs: int) -> list[float]:
    """Of each job that was cancelled while it ran: the steps that it was told of afterwards."""
    engine, chance, found = own_engine(), random.Random(0), []
    for _ in range(jobs):
        told: list[int] = []
        ticket = engine.submit(job(8), lambda progress, told=told: told.append(progress.step))  # type: ignore[misc]
        time.sleep(chance.random() * 0.2)
        ticket.cancel()
        before = len(told)
        try:
            ticket.future.result(60)
        except RequestError:
            found.append(float(len(told) - before))
    assert engine.submit(job(1)).future.result(60).images
    engine.close()
    return found


def fuzz(url: str) -> int:
    """Faults that schemathesis finds with three seeds."""
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in (1, 2, 3):
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
    first = min(500, requests // 20)
    with httpx.Client(base_url=url, timeout=300.0) as client, concurrent.futures.ThreadPoolExecutor(4) as pool:

        def send(number: int) -> None:
            client.post(GENERATIONS, json=request(1, seed=number, case=number % 8)).raise_for_status()

        list(pool.map(send, range(first)))
        early = tree_pss(os.getpid())
        list(pool.map(send, range(first, requests)))
        late = tree_pss(os.getpid())
    return late / early


def measure_server(wanted: Sequence[str], pairs: int, requests: int) -> dict[str, tuple[str, list[float]]]:
    """Unit and values of what is measured on a server."""
    values: dict[str, tuple[str, list[float]]] = {}
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    settings = ServeSettings(port=free_port(), threads=THREADS, device="cpu", max_queue=64)
    recipe = sprites()
    url = start(settings, recipe.base, recipe.adapter, recipe.method.image_encoder.model)
    try:
        if "overhead" in wanted:
            values["serve_overhead"] = "ratio", overhead(url, pairs)
        if "preview" in wanted:
            values["serve_first_preview_steps"] = "steps", steps_before_preview(url, 100)
        if "fuzz" in wanted:
            values["serve_fuzz_5xx"] = "count", [float(fuzz(url))]
        if "soak" in wanted:
            values["serve_soak_growth"] = "ratio", [soak(url, requests)]
    finally:
        stop()
        ray.shutdown()
    return values


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("overhead", "preview", "cancel", "fuzz", "soak")
    parser.add_argument("--only", choices=names, action="append", help="measure just this (repeatable)")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--soak", type=int, default=10_000)
    arguments = parser.parse_args()
    wanted = arguments.only or names
    values: dict[str, tuple[str, list[float]]] = {}
    if "cancel" in wanted:
        values["serve_cancel_steps"] = "steps", [max(steps_after_cancel(1000))]
    if set(wanted) - {"cancel"}:
        values |= measure_server(wanted, arguments.pairs, arguments.soak)
    commit = record.head() if record.is_clean(["realcustom", "inference", "benchmarks"]) else "uncommitted"
    records = []
    for metric, (unit, found) in values.items():
        value = max(found) if metric == "serve_first_preview_steps" else statistics.median(found)
        records.append(
            record.record(
                metric,
                value,
                unit,
                n={"serve_cancel_steps": 1000, "serve_fuzz_5xx": 3}.get(metric, len(found)),
                spread=(min(found), max(found)),
                command="python benchmarks/serving_http.py",
                commit=commit,
            )
        )
        print(f"{metric}: {records[-1]['value']} {unit} {records[-1]['spread']}", file=sys.stderr)
    record.write(RESULTS, records)


if __name__ == "__main__":
    main()
