"""Engines are added while there is more work than they do in time, and one that goes ends what it draws; on Ray Serve."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from ray.serve import get_deployment_handle

from realcustom.inference.app import APP_NAME, ENGINE
from realcustom.inference.settings import ServeSettings
from realcustom.inference.starting import start, stop
from tests.support.loopback import free_port
from tests.support.replicas import replicas, running_engines
from tests.support.tiny import TinyModels
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow
URL = "/v1/images/generations"
PATIENCE = 240.0  # seconds, on a busy machine; engines tell Serve of their work every ten
SCALE_SECONDS = 60.0
CALIBRATING = 20  # steps whose time is measured
MOST_STEPS = 1000  # that a scheduler has


@pytest.fixture(scope="module")
def url(ray_cluster: str, tiny_models: TinyModels) -> Iterator[str]:
    settings = ServeSettings(
        port=free_port(),
        threads=1,
        device="cpu",
        num_cpus=0.5,
        max_engines=2,
        scale_seconds=SCALE_SECONDS,
        scale_up_seconds=0.5,
        scale_down_seconds=1.0,
        drain_seconds=PATIENCE,
        max_steps=MOST_STEPS,
        max_n=64,
        deadline_seconds=3600.0,
    )
    yield start(settings, tiny_models.base, tiny_models.adapter, tiny_models.image_encoder)
    stop()


class Request:
    """One that runs in the background, for about so many seconds."""

    def __init__(self, url: str, name: str, seconds: float) -> None:
        self.url, self.name, self.answers = url, name, list[httpx.Response]()
        _post(url, 1)
        began = time.monotonic()
        assert _post(url, CALIBRATING).status_code == 200
        steps = seconds / (time.monotonic() - began) * CALIBRATING
        images = math.ceil(steps / MOST_STEPS)
        arguments = url, round(steps / images), images, name
        self.thread = threading.Thread(target=lambda: self.answers.append(_post(*arguments)))
        self.thread.start()

    def cancel(self) -> None:
        """End it."""
        assert httpx.delete(f"{self.url}/v1/requests/{self.name}").status_code == 200
        self.thread.join(PATIENCE)
        assert self.answers[0].status_code == 499


def _post(url: str, steps: int, images: int = 1, name: str | None = None) -> httpx.Response:
    request = {"prompt": "a cat in the snow", "n": images, "size": "128x128", "num_inference_steps": steps}
    headers = {} if name is None else {"X-Request-Id": name}
    return httpx.post(url + URL, json=request, headers=headers, timeout=PATIENCE)


def _jobs() -> list[int]:
    """Of each engine."""
    stats = get_deployment_handle(ENGINE, APP_NAME).broadcast("record_routing_stats").results()
    return sorted(int(one["jobs"]) for one in stats)


def _with_two_engines(url: str, name: str) -> Request:
    """A request of more work than one engine is to have, once there is a second engine for it."""
    request = Request(url, name, 4 * SCALE_SECONDS)
    wait_for(lambda: running_engines() == 2, PATIENCE)
    return request


def test_an_engine_is_added_while_there_is_more_than_so_many_seconds_of_work(url: str) -> None:
    small = Request(url, "small", SCALE_SECONDS * 0.75)  # less than that: an engine alone
    wait_for(lambda: _jobs() == [1], 30.0, lambda: str(small.answers))
    time.sleep(25.0)  # longer than it takes until Serve knows
    assert running_engines() == 1
    small.cancel()
    large = _with_two_engines(url, "large")
    large.cancel()
    wait_for(lambda: running_engines() == 1 and len(replicas(ENGINE)) == 1, PATIENCE)


def test_an_engine_that_goes_ends_what_it_draws(url: str) -> None:
    large = _with_two_engines(url, "large-again")
    last = Request(url, "last", SCALE_SECONDS * 0.75)  # on the engine that has nothing to do, the newer one
    wait_for(lambda: _jobs() == [1, 1], 30.0, lambda: f"{_jobs()} {last.answers}")
    newer = max(replicas(ENGINE), key=lambda one: one.create_time())
    large.cancel()  # what is left is work for one engine: Serve ends the newer one
    wait_for(lambda: running_engines() == 1, PATIENCE)
    assert not last.answers and newer in replicas(ENGINE)
    last.thread.join(PATIENCE)
    assert last.answers[0].status_code == 200, last.answers[0].text
    wait_for(lambda: newer not in replicas(ENGINE), PATIENCE)
    assert _post(url, 2).status_code == 200
