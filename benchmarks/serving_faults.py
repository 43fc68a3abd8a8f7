"""The endpoint when an engine is killed, and when four times as much is asked as it can do; on Ray Serve over loopback.

    python benchmarks/serving_faults.py                        # about 25 minutes
    python benchmarks/serving_faults.py --only recover
    python benchmarks/serving_faults.py --only recover --rounds 1 --dry    # a short look
    python benchmarks/serving_faults.py --only overload --seconds 60

`recover`: two engines; one that draws four requests gets SIGKILL. Seconds until the last of them is answered (503, with
Retry-After), until another request that is sent at that moment is (200), and until both engines run again, less the seconds in
which a process loads the models.
`overload`: requests arrive by a Poisson process at four times the rate at which eight clients in turn are served, each with a
deadline; nobody waits for answers. `overload_killed`: the same, and in the middle one of the engines gets SIGKILL. Answers by
status, the seconds of those that were drawn and of those that were refused, how many were late (408) and how many found no engine
(503), and those that are lost: no answer, one of another request, or another status.

Writes benchmarks/results/serving_faults.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import psutil
import ray
import record
from serving_http import GENERATIONS, request

sys.path.append(str(record.ROOT))  # the tests are not installed

from realcustom.inference.app import ENGINE
from realcustom.inference.routing import STATS_SECONDS
from realcustom.inference.settings import ServeSettings
from realcustom.inference.starting import start, stop
from realcustom.pipeline.cluster import start_local
from realcustom.pipeline.local_cluster import free_ports
from realcustom.pipeline.recipes import sprites
from tests.support.replicas import replicas, running_engines

RESULTS = record.RESULTS / "serving_faults.json"
OFFERED = 4.0  # times the capacity
DEADLINE = 10.0  # seconds, of each request
CAPACITY_SECONDS = 15.0  # for which the capacity is measured
STEPS = 8
IN_FLIGHT = 4  # requests of an engine that is killed
LOAD = """
import time
began = time.perf_counter()
from realcustom.inference.loading import load_engine
from realcustom.inference.adapters import find_models
from realcustom.inference.settings import ServeSettings
from realcustom.pipeline.recipes import sprites
recipe = sprites()
model = find_models(recipe.base, recipe.adapter, ())[0]
load_engine(ServeSettings(device="cpu"), recipe.base, model, recipe.method.image_encoder.model).close()
print(time.perf_counter() - began)
"""
Note = Callable[[str, float], None]


def busiest() -> psutil.Process:
    """The engine that draws."""
    before = {one: one.cpu_times().user for one in replicas(ENGINE)}
    time.sleep(1.0)
    return max(before, key=lambda one: one.cpu_times().user - before[one])


def post(url: str, body: dict[str, Any], status: int) -> float:
    """When the answer came, which must have this status; a 503 says when to try again."""
    answer = httpx.post(url + GENERATIONS, json=body, timeout=120.0)
    came = time.monotonic()
    if answer.status_code != status or (status == 503 and "Retry-After" not in answer.headers):
        raise RuntimeError(f"{answer.status_code} {answer.headers} in the place of {status}: {answer.text[:500]}")
    return came


def of_one_engine(url: str, number: int) -> list[dict[str, Any]]:
    """Long requests of a subject that one of the engines holds: all go there."""
    body = request(400, seed=number)
    [subject] = body["subjects"]
    answer = httpx.post(f"{url}/v1/subjects", json={"image": subject["image"]}, timeout=60.0).raise_for_status()
    time.sleep(2 * STATS_SECONDS)  # until the router knows which one
    subjects = [{"id": answer.json()["id"], "word": subject["word"]}]
    return [body | {"seed": seed, "subjects": subjects} for seed in range(IN_FLIGHT)]


def recover(url: str, rounds: int, note: Note) -> None:
    """Kill engines that draw, one at a time."""
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
    load = float(done.stdout.split()[-1])
    note("serve_model_load_seconds", load)
    for number in range(rounds):
        with ThreadPoolExecutor(IN_FLIGHT + 1) as pool:
            drawing = [pool.submit(post, url, body, 503) for body in of_one_engine(url, number)]
            time.sleep(1.0)
            engine = busiest()
            killed = time.monotonic()
            engine.kill()
            other = pool.submit(post, url, request(1), 200)
            note("serve_recover_seconds", max(one.result() for one in drawing) - killed)
            note("serve_recover_others_seconds", other.result() - killed)
        while running_engines() == 2:  # until Serve has noticed
            time.sleep(0.02)
        while running_engines() < 2:
            time.sleep(0.02)
        note("serve_recover_full_over_load_seconds", time.monotonic() - killed - load)
        time.sleep(2.0)  # until the router knows the new one


@dataclass(kw_only=True)
class Offer:
    """What was asked and answered."""

    seconds: dict[int, list[float]] = field(default_factory=dict)  # of answers, by status
    lost: Counter[str] = field(default_factory=Counter)  # by what happened
    asked: int = 0

    def percentile(self, status: int, percent: float) -> float:
        return float(np.percentile(self.seconds.get(status, [0.0]), percent))


async def ask(client: httpx.AsyncClient, body: bytes, number: int, offer: Offer) -> None:
    """One request; its answer has its id and its seed."""
    name, began = f"offer-{number}", time.monotonic()
    try:
        headers = {"X-Request-Id": name, "Content-Type": "application/json"}
        answer = await client.post(GENERATIONS, content=body, headers=headers)
    except httpx.HTTPError as error:
        offer.lost[type(error).__name__] += 1
        return
    if answer.headers.get("X-Request-Id") != name:
        offer.lost["another's answer"] += 1
    elif answer.status_code not in (200, 408, 429, 503):
        offer.lost[str(answer.status_code)] += 1
    elif answer.status_code == 200 and [one["seed"] for one in answer.json()["data"]] != [number]:
        offer.lost["another's image"] += 1
    else:
        offer.seconds.setdefault(answer.status_code, []).append(time.monotonic() - began)


def bodies(numbers: range) -> list[bytes]:
    """Requests with these seeds."""
    return [json.dumps(request(STEPS, seed=n, case=n % 8, deadline_seconds=DEADLINE)).encode() for n in numbers]


def capacity(url: str, seconds: float) -> float:
    """Requests a second of eight clients in turn."""
    end, done = time.monotonic() + seconds, []

    def client(number: int) -> None:
        with httpx.Client(base_url=url, timeout=60.0) as session:
            while time.monotonic() < end:
                session.post(GENERATIONS, json=request(STEPS, seed=number, case=number)).raise_for_status()
                done.append(number)

    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client, range(8)))
    return len(done) / (time.monotonic() - began)


def overload(url: str, per_second: float, seconds: float, kill: bool) -> Offer:
    """Ask at this rate for so long; half-way an engine is killed if `kill`."""
    offer, chance = Offer(), random.Random(0)
    ready = bodies(range(int(per_second * seconds * 1.5)))

    async def run() -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        async with httpx.AsyncClient(base_url=url, timeout=DEADLINE + 60, limits=limits) as client:
            asked, began, at, killed = [], time.monotonic(), 0.0, not kill
            while at < seconds and offer.asked < len(ready):
                await asyncio.sleep(max(0.0, began + at - time.monotonic()))
                if not killed and at > seconds / 2:
                    killed = True
                    replicas(ENGINE)[0].kill()
                asked.append(asyncio.create_task(ask(client, ready[offer.asked], offer.asked, offer)))
                offer.asked += 1
                at += chance.expovariate(per_second)
            await asyncio.gather(*asked)

    asyncio.run(run())
    answered = sum(map(len, offer.seconds.values()))
    offer.lost["unanswered"] += offer.asked - answered - sum(offer.lost.values())
    return offer


def note_offer(name: str, offer: Offer, note: Note) -> None:
    """Tell of an overload."""
    counts = {status: len(found) for status, found in sorted(offer.seconds.items())}
    print(f"{name}: asked {offer.asked}, answered {counts}, lost {dict(+offer.lost)}", file=sys.stderr)
    note(f"serve_{name}_drawn_p95_seconds", offer.percentile(200, 95))
    note(f"serve_{name}_drawn_longest_seconds", offer.percentile(200, 100))
    note(f"serve_{name}_refused_p95_seconds", offer.percentile(429, 95))
    note(f"serve_{name}_refused_longest_seconds", offer.percentile(429, 100))
    note(f"serve_{name}_late_ratio", counts.get(408, 0) / max(1, counts.get(200, 0) + counts.get(408, 0)))
    note(f"serve_{name}_unavailable", float(counts.get(503, 0)))
    note(f"serve_{name}_lost", float(sum(offer.lost.values())))


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("recover", "overload", "overload_killed")
    parser.add_argument("--only", choices=names, action="append", help="measure just this (repeatable)")
    parser.add_argument("--rounds", type=int, default=20, help="kills of recover")
    parser.add_argument("--seconds", type=float, default=300.0, help="of each overload")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    values: dict[str, tuple[str, list[float]]] = {}  # by metric: the part that measures it

    start_local(num_cpus=4)
    settings = ServeSettings(
        port=free_ports(1)[0], threads=1, device="cpu", max_steps=400, num_cpus=0.5, min_engines=2, max_engines=2
    )
    recipe = sprites()
    url = start(settings, recipe.base, recipe.adapter, recipe.method.image_encoder.model)
    try:
        while running_engines() < 2:
            time.sleep(0.2)
        for part in arguments.only or names:

            def note(metric: str, value: float, part: str = part) -> None:
                values.setdefault(metric, (part, []))[1].append(value)
                print(f"{metric}: {value:.3f}", file=sys.stderr)

            if part == "recover":
                recover(url, arguments.rounds, note)
                continue
            rate = capacity(url, CAPACITY_SECONDS)
            note(f"serve_{part}_capacity_per_second", rate)
            offer = overload(url, OFFERED * rate, arguments.seconds, kill=part == "overload_killed")
            note_offer(part, offer, note)
    finally:
        stop()
        ray.shutdown()
    if arguments.dry:
        return
    commit = record.commit_of(["realcustom", "inference", "benchmarks/*.py"])
    units = {"_per_second": "1/s", "_seconds": "s", "_ratio": "ratio", "_unavailable": "count", "_lost": "count"}
    records = [
        record.record(
            metric,
            statistics.median(found),
            next(unit for end, unit in units.items() if metric.endswith(end)),
            n=len(found),
            spread=(min(found), max(found)),
            command=f"python benchmarks/serving_faults.py --only {part}",
            commit=commit,
        )
        for metric, (part, found) in values.items()
    ]
    record.write(RESULTS, records)


if __name__ == "__main__":
    main()
