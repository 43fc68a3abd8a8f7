"""A service on a real HTTP server over loopback: streams and clients that go away need one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import uvicorn

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.inference.api import build_api
from realcustom.inference.backend import State
from realcustom.inference.engine import Engine
from realcustom.inference.keys import Key
from realcustom.inference.service import Service
from realcustom.inference.settings import ServeSettings
from tests.support.tiny import ADAPTER, TinyModels


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server's address, and the service behind it."""

    url: str
    service: Service


Serve = Callable[..., Running]


@pytest.fixture(scope="module")
def serve(tiny_models: TinyModels) -> Iterator[Serve]:
    """Starts servers with the given settings, each with a pipeline of its own; all end after the file's tests."""
    ends: list[Callable[[], None]] = []

    def start(keys: Sequence[Key] = (), **settings: object) -> Running:
        pipeline = RealCustomPipeline.from_pretrained(
            tiny_models.base, adapter=tiny_models.adapter, image_encoder=tiny_models.image_encoder, device="cpu"
        )
        pipeline.set_progress_bar_config(disable=True)
        chosen = ServeSettings(**{"deadline_seconds": 60.0, "max_steps": 2000, **settings})  # type: ignore[arg-type]
        service = Service(
            chosen,
            lambda: Engine(pipeline, deadline_seconds=chosen.deadline_seconds, threads=1, adapter=ADAPTER),
        )
        while service.state()[0] is State.LOADING:
            time.sleep(0.01)
        service.engine()  # raises why it could not be loaded
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(build_api(service, keys), log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)

        def end() -> None:
            server.should_exit = True
            thread.join()
            listener.close()
            service.close()

        ends.append(end)
        return Running(url=f"http://127.0.0.1:{listener.getsockname()[1]}", service=service)

    yield start
    for end in ends:
        end()
