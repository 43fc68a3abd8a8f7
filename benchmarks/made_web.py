"""A made-up web on loopback: hosts that serve pictures, hosts that never answer, and names that are not found.

No packet leaves the machine: names are looked up in this process (`looked_up_here`), live ones lead to a server of one process,
dead hosts to a socket whose connections nobody accepts. Of the dead names two thirds are denied after 0.3 s, as a lapsed domain
is, and a third after 5 s without an answer, as one whose name servers are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

from made_photos import smooth_jpegs

DEAD_HOSTS, DEAD_NAMES = 0.10, 0.15  # shares of the hosts
DENIED, UNANSWERED = 0.3, 5.0  # seconds until a look-up of a dead name ends
SIDE = 256  # pixels of a picture
PICTURES = 64  # different ones


@dataclass(frozen=True, kw_only=True)
class Web:
    """What a table of URLs is made of."""

    urls: list[str]
    alive: int  # of these URLs, those of living hosts


@contextlib.contextmanager
def served(rows: int, hosts: int) -> Iterator[Web]:
    """The web while its server runs: `rows` URLs, the hosts in random order, each as often."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:  # a full queue: further connections get no answer
        ports = {"live": ours.recv(), "silent": silent.getsockname()[1]}
        try:
            yield _urls(rows, hosts, ports)
        finally:
            server.terminate()
            server.join()


def _urls(rows: int, hosts: int, ports: dict[str, int]) -> Web:
    silent, nameless = round(hosts * DEAD_HOSTS), round(hosts * DEAD_NAMES)
    kinds = ["silent"] * silent + ["denied", "denied", "unanswered"] * (nameless // 3)
    kinds += ["denied"] * (silent + nameless - len(kinds)) + ["live"] * (hosts - silent - nameless)
    names = [f"{kind}-{number}.test:{ports.get(kind, ports['live'])}" for number, kind in enumerate(kinds)]
    urls = [f"http://{names[row % hosts]}/{row}.jpg" for row in range(rows)]
    random.Random(0).shuffle(urls)
    return Web(urls=urls, alive=sum("//live" in url for url in urls))


@contextlib.contextmanager
def looked_up_here() -> Iterator[None]:
    """Names of the made-up web mean what they say in this process; any other name is an error of the benchmark."""

    def look_up(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        kind = host.partition("-")[0]
        if kind in ("live", "silent"):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        if kind not in ("denied", "unanswered"):
            raise AssertionError(f"{host} is not of the made-up web")
        time.sleep(DENIED if kind == "denied" else UNANSWERED)
        raise socket.gaierror(socket.EAI_NONAME if kind == "denied" else socket.EAI_AGAIN, "dead")

    with mock.patch("socket.getaddrinfo", look_up):
        yield


def _serve(ready: Connection) -> None:
    asyncio.run(_server(_answers(), ready))


async def _server(answers: Sequence[bytes], ready: Connection) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                number = int(head.split(b" ", 2)[1].strip(b"/").partition(b".")[0])
                writer.write(answers[number % len(answers)])
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _answers() -> list[bytes]:
    """Whole HTTP answers, each with a picture."""
    return [
        b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)
        for data in smooth_jpegs(PICTURES, SIDE, colours=6, grain=6, quality=85)
    ]
