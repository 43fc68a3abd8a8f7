"""What an engine's deployment tells the API, without a cluster."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from PIL import Image

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.inference.drawing import Drawing, read_drawing
from realcustom.inference.engine import Engine
from realcustom.inference.engine_server import EngineServer
from realcustom.inference.errors import Cancelled
from realcustom.inference.leases import Leases
from realcustom.inference.messages import Failed, Message
from realcustom.inference.schema import check_request
from realcustom.inference.service import Service
from realcustom.inference.settings import ServeSettings
from realcustom.inference.subjects import NewSubject
from realcustom.settings import Reference
from tests.support.tiny import ADAPTER


@pytest.fixture
def pipeline(tiny_pipeline: RealCustomPipeline) -> RealCustomPipeline:
    """Of an adapter that takes subjects cut out."""
    encoder = replace(tiny_pipeline.settings.image_encoder, reference=Reference.CROP)
    settings = replace(tiny_pipeline.settings, image_encoder=encoder)
    return RealCustomPipeline(tiny_pipeline.base, settings, tiny_pipeline.model, tiny_pipeline.image_encoder)


@pytest.fixture
def server(pipeline: RealCustomPipeline) -> Iterator[EngineServer]:
    service = Service(ServeSettings(), lambda: Engine(pipeline, threads=1, adapter=ADAPTER))
    service.wait()
    server = EngineServer.__new__(EngineServer)  # its constructor asks Serve for the replica's name
    server._service, server._name = service, "engine"
    server._leases, server._sweeping = Leases(seconds=0.3, every=0.05), None
    yield server
    service.close()


def _subject() -> NewSubject:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), "red").save(buffer, "PNG")
    return NewSubject(image=base64.b64encode(buffer.getvalue()).decode(), mask=None)


def _failed(server: EngineServer) -> Failed:
    found = asyncio.run(server.add_subject(_subject()))
    assert isinstance(found, Failed)
    return found


def test_a_subject_that_the_adapter_cannot_use_is_a_sentence(server: EngineServer) -> None:
    error = _failed(server).error
    assert (error.status, error.kind, error.param) == (422, "invalid_request", "image")
    assert (
        error.message.startswith("image: this adapter takes a subject cut out on white") and "\n" not in error.message
    )


def test_a_bug_tells_the_client_nothing_of_itself(
    server: EngineServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("realcustom.inference.service.read_pair", None)
    error = _failed(server).error
    assert (error.status, error.kind) == (500, "internal") and "NoneType" not in error.message
    assert "NoneType" in caplog.text


def _drawing(stream: bool) -> Drawing:
    fields = {"prompt": "a cat in the snow", "num_inference_steps": 900, "stream": stream}
    settings = ServeSettings(max_steps=900)
    return read_drawing(check_request(fields, settings), settings, None)


def test_callers_that_leave_at_any_moment_leave_no_lease(server: EngineServer) -> None:
    chance, engine = random.Random(1), server._service.engine()

    async def one(number: int) -> None:
        stream, leaves_at = chance.random() < 0.5, chance.randint(0, 4)
        async with contextlib.aclosing(server.draw(_drawing(stream), f"lease-{number}")) as messages:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    async for _ in messages:
                        if (leaves_at := leaves_at - 1) < 0:
                            break
        assert f"lease-{number}" not in server._leases._leases

    async def crowd() -> None:
        await asyncio.gather(*(one(number) for number in range(12)))
        async with asyncio.timeout(10):
            while engine.jobs:  # all of them together have minutes of steps
                await asyncio.sleep(0.01)

    asyncio.run(crowd())
    assert server.record_routing_stats() | {"holds": 0} == {"holds": 0, "jobs": 0} and not server._leases


def test_a_request_that_nobody_renews_ends_and_others_go_on(server: EngineServer) -> None:
    async def drawn(lease: str) -> list[Message]:
        return [message async for message in server.draw(_drawing(stream=False), lease)]

    async def talk() -> tuple[list[Message], bool]:
        left, kept = asyncio.ensure_future(drawn("left")), asyncio.ensure_future(drawn("kept"))
        async with asyncio.timeout(20):
            while not left.done():
                server.check_health()  # as Serve does where an engine is in service
                await server.renew(["kept"])
                await asyncio.sleep(0.02)
        await server.renew(["kept"])
        going_on = not kept.done() and len(server._leases) == 1
        kept.cancel()
        await asyncio.gather(kept, return_exceptions=True)
        return left.result(), going_on

    server._leases._swept -= 3600.0  # the engine was idle for an hour before its first request
    messages, going_on = asyncio.run(talk())
    assert going_on and isinstance(messages[-1], Failed) and isinstance(messages[-1].error, Cancelled)
