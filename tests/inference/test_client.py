"""The two clients against the running service, and against one that is full, not ready, or no server of ours."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from realcustom.inference.client import (
    ApiError,
    AsyncClient,
    Client,
    Options,
    Retries,
    SubjectRequest,
    decode,
    encode,
)
from realcustom.inference.events import CompletedEvent, PartialImageEvent, QueuedEvent, StepEvent
from realcustom.inference.exchange import Event, EventReader
from realcustom.inference.responses import ModelList
from realcustom.sampling import SamplingParams
from tests.support.loopback import free_port
from tests.support.slow_steps import slow_steps

ROOT = Path(__file__).parents[2]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
PROMPT, FEW = "a cat in the snow", SamplingParams(num_inference_steps=3, seed=3)
CAT = SubjectRequest(image=encode(PICTURE), word="cat")


@pytest.fixture(scope="module")
def running(serve: Callable[..., Any]) -> Any:
    return serve()


def test_a_stream_that_ends_after_some_of_its_images_is_cut_short() -> None:
    picture = {"b64_json": "", "created_at": 1, "size": "1x1", "output_format": "png", "seed": 1, "adapter": None}
    more = {"model": "m", "ignored": [], "usage": {"forwards": 1, "seconds": 1.0, "queue_seconds": 0.0}}
    event = {"type": "image_generation.completed", "image_index": 0, **picture, **more}
    reader = EventReader("mine", images=2)
    for _ in range(2):
        with pytest.raises(ApiError, match="before all images were done"):
            reader.end()
        assert not list(reader.feed("event: image_generation.completed"))
        assert len(list(reader.feed(f"data: {json.dumps(event)}"))) == 1
    reader.end()


def test_the_example_of_the_page_draws(running: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    exec(compile(code.replace("http://127.0.0.1:8000", running.url), "docs/serving.md", "exec"), {})
    with Image.open(tmp_path / "star.png") as image:
        assert image.format == "PNG"


def test_generate_and_stream_give_the_same(running: Any, tmp_path: Path) -> None:
    with Client(running.url) as client:
        sampling = SamplingParams(num_inference_steps=3, seed=3, width=64, height=32)
        answer = client.generate(PROMPT, [CAT], sampling, Options(output_format="webp"))
        image = decode(answer.data[0].b64_json)
        assert (image.format, image.size, answer.size) == ("WEBP", (64, 32), "64x32")
        options = Options(output_format="webp", partial_images=1, mask_every=2, model=client.models().data[0].id)
        events = list(client.stream(PROMPT, [CAT], sampling, options))
        assert {type(event) for event in events} == {QueuedEvent, StepEvent, PartialImageEvent, CompletedEvent}
        assert isinstance(events[-1], CompletedEvent) and events[-1].b64_json == answer.data[0].b64_json
        PICTURE.save(tmp_path / "cat.png")
        subject = client.add_subject(encode(tmp_path / "cat.png"))
        by_id = client.generate(PROMPT, [SubjectRequest(id=subject.id, word="cat")], FEW)
        assert by_id.data == client.generate(PROMPT, [CAT], FEW).data
        with pytest.raises(ValueError, match="go together"):
            client.generate(PROMPT, [], SamplingParams(width=64))


def test_no_proxy_is_asked_for_this_machine(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def models() -> ModelList:
        async with AsyncClient(running.url) as client:
            return await client.models()

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with Client(running.url) as client:
        assert client.models() == asyncio.run(models())


def _pixels(picture: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))).astype(np.int16)


def test_the_same_for_asyncio(running: Any) -> None:
    async def run() -> None:
        async with AsyncClient(running.url) as client:
            models = await client.models()
            subject = await client.add_subject(encode(PICTURE))
            given = [SubjectRequest(id=subject.id, word="cat")]
            answers = await asyncio.gather(
                *(client.generate(PROMPT, given, FEW, Options(model=models.data[0].id)) for _ in range(3))
            )
            assert answers[0].data == answers[1].data == answers[2].data
            events: list[Event] = [event async for event in client.stream(PROMPT, given, FEW)]
            assert isinstance(events[-1], CompletedEvent)
            # in a UNet call of its own the last bits are others
            alone, together = _pixels(events[-1].b64_json), _pixels(answers[0].data[0].b64_json)
            assert np.abs(alone - together).max() <= 1
            with pytest.raises(ApiError, match="its words are") as caught:
                await client.generate("a dog", given, FEW)
            assert (caught.value.status, caught.value.kind, caught.value.param) == (
                422, "word_not_in_prompt", "subjects[0].word",
            )  # fmt: skip
            assert caught.value.request_id
            with pytest.raises(ApiError, match="no request x runs"):
                await client.cancel("x")

    asyncio.run(run())


def test_a_stream_is_ended_by_closing_it_or_by_its_id(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = slow_steps(running.service.engine(), monkeypatch, 0.05)
    long = SamplingParams(num_inference_steps=300)
    with Client(running.url) as client:
        stream = client.stream(PROMPT, (), long)
        next(stream)
        stream.close()
        gone = time.monotonic()
        time.sleep(0.4)
        assert sum(at > gone for at in steps) <= 2
        stream = client.stream(PROMPT, (), long, Options(request_id="mine"))
        next(stream)
        client.cancel("mine")
        with pytest.raises(ApiError, match="cancelled") as caught:
            list(stream)
        assert (caught.value.kind, caught.value.request_id) == ("cancelled", "mine")


class _Scripted(BaseHTTPRequestHandler):
    """Answers with the script's entries in turn: status, headers, body."""

    script: ClassVar[list[tuple[int, dict[str, str], bytes]]]
    times: ClassVar[list[float]]

    def do_GET(self) -> None:
        self.times.append(time.monotonic())
        status, headers, body = self.script.pop(0)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


MODELS: tuple[int, dict[str, str], bytes] = (200, {}, b'{"object": "list", "data": []}')
FULL = b'{"error": {"type": "queue_full", "message": "full", "param": null}}'


@pytest.fixture
def scripted() -> Iterator[tuple[str, type[_Scripted]]]:
    class Handler(_Scripted):
        script: ClassVar[list[tuple[int, dict[str, str], bytes]]] = []
        times: ClassVar[list[float]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    thread.join()
    server.server_close()


def _models(url: str, asynchronous: bool, retries: Retries) -> Any:
    async def ask() -> Any:
        async with AsyncClient(url, retries=retries) as client:
            return await client.models()

    if asynchronous:
        return asyncio.run(ask())
    with Client(url, retries=retries) as client:
        return client.models()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_server_is_asked_again_after_what_it_says(
    scripted: tuple[str, type[_Scripted]], asynchronous: bool
) -> None:
    url, handler = scripted
    handler.script += [(429, {"Retry-After": "1"}, FULL), (503, {"Retry-After": "0"}, b"loading"), MODELS]
    assert _models(url, asynchronous, Retries()).data == []
    first, second, third = handler.times
    assert second - first >= 1.0 and third > second


@pytest.mark.parametrize("asynchronous", [False, True])
def test_it_gives_up_in_time(scripted: tuple[str, type[_Scripted]], asynchronous: bool) -> None:
    url, handler = scripted
    handler.script += [(429, {"Retry-After": "0"}, FULL)] * 2 + [(429, {"Retry-After": "61"}, FULL)]
    for _ in range(2):  # after two tries; then for the wait's length
        with pytest.raises(ApiError, match=r"full \(429 queue_full\)"):
            _models(url, asynchronous, Retries(attempts=2))
    assert len(handler.times) == 3


def test_answers_that_are_not_ours(scripted: tuple[str, type[_Scripted]]) -> None:
    url, handler = scripted
    handler.script += [
        (502, {}, b"<html>bad gateway"),
        (200, {}, b"hello"),
        (200, {}, b"event: realcustom.later\ndata: {}\n\n"),
    ]
    with Client(url) as client:
        with pytest.raises(ApiError, match=r"bad gateway \(502 not_ours\)"):
            client.models()
        with pytest.raises(ApiError, match="not an answer of this API"):
            client.models()
        with pytest.raises(ApiError, match="ended before all images"):
            list(client.stream(PROMPT))


def test_the_client_needs_neither_torch_nor_ray() -> None:
    code = "import sys, realcustom.inference.client; assert not {'torch', 'ray', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
