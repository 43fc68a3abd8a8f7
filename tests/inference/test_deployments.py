"""The two deployments on Ray Serve: an engine that dies, an API that dies, subjects on one engine of several."""

from __future__ import annotations

import base64
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from realcustom.inference.settings import ServeSettings
from realcustom.inference.starting import start, stop
from tests.support.loopback import free_port
from tests.support.tiny import TinyModels

URL = "/v1/images/generations"
LONG: dict[str, Any] = {"prompt": "a cat in the snow", "seed": 5, "num_inference_steps": 900}
SHORT = LONG | {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def url(ray_cluster: str, tiny_models: TinyModels) -> Iterator[str]:
    settings = ServeSettings(
        port=free_port(), threads=1, max_steps=2000, device="cpu", num_cpus=0.5, min_engines=2, max_engines=2
    )
    address = start(settings, tiny_models.base, tiny_models.adapter, tiny_models.image_encoder)
    _rest()
    yield address
    stop()


def _replicas(deployment: str) -> list[psutil.Process]:
    """The processes of a deployment's replicas."""
    title = f"ServeReplica:realcustom:{deployment}"
    return [one for one in psutil.process_iter(["cmdline"]) if title in " ".join(one.info["cmdline"] or ())]


def _wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def _post(url: str, request: dict[str, Any]) -> tuple[httpx.Response, float]:
    """The answer, and when it came."""
    answer = httpx.post(url + URL, json=request, timeout=60.0)
    return answer, time.monotonic()


def _rest() -> None:
    """Return when both engines run, and have nothing to do: neither loads its models."""

    def rests() -> bool:
        engines = _replicas("engine")
        before = sum(one.cpu_times().user for one in engines)
        time.sleep(1.0)
        return (
            len(engines) == 2
            and all(map(psutil.pid_exists, (one.pid for one in engines)))
            and (sum(one.cpu_times().user for one in engines) - before < 0.3)
        )

    _wait_for(rests)


def _busiest(processes: list[psutil.Process]) -> psutil.Process:
    before = {one.pid: one.cpu_times().user for one in processes}
    time.sleep(1.0)
    return max(processes, key=lambda one: one.cpu_times().user - before[one.pid])


def test_a_dead_engine_is_503_in_our_shape_and_the_other_goes_on(url: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        plain = pool.submit(_post, url, LONG)
        time.sleep(1.0)
        engine = _busiest(_replicas("engine"))
        killed = time.monotonic()
        engine.kill()
        other = pool.submit(_post, url, SHORT)
        answer, came = plain.result(60)
        assert other.result(60)[0].status_code == 200
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (503, "engine_lost") and int(answer.headers["Retry-After"]) >= 1
    assert came - killed < 2.0
    _rest()  # the dead one is replaced


def test_a_stream_of_a_dead_engine_ends_with_an_error(url: str) -> None:
    with httpx.stream("POST", url + URL, json=LONG | {"stream": True}, timeout=60.0) as response:
        assert response.status_code == 200
        lines, killed = [], 0.0
        for line in response.iter_lines():
            lines.append(line)
            if not killed and line == "event: realcustom.step":
                engine = _busiest(_replicas("engine"))
                killed = time.monotonic()
                engine.kill()
    assert time.monotonic() - killed < 2.0
    assert any('"type":"engine_lost"' in line for line in lines[-4:])
    _rest()


def test_what_had_no_step_yet_is_taken_over(url: str) -> None:
    assert all(answer.status_code == 200 for answer, _ in map(_post, [url] * 4, [SHORT] * 4))
    stopped = _replicas("engine")[0]
    os.kill(stopped.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(_post, url, SHORT) for _ in range(6)]
        time.sleep(0.5)
        stopped.kill()
        assert [one.result(60)[0].status_code for one in answers] == [200] * 6
    _rest()


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
    threading.Thread(target=lambda: _post(url, LONG), daemon=True).start()
    time.sleep(1.0)
    engine = _busiest(_replicas("engine"))
    [api] = _replicas("api")
    api.kill()

    def idle() -> bool:
        before = engine.cpu_times().user
        time.sleep(1.0)
        return bool(engine.cpu_times().user - before < 0.3)

    _wait_for(idle, 20.0)
    _wait_for(lambda: _is_ready(url))
    assert _post(url, SHORT)[0].status_code == 200


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False
