"""Clients that go away at any moment, in any way: every place is given back, and the next request is unharmed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from ray.serve import get_deployment_handle

from realcustom.inference.app import APP_NAME, ENGINE
from realcustom.inference.settings import ServeSettings
from realcustom.inference.starting import start, stop
from tests.support.loopback import free_port
from tests.support.slow_steps import slow_steps
from tests.support.tiny import TinyModels
from tests.support.waiting import wait_for

URL = "/v1/images/generations"
REQUEST: dict[str, Any] = {
    "prompt": "a cat in the snow",
    "num_inference_steps": 2000,
    "seed": 1,
}  # longer than a test waits: what leaks shows
AT_ONCE = 12


async def _one(url: str, number: int, chance: random.Random) -> None:
    """One client: it sends a request whole, in part or slowly, reads some of the answer, and leaves in one of four ways."""
    stream, part = chance.random() < 0.5, chance.random() < 0.15
    body = json.dumps(REQUEST | {"stream": stream, "partial_images": 1 if stream else None}).encode()
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nX-Request-Id: storm-{number}\r\nContent-Length: {len(body)}\r\n\r\n"
    data = head.encode() + (body[: len(body) // 2] if part else body)
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    with contextlib.suppress(ConnectionError, TimeoutError):
        if chance.random() < 0.2:  # slowly
            for i in range(0, len(data), 100):
                writer.write(data[i : i + 100])
                await asyncio.sleep(0.005)
        else:
            writer.write(data)
        await writer.drain()
        async with asyncio.timeout(chance.uniform(0, 0.4)):
            while await reader.read(200 if chance.random() < 0.3 else 100_000):
                await asyncio.sleep(0.002)
    leaving = chance.choice(("close", "reset", "half", "cancel"))
    if leaving == "cancel":
        async with httpx.AsyncClient(timeout=30.0) as client:
            assert (await client.delete(f"{url}/v1/requests/storm-{number}")).status_code in (200, 404)
    elif leaving == "half":
        with contextlib.suppress(OSError):
            writer.write_eof()
        await asyncio.sleep(0.02)
    elif leaving == "reset":
        linger = struct.pack("ii", 1, 0)  # closing sends RST
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def storm(url: str, count: int, seed: int) -> None:
    """`count` such clients, `AT_ONCE` at a time."""

    async def run() -> None:
        chance, places = random.Random(seed), asyncio.Semaphore(AT_ONCE)

        async def within(number: int) -> None:
            async with places:
                await _one(url, number, random.Random(chance.random()))

        await asyncio.gather(*(within(number) for number in range(count)))

    asyncio.run(run())


def _plain(url: str) -> bytes:
    answer = httpx.post(url + URL, json=REQUEST | {"num_inference_steps": 3, "n": 1}, timeout=60.0)
    assert answer.status_code == 200, answer.text
    return json.dumps(answer.json()["data"]).encode()


def test_many_clients_that_leave(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    running = serve(body_timeout_seconds=1.0, deadline_seconds=3600.0)
    slow_steps(running.service.engine(), monkeypatch, 0.01)
    before = _plain(running.url)
    storm(running.url, 60, seed=1)
    wait_for(lambda: running.service.engine().jobs == 0, 6.0)
    assert _plain(running.url) == before


@pytest.fixture(scope="module")
def served(ray_cluster: str, tiny_models: TinyModels) -> Iterator[str]:
    settings = ServeSettings(
        port=free_port(),
        threads=1,
        device="cpu",
        body_timeout_seconds=1.0,
        max_queue=15,
        max_steps=2000,
        deadline_seconds=3600.0,
    )
    yield start(settings, tiny_models.base, tiny_models.adapter, tiny_models.image_encoder)
    stop()


def _jobs() -> int:
    """Of the engine."""
    [stats] = get_deployment_handle(ENGINE, APP_NAME).broadcast("record_routing_stats").results()
    return int(stats["jobs"])


@pytest.mark.slow
def test_a_thousand_clients_that_leave_through_serve(served: str) -> None:
    before = _plain(served)
    storm(served, 1000, seed=2)
    wait_for(lambda: _jobs() == 0, 12.0)  # a lease, and the next question for the engine's health

    async def fill() -> list[int]:
        request = REQUEST | {"num_inference_steps": 20, "n": 1}
        async with httpx.AsyncClient(timeout=120.0) as client:
            asked = [client.post(served + URL, json=request) for _ in range(16)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(fill()) == [200] * 16  # as many as the engine takes: none is taken by one who left
    assert _plain(served) == before
