"""Streams over HTTP: which events come, in which order, and what happens when the client goes away."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from realcustom.inference.errors import Cancelled
from realcustom.inference.jobs import GenerationJob, Ticket
from realcustom.inference.schema import check_request
from realcustom.inference.settings import ServeSettings
from realcustom.inference.streaming import Stream, preview_steps
from realcustom.preview import make_preview
from realcustom.sampling import SamplingParams
from tests.support.slow_steps import slow_steps
from tests.support.tiny import TinyModels
from tests.support.waiting import wait_for

URL = "/v1/images/generations"


def _reference() -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


REQUEST: dict[str, Any] = {
    "prompt": "a cat in the snow",
    "seed": 3,
    "num_inference_steps": 6,
    "stream": True,
    "subjects": [{"image": _reference(), "word": "cat"}],
}


@pytest.fixture(scope="module")
def running(serve: Callable[..., Any]) -> Any:
    return serve()


def _events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, data) of each event; a comment is ("", {})."""
    for block in response.read().decode().split("\n\n"):
        if block.startswith(":"):
            yield "", {}
        elif block:
            name, data = block.split("\n")
            yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def _stream(running: Any, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    response = httpx.post(running.url + URL, json=REQUEST | fields, timeout=60.0)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return list(_events(response))


def _size(text: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(text))).size


def test_where_previews_come() -> None:
    assert preview_steps(0, 50) == [] and preview_steps(1, 50) == [3]
    assert preview_steps(3, 50) == [3, 19, 34] and preview_steps(3, 2) == [2]
    for steps in range(1, 60):
        assert all(preview_steps(count, steps)[0] <= 3 for count in (1, 2, 3))


def test_a_decoder_makes_the_previews(running: Any, serve: Callable[..., Any], tiny_models: TinyModels) -> None:
    """The base's own VAE as the decoder: after the last step the preview has the image's pixels, which the map has not."""
    decoding = serve(preview_decoder=f"{tiny_models.base}/vae")

    def difference(server: Any) -> float:
        events = dict(_stream(server, num_inference_steps=2, partial_images=1))
        shown, drawn = (
            np.asarray(Image.open(io.BytesIO(base64.b64decode(events[f"image_generation.{name}"]["b64_json"]))), float)
            for name in ("partial_image", "completed")
        )
        return float(np.abs(shown - drawn).mean())

    assert difference(decoding) < 0.5 * difference(running)


def test_all_kinds_of_events_in_order(running: Any) -> None:
    events = _stream(running, n=2, partial_images=2, mask_every=4, return_masks=True)
    assert events.pop(0) == ("realcustom.queued", {"type": "realcustom.queued", "ahead": 0})
    names = [name for name, _ in events]
    partial, step = ["image_generation.partial_image"] * 2, ["realcustom.step"]
    assert [name for name in names if name == step[0]]  # a slow client gets fewer of them, never of these:
    assert [name for name in names if name != step[0]] == partial * 2 + ["image_generation.completed"] * 2
    steps = [data for name, data in events if name == step[0]]
    numbers = [data["step"] for data in steps]
    assert numbers == sorted(set(numbers)) and {3, 4, 6} <= set(numbers) and {data["of"] for data in steps} == {6}
    assert {data["step"] for data in steps if data["masks"]} == {4, 6}
    masked = next(data for data in steps if data["step"] == 4)
    assert [one["image"] for one in masked["masks"]] == [0, 1]
    assert (masked["masks"][0]["masks"][0]["subject"], masked["masks"][0]["masks"][0]["step"]) == (0, 3)
    assert steps[-1]["seconds_left"] == 0
    previews = [data for name, data in events if name == partial[0]]
    assert [(one["image_index"], one["partial_image_index"]) for one in previews] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert {_size(one["b64_json"]) for one in previews} == {(32, 32)} and previews[0]["size"] == "32x32"
    completed = [data for name, data in events if name == "image_generation.completed"]
    assert [one["seed"] for one in completed] == [3, 4] and len(completed[0]["masks"]) == 6
    assert completed[0]["usage"]["forwards"] > 2 * 6


def test_a_stream_gives_the_image_that_a_plain_answer_gives(running: Any) -> None:
    *_, (name, data) = _stream(running, step_events=False)
    plain = httpx.post(running.url + URL, json=REQUEST | {"stream": False}, timeout=60.0).json()
    assert name == "image_generation.completed" and data["b64_json"] == plain["data"][0]["b64_json"]
    assert data["usage"]["forwards"] == plain["usage"]["forwards"]


def test_a_request_that_is_refused_has_its_own_status(running: Any) -> None:
    answer = httpx.post(running.url + URL, json=REQUEST | {"prompt": "a dog"}, timeout=60.0)
    assert answer.status_code == 422 and answer.json()["error"]["type"] == "word_not_in_prompt"


def test_a_failure_after_the_first_step_ends_the_stream_with_an_error(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = type(running.service.engine().pipeline.scheduler)  # each job has one of its own
    step, calls = scheduler.step, list[None]()

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == 4:
            raise ZeroDivisionError("planted")
        return step(*args, **kwargs)

    monkeypatch.setattr(scheduler, "step", failing)
    *_, (name, data) = _stream(running)
    assert name == "error" and data["error"]["type"] == "internal" and "planted" not in data["error"]["message"]


def test_silence_is_filled_with_comments_and_a_deadline_ends_it(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve(heartbeat_seconds=0.05)
    slow_steps(running.service.engine(), monkeypatch, 0.3)
    names = [name for name, _ in _stream(running, num_inference_steps=2)]
    assert names.count("") >= 4 and names[-1] == "image_generation.completed"
    monkeypatch.setattr("realcustom.inference.expectation.SURE", 0.0)  # else the request is refused before it streams
    *_, (name, data) = _stream(running, num_inference_steps=50, deadline_seconds=0.7)
    assert name == "error" and data["error"]["type"] == "deadline_exceeded"


def test_the_place_in_the_queue_is_told_as_it_changes(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realcustom.inference.streaming.LOOK_SECONDS", 0.01)
    engine, request = running.service.engine(), check_request({"prompt": "a cat"}, ServeSettings())
    job = GenerationJob(prompt="a cat", sampling=SamplingParams(seed=1))
    ahead = iter([2, 2, 1, 1, 0])

    def counted(ticket: Ticket) -> int:
        found = next(ahead, None)
        if found is None:
            ticket.future.set_exception(Cancelled("over"))
        return found or 0

    async def told() -> list[bytes]:
        stream = Stream(request, make_preview(engine.pipeline.base, None), 60.0, ahead=counted)
        return [chunk async for chunk in stream.chunks(Ticket(job, time.monotonic() + 60), lambda _: None)]  # type: ignore[arg-type,return-value]

    *queued, last = (json.loads(chunk.decode().split("data: ")[1]) for chunk in asyncio.run(told()))
    assert [data["ahead"] for data in queued] == [2, 1, 0] and last["error"]["type"] == "cancelled"


def test_who_is_ahead_in_the_engine(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = running.service.engine()
    slow_steps(engine, monkeypatch, 0.05)
    job = GenerationJob(prompt="a cat", sampling=SamplingParams(seed=1, num_inference_steps=100))
    tickets = [engine.submit(job) for _ in range(3)]
    assert [engine.ahead(ticket) for ticket in tickets] == [0, 1, 2]
    tickets[0].cancel()
    wait_for(lambda: [engine.ahead(ticket) for ticket in tickets] == [0, 0, 1], 10.0)
    for ticket in tickets:
        ticket.cancel()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_job_within_a_step(
    running: Any, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = slow_steps(running.service.engine(), monkeypatch, 0.05)
    request = REQUEST | {"num_inference_steps": 200, "stream": stream}
    if stream:
        with httpx.stream("POST", running.url + URL, json=request, timeout=60.0) as response:
            next(response.iter_raw())
    else:
        with pytest.raises(httpx.TimeoutException):
            httpx.post(running.url + URL, json=request, timeout=0.5)
    gone = time.monotonic()
    time.sleep(0.4)
    assert sum(at > gone for at in steps) <= 2  # the step that runs, and one while the word gets through
    assert _stream(running, num_inference_steps=1)[-1][0] == "image_generation.completed"
