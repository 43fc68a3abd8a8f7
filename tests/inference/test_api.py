"""The HTTP face in process: one shape for every error, limits, key, loading states, and a client that goes away."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from realcustom import log
from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.errors import UsageError
from realcustom.inference.api import build_api
from realcustom.inference.backend import State
from realcustom.inference.engine import Engine
from realcustom.inference.keys import Key, digest_of
from realcustom.inference.service import Service
from realcustom.inference.settings import ServeSettings
from tests.support.slow_steps import slow_steps

SETTINGS = ServeSettings(max_body_bytes=20_000, max_image_pixels=64 * 64, deadline_seconds=60.0)
URL = "/v1/images/generations"


def _reference(size: int = 24) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _talk(service: Service, talk: Callable[[httpx.AsyncClient], Awaitable[Any]], keys: Sequence[Key] = ()) -> Any:
    async def run() -> Any:
        # a bug is answered and then raised once more, for the server that runs the application
        transport = httpx.ASGITransport(build_api(service, keys), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60.0) as client:
            return await talk(client)

    return asyncio.run(run())


def _send(service: Service, method: str, path: str, **options: Any) -> httpx.Response:
    response: httpx.Response = _talk(service, lambda client: client.request(method, path, **options))
    return response


@pytest.fixture(scope="module")
def service(tiny_pipeline: RealCustomPipeline) -> Iterator[Service]:
    service = Service(SETTINGS, lambda: Engine(tiny_pipeline, max_queue=1, deadline_seconds=60.0, threads=1))
    while service.state()[0] is State.LOADING:
        time.sleep(0.01)
    yield service
    service.close()


def test_a_request_with_masks(service: Service) -> None:
    request = {
        "prompt": "a cat in the snow",
        "n": 2,
        "seed": 3,
        "num_inference_steps": 2,
        "return_masks": True,
        "subjects": [{"image": _reference(), "word": "cat"}],
    }
    answer = _send(service, "POST", URL, json=request)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [item["seed"] for item in data] == [3, 4]
    assert [(mask["subject"], mask["step"]) for mask in data[0]["masks"]] == [(0, 0), (0, 1)]
    image = Image.open(io.BytesIO(base64.b64decode(data[1]["b64_json"])))
    mask = Image.open(io.BytesIO(base64.b64decode(data[1]["masks"][1]["b64_json"])))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
    assert (mask.format, mask.mode) == ("PNG", "L") and mask.getextrema()[1] == 255


def test_seed_left_out_is_told_and_masks_are_left_out(service: Service) -> None:
    request = {"prompt": "a cat in the snow", "num_inference_steps": 1, "size": "32x32"}
    first, second = (_send(service, "POST", URL, json=request).json()["data"][0] for _ in range(2))
    assert first["seed"] != second["seed"] and first.keys() == {"b64_json", "seed"}
    again = _send(service, "POST", URL, json=request | {"seed": first["seed"]}).json()["data"][0]
    assert again == first


@pytest.mark.parametrize(
    ("fields", "status", "kind", "param", "message"),
    [
        ({"promt": "x"}, 422, "invalid_request", "promt", "did you mean 'prompt'?"),
        ({"subjects": [{"image": _reference(), "word": "dog"}]}, 422, "word_not_in_prompt", "subjects[0].word", "snow"),
        ({"subjects": [{"image": "QUJD", "word": "cat"}]}, 422, "not_an_image", "subjects[0].image", "PNG, JPEG"),
        ({"subjects": [{"image": _reference(65), "word": "cat"}]}, 413, "too_large", "subjects[0].image", "65 x 65"),
        (
            {"subjects": [{"image": _reference(), "word": "cat", "mask": _reference(20)}]},
            422, "invalid_request", "subjects[0].mask", "20 x 20",
        ),
        ({"negative_prompt": "x" * 21_000}, 413, "too_large", None, "limit of 20000"),
        ({"size": "2000x2000"}, 422, "invalid_request", "size", "limit of"),
    ],
)  # fmt: skip
def test_errors_have_one_shape(
    service: Service, fields: dict[str, Any], status: int, kind: str, param: str | None, message: str
) -> None:
    answer = _send(service, "POST", URL, json={"prompt": "a cat in the snow", "num_inference_steps": 1} | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (status, kind, param)
    assert message in error["message"] and "/root" not in error["message"]


def _broadcast(*_: Any, **__: Any) -> None:
    np.zeros(3) + np.zeros(4)


def _missing_key(*_: Any, **__: Any) -> None:
    dict[str, str]()["uid"]


def _arrow(*_: Any, **__: Any) -> None:
    raise pa.ArrowInvalid("planted")


@pytest.mark.parametrize("bug", [_broadcast, _missing_key, _arrow])
@pytest.mark.parametrize("place", ["drawing", "decoding"])
def test_a_bug_is_500_with_its_trace_in_the_log(
    service: Service, bug: Any, place: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log.configure()
    if place == "drawing":
        monkeypatch.setattr(service.engine().pipeline.scheduler, "step", bug)
    else:
        monkeypatch.setattr("realcustom.inference.drawing.read_picture", bug)
    request = {
        "prompt": "a cat in the snow",
        "num_inference_steps": 1,
        "subjects": [{"image": _reference(), "word": "cat"}],
    }
    answer = _send(service, "POST", URL, json=request)
    error = {"type": "internal", "message": "the server failed on this request; its log says why", "param": None}
    assert (answer.status_code, answer.json()) == (500, {"error": error})
    said = capfd.readouterr().err
    assert f"POST {URL} failed" in said and "Traceback" in said and f"in {bug.__name__}" in said


@pytest.mark.parametrize("place", ["drawing", "decoding"])
def test_a_mistake_found_late_is_422(service: Service, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UsageError("this cannot be drawn")

    if place == "drawing":
        monkeypatch.setattr(service.engine().pipeline.scheduler, "step", refuse)
    else:
        monkeypatch.setattr("realcustom.inference.drawing.read_picture", refuse)
    subjects = [{"image": _reference(), "word": "cat"}]
    answer = _send(service, "POST", URL, json={"prompt": "a cat in the snow", "subjects": subjects})
    error = {"type": "invalid_request", "message": "this cannot be drawn", "param": None}
    assert (answer.status_code, answer.json()) == (422, {"error": error})


def test_a_body_without_a_length_is_bounded_too(service: Service) -> None:
    async def endless() -> Any:
        while True:
            yield b"x" * 1000

    answer = _send(service, "POST", URL, content=endless())
    assert answer.status_code == 413 and answer.json()["error"]["type"] == "too_large"


def test_other_routes_and_the_key(service: Service) -> None:
    for method, path, status, kind in (("GET", "/nothing", 404, "not_found"), ("GET", URL, 405, "method_not_allowed")):
        answer = _send(service, method, path)
        assert answer.status_code == status and answer.json()["error"]["type"] == kind
    assert _send(service, "GET", "/healthz").json() == {"status": "live"}
    assert _send(service, "GET", "/v1/adapters").json()["object"] == "list"
    assert "subjects" in _send(service, "GET", "/openapi.json").text

    keys = [Key(name="alice", digest=digest_of("secret"))]
    for header, status in ((None, 401), ("Bearer wrong", 401), ("secret", 401), ("Bearer secret", 200)):
        headers = {"Authorization": header} if header else {}
        answer = _talk(service, lambda client, h=headers: client.get("/v1/adapters", headers=h), keys)  # type: ignore[misc]
        assert answer.status_code == status


def test_a_client_that_goes_away_frees_its_place(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = slow_steps(service.engine(), monkeypatch, 0.05)

    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        request = {"prompt": "a cat in the snow", "num_inference_steps": 100}
        task = asyncio.create_task(client.post(URL, json=request))
        while len(steps) < 2:
            await asyncio.sleep(0.01)
        task.cancel()  # what Serve does to the handler when the connection closes
        with pytest.raises(asyncio.CancelledError):
            await task
        return await client.post(URL, json=request | {"num_inference_steps": 1})

    assert _talk(service, talk).status_code == 200
    assert len(steps) < 10


def test_a_server_that_raises_where_its_client_is_gone(service: Service, capfd: pytest.CaptureFixture[str]) -> None:
    """As Ray Serve does: it cancels the task that receives."""
    log.configure()

    async def run() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            raise RuntimeError("cancelled")

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": URL,
            "raw_path": URL.encode(),
            "query_string": b"",
            "headers": [],
        }
        await build_api(service)(
            {**scope, "app": None, "http_version": "1.1", "server": None, "client": None}, receive, send
        )
        return sent

    start, *_ = asyncio.run(run())
    assert start["status"] == 499 and "failed" not in capfd.readouterr().err


def test_full_queue_is_429(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = type(service.engine().pipeline.scheduler)  # each job has one of its own
    step, started, go_on = scheduler.step, threading.Event(), threading.Event()

    def held(*args: Any, **kwargs: Any) -> Any:
        started.set()
        assert go_on.wait(30)
        return step(*args, **kwargs)

    monkeypatch.setattr(scheduler, "step", held)
    request = {"prompt": "a cat in the snow", "num_inference_steps": 1}

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        first = asyncio.create_task(client.post(URL, json=request))
        await asyncio.to_thread(started.wait, 30)
        others = [asyncio.create_task(client.post(URL, json=request)) for _ in range(2)]
        await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        go_on.set()
        return [await task for task in (first, *others)]

    answers = _talk(service, talk)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["Retry-After"]) >= 1 and refused.json()["error"]["type"] == "queue_full"


def test_loading_and_failed(tiny_pipeline: RealCustomPipeline) -> None:
    load = threading.Event()

    def refuse() -> Engine:
        load.wait(30)
        raise ValueError("no 'unet' in that folder")

    service = Service(SETTINGS, refuse, instance="me")
    assert _send(service, "GET", "/healthz").status_code == 200
    ready = _send(service, "GET", "/readyz")
    assert ready.status_code == 503 and ready.json() == {"status": "loading", "message": "", "instance": "me"}
    answer = _send(service, "POST", URL, json={"prompt": "a cat"})
    assert answer.status_code == 503 and answer.json()["error"]["type"] == "loading"
    load.set()
    while service.state()[0] is State.LOADING:
        time.sleep(0.01)
    answer = _send(service, "POST", URL, json={"prompt": "a cat"})
    assert answer.status_code == 503 and "unet" in answer.json()["error"]["message"]
    failed = _send(service, "GET", "/readyz").json()
    assert failed["status"] == "failed" and failed["mistake"] is False  # a ValueError of Python's own is a bug
    service.check()  # not yet: the reason is to be read first
    with pytest.raises(RuntimeError, match="unet"):
        service.check(patience_seconds=-1.0)


def test_a_mistake_while_loading_is_told_from_a_bug() -> None:
    def refuse() -> Engine:
        raise UsageError("no base model at nowhere")

    service = Service(SETTINGS, refuse)
    while service.state()[0] is State.LOADING:
        time.sleep(0.01)
    failed = _send(service, "GET", "/readyz").json()
    assert failed["mistake"] is True and failed["message"] == "no base model at nowhere"
