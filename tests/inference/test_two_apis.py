"""Two processes of the API, as the checked-in configuration has: what one of them knows holds for both."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from realcustom.inference.app import API
from realcustom.inference.settings import ServeSettings
from realcustom.inference.starting import start, stop
from tests.support.loopback import free_port
from tests.support.replicas import replicas
from tests.support.tiny import TinyModels
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow
URL = "/v1/images/generations"
REQUEST: dict[str, Any] = {
    "prompt": "a cat in the snow",
    "num_inference_steps": 20,
}  # without a seed: none is as another
ROUNDS = 6  # each time Serve chooses one of the two


@pytest.fixture(scope="module")
def url(ray_cluster: str, tiny_models: TinyModels) -> Iterator[str]:
    settings = ServeSettings(port=free_port(), threads=1, max_steps=2000, device="cpu", api_replicas=2, api_cpus=0.1)
    yield start(settings, tiny_models.base, tiny_models.adapter, tiny_models.image_encoder)
    stop()


def _post(url: str, headers: dict[str, str], **fields: Any) -> httpx.Response:
    return httpx.post(url + URL, json=REQUEST | fields, headers=headers, timeout=60.0)


def test_an_answer_is_drawn_once_for_both(url: str) -> None:
    wait_for(lambda: len(replicas(API)) == 2, 60.0)
    headers = {"Idempotency-Key": "mine"}
    with ThreadPoolExecutor(ROUNDS) as pool:
        answers = [one.result() for one in [pool.submit(_post, url, headers) for _ in range(ROUNDS)]]
    answers += [_post(url, headers) for _ in range(ROUNDS)]
    assert {answer.status_code for answer in answers} == {200} and len({answer.content for answer in answers}) == 1
    assert {_post(url, headers, seed=1).status_code for _ in range(ROUNDS)} == {409}
    assert _post(url, {"Idempotency-Key": "other"}).content != answers[0].content


def test_a_request_of_either_is_cancelled(url: str) -> None:
    for number in range(ROUNDS):
        name, answers = f"long-{number}", list[httpx.Response]()

        def send(name: str = name, answers: list[httpx.Response] = answers) -> None:
            answers.append(_post(url, {"X-Request-Id": name}, num_inference_steps=900))

        sender = threading.Thread(target=send)
        sender.start()
        wait_for(lambda name=name: httpx.delete(f"{url}/v1/requests/{name}").status_code == 200, 20.0)  # type: ignore[misc]
        sender.join(20)
        assert answers[0].status_code == 499
    assert httpx.delete(f"{url}/v1/requests/long-0").status_code == 404
