"""Around a request: its id, cancelling it, sending it twice, subjects by id, and its deadline."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.inference.answer_keeper import AnswerKeeper
from realcustom.inference.engine import Engine
from realcustom.inference.errors import Cancelled, Conflict, DeadlineExceeded, QueueFull
from realcustom.inference.event_stream import while_wanted
from realcustom.inference.idempotency import Answers
from realcustom.inference.service import Service
from realcustom.inference.settings import ServeSettings
from realcustom.inference.subjects import NewSubject
from tests.support.tiny import ADAPTER
from tests.support.waiting import wait_for

URL = "/v1/images/generations"
REQUEST: dict[str, Any] = {"prompt": "a cat in the snow", "num_inference_steps": 2}


def _picture(seed: int = 0) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def running(serve: Callable[..., Any]) -> Any:
    return serve(max_subject_bytes=1)


@pytest.fixture
def client(running: Any) -> Any:
    with httpx.Client(base_url=running.url, timeout=60.0) as client:
        yield client


class Slow:
    """Makes each step take a while, and counts them."""

    def __init__(self, running: Any, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.05) -> None:
        self.steps = 0
        scheduler = type(running.service.engine().pipeline.scheduler)  # each job has one of its own
        step = scheduler.step

        def slow(*args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            time.sleep(seconds)
            return step(*args, **kwargs)

        monkeypatch.setattr(scheduler, "step", slow)

    def wait(self, steps: int) -> None:
        end = time.monotonic() + 30
        while self.steps < steps:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_ids_are_made_or_taken(client: httpx.Client) -> None:
    made = [client.get("/healthz").headers["X-Request-Id"] for _ in range(2)]
    assert made[0] != made[1] and all(len(one) == 32 for one in made)
    assert client.get("/healthz", headers={"X-Request-Id": "mine-1"}).headers["X-Request-Id"] == "mine-1"
    assert client.post(URL, json={"prmpt": ""}, headers={"X-Request-Id": "bad"}).headers["X-Request-Id"] == "bad"
    for wrong in ("a b", "x" * 65, "a/b"):
        answer = client.get("/healthz", headers={"X-Request-Id": wrong})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "X-Request-Id"


@pytest.mark.parametrize("stream", [False, True])
def test_a_running_request_is_cancelled_by_its_id(
    running: Any, client: httpx.Client, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(running, monkeypatch)
    answers: list[httpx.Response] = []
    request, headers = REQUEST | {"num_inference_steps": 200, "stream": stream}, {"X-Request-Id": "long-one"}

    def send() -> None:
        answers.append(httpx.post(running.url + URL, json=request, headers=headers, timeout=60.0))

    sender = threading.Thread(target=send)
    sender.start()
    slow.wait(3)
    again = client.post(URL, json=REQUEST, headers=headers)
    assert again.status_code == 409 and "runs already" in again.json()["error"]["message"]
    assert client.delete("/v1/requests/long-one").json() == {"id": "long-one", "cancelled": True}
    done = slow.steps
    sender.join(10)
    assert slow.steps <= done + 1
    if stream:
        assert '"type":"cancelled"' in answers[0].text and answers[0].status_code == 200
    else:
        assert answers[0].status_code == 499 and answers[0].json()["error"]["type"] == "cancelled"
    gone = client.delete("/v1/requests/long-one")
    assert gone.status_code == 404 and gone.json()["error"]["type"] == "request_not_found"


def test_a_request_that_is_sent_twice_is_drawn_once(
    running: Any, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(running, monkeypatch, 0.1)
    headers, answers = {"Idempotency-Key": "abc"}, list[httpx.Response]()

    def send() -> None:
        answers.append(httpx.post(running.url + URL, json=REQUEST, headers=headers, timeout=60.0))

    senders = [threading.Thread(target=send) for _ in range(2)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(30)
    answers.append(
        client.post(URL, content=b'{ "num_inference_steps":2, "prompt":"a cat in the snow"}', headers=headers)
    )
    assert {answer.status_code for answer in answers} == {200} and len({answer.content for answer in answers}) == 1
    assert slow.steps == 2
    other = client.post(URL, json=REQUEST | {"seed": 1}, headers=headers)
    assert other.status_code == 409 and "another request" in other.json()["error"]["message"]
    for wrong in ({"Idempotency-Key": "x" * 256}, {"Idempotency-Key": "a b"}):
        assert client.post(URL, json=REQUEST, headers=wrong).status_code == 400
    assert client.post(URL, json=REQUEST | {"stream": True}, headers=headers).status_code == 400


@pytest.mark.parametrize("first", [True, False], ids=["who asked first", "who waits for it"])
def test_a_request_that_shares_an_answer_is_cancelled_alone(
    running: Any, client: httpx.Client, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(running, monkeypatch)
    answers: dict[str, httpx.Response] = {}
    once, asked = Answers.once, list[Any]()

    def counted(*arguments: Any) -> Any:
        asked.append(arguments)
        return once(*arguments)

    monkeypatch.setattr(Answers, "once", counted)

    def send(name: str) -> None:
        headers = {"Idempotency-Key": f"shared-{first}", "X-Request-Id": name}
        answers[name] = httpx.post(running.url + URL, json=REQUEST | {"num_inference_steps": 30}, headers=headers)

    senders = {name: threading.Thread(target=send, args=(name,)) for name in ("one", "two")}
    senders["one"].start()
    slow.wait(2)
    senders["two"].start()
    cancelled, kept = ("one", "two") if first else ("two", "one")
    wait_for(lambda: len(asked) == 2, 10.0)  # the second waits for the first one's answer
    assert client.delete(f"/v1/requests/{cancelled}").json()["cancelled"]
    senders[cancelled].join(10)
    assert answers[cancelled].status_code == 499 and slow.steps < 30 and kept not in answers
    senders[kept].join(30)
    assert answers[kept].status_code == 200 and slow.steps == 30


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_cancelled_before_an_engine_has_it(
    running: Any, client: httpx.Client, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, begun = running.service.draw, threading.Event()

    async def held(drawing: Any) -> Any:
        begun.set()
        await asyncio.sleep(20)
        return await draw(drawing)

    monkeypatch.setattr(running.service, "draw", held)
    answers: list[httpx.Response] = []

    def send() -> None:
        request = REQUEST | {"stream": stream}
        answers.append(httpx.post(running.url + URL, json=request, headers={"X-Request-Id": "early"}, timeout=60.0))

    sender = threading.Thread(target=send)
    sender.start()
    assert begun.wait(10)
    assert client.delete("/v1/requests/early").status_code == 200
    sender.join(5)
    assert answers[0].status_code == 499 and answers[0].json()["error"]["type"] == "cancelled"


def test_what_was_made_when_a_request_is_cancelled_is_not_lost() -> None:
    """An engine's place, of which nobody else knows: who gets it gives it back."""

    async def run() -> None:
        cancelled = asyncio.Event()

        async def never() -> dict[str, Any]:
            await asyncio.sleep(60)
            return {}

        async def make() -> str:
            cancelled.set()
            return "a place"

        assert await while_wanted(never, make(), cancelled) == "a place"
        with pytest.raises(Cancelled, match="was cancelled"):
            await while_wanted(never, never(), cancelled)

    asyncio.run(run())


def test_what_fails_is_not_kept(client: httpx.Client) -> None:
    headers, wrong = {"Idempotency-Key": "def"}, REQUEST | {"subjects": [{"image": _picture(), "word": "dog"}]}
    assert client.post(URL, json=wrong, headers=headers).status_code == 422
    assert client.post(URL, json=REQUEST, headers=headers).status_code == 200


def test_answers_are_bounded_and_end_with_the_last_who_waits() -> None:
    async def run() -> None:
        answers = Answers(AnswerKeeper(max_bytes=12, seconds=60.0))
        made: list[str] = []

        async def make(name: str) -> bytes:
            made.append(name)
            return b"x" * 6

        for name in ("a", "b", "c", "b", "a"):  # two fit: the oldest went when the third came
            await answers.once((None, name), name.encode(), lambda name=name: make(name))  # type: ignore[misc]
        assert made == ["a", "b", "c", "a"]

        ended = asyncio.Event()

        async def endless() -> bytes:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()
            return b""

        waiters = [asyncio.ensure_future(answers.once((None, "e"), b"e", endless)) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(Conflict):
            await answers.once((None, "e"), b"other", endless)
        waiters[0].cancel()
        await asyncio.sleep(0.01)
        assert not ended.is_set()
        waiters[1].cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        assert ended.is_set()

    asyncio.run(run())


def test_a_subject_by_its_id_draws_the_same(running: Any, client: httpx.Client) -> None:
    first = client.post("/v1/subjects", json={"image": _picture()}).json()
    assert first["id"].startswith("subject-") and first["bytes"] > 0 and first["encoder"]
    assert client.post("/v1/subjects", json={"image": _picture()}).json() == first
    assert client.get(f"/v1/subjects/{first['id']}").json() == first
    by_id = REQUEST | {"seed": 3, "subjects": [{"id": first["id"], "word": "cat"}]}
    by_image = REQUEST | {"seed": 3, "subjects": [{"image": _picture(), "word": "cat"}]}
    pictures = [client.post(URL, json=one).json()["data"][0]["b64_json"] for one in (by_id, by_image)]
    assert pictures[0] == pictures[1]
    other = client.post("/v1/subjects", json={"image": _picture(1)}).json()
    assert other["id"] != first["id"]
    answer = client.post(URL, json=by_id)  # room for one alone
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (404, "subject_not_found", "subjects[0].id")
    assert running.service.subjects.held_bytes == other["bytes"]


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ({"word": "cat"}, "give `image` or `id`, got none"),
        ({"word": "cat", "image": "x", "id": "y"}, "got both"),
        ({"word": "cat", "id": "y", "mask": "z"}, "send it to /v1/subjects"),
    ],
)
def test_a_subject_is_a_picture_or_an_id(client: httpx.Client, subject: dict[str, Any], message: str) -> None:
    answer = client.post(URL, json=REQUEST | {"subjects": [subject]})
    assert answer.status_code == 422 and message in answer.json()["error"]["message"]


def test_a_deadline_of_its_own(running: Any, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    Slow(running, monkeypatch)
    request = REQUEST | {"num_inference_steps": 200, "deadline_seconds": 0.3}
    started = time.monotonic()
    answer = client.post(URL, json=request)
    assert answer.status_code == 408 and answer.json()["error"]["type"] == "deadline_exceeded"
    assert time.monotonic() - started < 20  # all steps take 45 s
    assert client.post(URL, json=request | {"deadline_seconds": 61}).status_code == 422


def test_a_deterministic_request_has_the_same_bytes_in_any_company(running: Any, client: httpx.Client) -> None:
    asked = REQUEST | {"deterministic": True, "seed": 4, "num_inference_steps": 8}
    asked |= {"subjects": [{"image": _picture(), "word": "cat"}]}
    alone = client.post(URL, json=asked).json()["data"]
    company = [
        threading.Thread(
            target=httpx.post, args=(running.url + URL,), kwargs={"json": REQUEST | {"n": n}, "timeout": 60.0}
        )
        for n in (1, 2, 3)
    ]
    for other in company:
        other.start()
    assert client.post(URL, json=asked).json()["data"] == alone
    for other in company:
        other.join(60)


def test_usage_counts_forwards_and_seconds(running: Any, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    Slow(running, monkeypatch)
    subjects = [{"image": _picture(), "word": "cat"}]
    plain = client.post(URL, json=REQUEST | {"guidance_scale": 1.0}).json()["usage"]
    custom = client.post(URL, json=REQUEST | {"n": 2, "guidance_scale": 1.0, "subjects": subjects}).json()["usage"]
    assert plain["forwards"] == 2 and plain["seconds"] >= 0.1 and plain["queue_seconds"] >= 0
    assert custom["forwards"] >= 2 * 2 * 2  # images x steps x (guidance pass and generation pass)


def test_subjects_wait_for_each_other_and_for_nobody_else(
    tiny_pipeline: RealCustomPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is encoded at a time; those that come beyond the queue, or wait too long, are told so."""
    encode, go_on = tiny_pipeline.encode_subject, threading.Event()
    encoded: list[None] = []

    def held(*args: Any) -> Any:
        encoded.append(None)
        assert go_on.wait(30)
        return encode(*args)

    monkeypatch.setattr(tiny_pipeline, "encode_subject", held)
    settings = ServeSettings(max_queue=2, deadline_seconds=0.5)
    service = Service(settings, lambda: Engine(tiny_pipeline, threads=1, adapter=ADAPTER))
    service.wait()

    async def talk() -> list[Any]:
        adding = [
            asyncio.ensure_future(service.add_subject(NewSubject(image=_picture(seed), mask=None))) for seed in range(3)
        ]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="3 subjects are being encoded"):
            await service.add_subject(NewSubject(image=_picture(9), mask=None))
        found = await asyncio.gather(*adding, return_exceptions=True)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: len(encoded)), 5) == 1
        go_on.set()
        return found

    found = asyncio.run(talk())
    assert [type(one) for one in found] == [DeadlineExceeded] * 3
    again = asyncio.run(service.add_subject(NewSubject(image=_picture(9), mask=None)))
    assert again.id.startswith("subject-") and len(encoded) == 2  # nothing was encoded for those who had gone
    service.close()
