"""The two deployments on Ray Serve: an engine that dies, an API that dies, subjects on one engine of several."""

from __future__ import annotations

import base64
import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from realcustom.inference.app import API, ENGINE
from realcustom.inference.settings import ServeSettings
from realcustom.inference.starting import start, stop
from tests.support.loopback import free_port
from tests.support.replicas import replicas, running_engines
from tests.support.tiny import TinyModels
from tests.support.waiting import wait_for

URL = "/v1/images/generations"
LONG: dict[str, Any] = {"prompt": "a cat in the snow", "seed": 5, "num_inference_steps": 900}
SHORT = LONG | {"num_inference_steps": 2}
PATIENCE = 120.0  # seconds, on a busy machine


# two minutes; what must happen within seconds of a kill does not on a machine that is full
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(ray_cluster: str, tiny_models: TinyModels) -> Iterator[str]:
    settings = ServeSettings(
        port=free_port(), threads=1, max_steps=2000, device="cpu", num_cpus=0.5, min_engines=2, max_engines=2
    )
    yield start(settings, tiny_models.base, tiny_models.adapter, tiny_models.image_encoder)
    stop()


def _post(url: str, request: dict[str, Any]) -> tuple[httpx.Response, float]:
    """The answer, and when it came."""
    answer = httpx.post(url + URL, json=request, timeout=PATIENCE)
    return answer, time.monotonic()


def _drawing(since: dict[int, float]) -> psutil.Process:
    """The engine that draws, once it has drawn for a while since `_clocks`."""
    engines = replicas(ENGINE)

    def drawn(one: psutil.Process) -> float:
        return float(one.cpu_times().user) - since[one.pid]

    wait_for(lambda: max(map(drawn, engines)) > 0.7, PATIENCE)
    return max(engines, key=drawn)


def _clocks() -> dict[int, float]:
    """Seconds of processor time of each engine so far, both of which run."""
    wait_for(lambda: running_engines() == 2, PATIENCE)
    return {one.pid: float(one.cpu_times().user) for one in replicas(ENGINE)}


def _replaced(killed: psutil.Process) -> float:
    """When there are two engines again. Serve starts a process for the new one after it has noticed the end of the other."""

    def two() -> bool:
        engines = replicas(ENGINE)
        return len(engines) == 2 and killed not in engines and running_engines() == 2

    wait_for(two, PATIENCE)
    return time.monotonic()


def test_a_dead_engine_is_503_in_our_shape_and_the_other_goes_on(url: str) -> None:
    before = _clocks()
    with ThreadPoolExecutor(2) as pool:
        plain = pool.submit(_post, url, LONG)
        engine = _drawing(before)
        engine.kill()
        other = pool.submit(_post, url, SHORT)
        replaced = _replaced(engine)
        answer, came = plain.result(PATIENCE)
        assert other.result(PATIENCE)[0].status_code == 200
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (503, "engine_lost") and int(answer.headers["Retry-After"]) >= 1
    assert max(came, other.result()[1]) < replaced  # in seconds: benchmarks/serving_faults.py


def test_a_stream_of_a_dead_engine_ends_with_an_error(url: str) -> None:
    before = _clocks()
    with httpx.stream("POST", url + URL, json=LONG | {"stream": True}, timeout=PATIENCE) as response:
        assert response.status_code == 200
        lines: list[str] = []
        engine: psutil.Process | None = None
        for line in response.iter_lines():
            lines.append(line)
            if engine is None and line == "event: realcustom.step":
                engine = _drawing(before)
                engine.kill()
    ended = time.monotonic()
    assert any('"type":"engine_lost"' in line for line in lines[-4:])
    assert engine is not None and ended < _replaced(engine)


def test_what_had_no_step_yet_is_taken_over(url: str) -> None:
    _clocks()
    assert all(answer.status_code == 200 for answer, _ in map(_post, [url] * 4, [SHORT] * 4))
    stopped = replicas(ENGINE)[0]
    os.kill(stopped.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(_post, url, SHORT) for _ in range(6)]
        wait_for(lambda: any(one.done() for one in answers), PATIENCE)  # those of the other engine
        assert not all(one.done() for one in answers)
        stopped.kill()
        assert [one.result(PATIENCE)[0].status_code for one in answers] == [200] * 6
    _replaced(stopped)


def test_a_subject_is_found_on_the_engine_that_holds_it(url: str) -> None:
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    held = httpx.post(f"{url}/v1/subjects", json={"image": text}, timeout=60.0).json()
    assert httpx.get(f"{url}/v1/subjects/{held['id']}").json() == held
    request = SHORT | {"subjects": [{"id": held["id"], "word": "cat"}]}
    by_image = _post(url, SHORT | {"subjects": [{"image": text, "word": "cat"}]})[0].json()["data"]
    for _ in range(6):
        answer, _ = _post(url, request)
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"] == by_image
    answer, _ = _post(url, SHORT | {"subjects": [{"id": "subject-none", "word": "cat"}]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "subject_not_found")


def test_a_request_whose_api_died_is_ended(url: str) -> None:
    before = _clocks()
    threading.Thread(target=lambda: _post(url, LONG), daemon=True).start()
    engine = _drawing(before)
    [api] = replicas(API)
    api.kill()

    def idle() -> bool:
        before = engine.cpu_times().user
        time.sleep(1.0)
        return bool(engine.cpu_times().user - before < 0.2)

    wait_for(idle, PATIENCE)
    wait_for(lambda: _is_ready(url), PATIENCE)
    assert _post(url, SHORT)[0].status_code == 200


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False
