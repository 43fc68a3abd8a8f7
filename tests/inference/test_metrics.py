"""Every metric gets its values from real requests; that Ray exports them is seen in `test_app.py`."""

from __future__ import annotations

import asyncio
import base64
import collections
import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.inference.api import build_api
from realcustom.inference.cost import StepCost
from realcustom.inference.engine import Engine
from realcustom.inference.errors import Cancelled
from realcustom.inference.jobs import GenerationJob
from realcustom.inference.metrics import METRICS
from realcustom.inference.order import Running
from realcustom.inference.progress import Progress
from realcustom.inference.service import Service
from realcustom.inference.settings import ServeSettings
from realcustom.sampling import SamplingParams
from tests.support.tiny import ADAPTER
from tests.support.waiting import wait_for

URL = "/v1/images/generations"


class Recorder:
    """Keeps every value."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str | None], list[float]] = collections.defaultdict(list)

    def observe(self, name: str, value: float, tag: str | None = None) -> None:
        assert (METRICS[name].tag is None) == (tag is None)
        self.seen[name, tag].append(value)

    def last(self, name: str) -> float:
        return self.seen[name, None][-1]

    def total(self, name: str, tag: str | None = None) -> float:
        return sum(self.seen[name, tag])


class FirstAlone:
    """The order of arrival."""

    def choose(self, running: Sequence[Running], cost: StepCost, now: float) -> list[Running]:
        return [running[0]]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def service(tiny_pipeline: RealCustomPipeline, recorder: Recorder) -> Iterator[Service]:
    service = Service(ServeSettings(), lambda: Engine(tiny_pipeline, threads=1, adapter=ADAPTER), observer=recorder)
    service.wait()
    yield service
    service.close()


def _picture() -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_every_metric_has_values(service: Service, recorder: Recorder) -> None:
    async def talk() -> dict[str, Any]:
        transport = httpx.ASGITransport(build_api(service, observer=recorder))
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60.0) as client:
            held = (await client.post("/v1/subjects", json={"image": _picture()})).json()
            request = {
                "prompt": "a cat in the snow",
                "num_inference_steps": 3,
                "n": 2,
                "subjects": [{"id": held["id"], "word": "cat"}],
            }
            answer = (await client.post(URL, json=request)).json()
            streamed = await client.post(URL, json=request | {"stream": True, "partial_images": 1})
            assert streamed.status_code == 200
            assert (await client.post(URL, json={"prompt": ""})).status_code == 422
            long = asyncio.create_task(client.post(URL, json=request | {"num_inference_steps": 100}))
            while not recorder.seen["running", None] or recorder.seen["running", None][-1] != 1:
                await asyncio.sleep(0.01)
            long.cancel()
            await asyncio.gather(long, return_exceptions=True)
            while not recorder.seen["cancelled_total", None]:
                await asyncio.sleep(0.01)
        found: dict[str, Any] = answer
        found["bytes"] = held["bytes"]
        return found

    answer = asyncio.run(asyncio.wait_for(talk(), 60))
    assert {name for name, values in recorder.seen.items() if values} >= {("requests_total", "200")}
    assert {name for (name, _), values in recorder.seen.items() if values} == METRICS.keys()
    assert recorder.total("requests_total", "200") >= 3 and recorder.total("requests_total", "422") == 1
    assert recorder.seen["cache_bytes", "subjects"] == [answer["bytes"]]
    assert recorder.total("cache_hits_total", "subjects") == 3
    assert recorder.seen["cache_bytes", "tokens"][-1] == service.engine().pipeline.held_bytes > 0
    assert recorder.total("cache_hits_total", "prompts") == 2 and max(recorder.seen["cache_bytes", "prompts"]) > 0
    assert recorder.seen["batch_rows", None] and min(recorder.seen["batch_rows", None]) >= 2
    assert 0 < max(recorder.seen["batch_cells_used_ratio", None]) <= 1
    assert len(recorder.seen["time_to_first_preview_seconds", None]) == 1


def test_forwards_by_branch_are_those_that_the_answer_counts(service: Service, recorder: Recorder) -> None:
    async def talk() -> int:
        transport = httpx.ASGITransport(build_api(service, observer=recorder))
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60.0) as client:
            subjects = [{"image": _picture(), "word": "cat"}]
            request = {"prompt": "a cat in the snow", "num_inference_steps": 4, "n": 2, "subjects": subjects}
            return int((await client.post(URL, json=request)).json()["usage"]["forwards"])

    forwards = asyncio.run(talk())
    by_branch = [recorder.total("forwards_total", tag) for name, tag in list(recorder.seen) if name == "forwards_total"]
    assert sum(by_branch) == forwards


def test_who_waits_and_who_takes_steps(tiny_pipeline: RealCustomPipeline, recorder: Recorder) -> None:
    """A job that is prepared waits as long as others are chosen; one that is cancelled alone is counted no more."""
    engine = Engine(tiny_pipeline, threads=1, adapter=ADAPTER, order=FirstAlone())
    engine.measures.observer = recorder
    reached, go_on = threading.Event(), threading.Event()

    def hold(_: Progress) -> None:
        reached.set()
        assert go_on.wait(30)

    try:
        job = GenerationJob(prompt="a cat", sampling=SamplingParams(seed=1, num_inference_steps=500))
        first = engine.submit(job, hold)
        assert reached.wait(30)
        alone = engine.queued_seconds
        second = engine.submit(job)
        wait_for(lambda: len(engine._running) == 2, 30.0)
        assert (recorder.last("running"), recorder.last("waiting")) == (1, 1)
        assert 0 < alone < engine.queued_seconds < 3 * alone  # two jobs' steps, by what the first one's took
        assert len(recorder.seen["queue_seconds", None]) == 1  # the second has no step yet
        go_on.set()
        second.cancel()
        with pytest.raises(Cancelled):
            second.future.result(30)
        wait_for(lambda: recorder.last("waiting") == 0 and recorder.last("running") == 1, 30.0)
        first.cancel()
        wait_for(lambda: recorder.last("running") == 0, 30.0)
        assert engine.queued_seconds == 0
        assert len(recorder.seen["queue_seconds", None]) == 1
    finally:
        go_on.set()
        engine.close()


def test_the_documentation_lists_them_all() -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    for name, metric in METRICS.items():
        tag = "" if metric.tag is None else f"{{{metric.tag}}}"
        assert f"| `realcustom_{name}{tag}` | {metric.help} ({metric.kind.value}) |" in text
