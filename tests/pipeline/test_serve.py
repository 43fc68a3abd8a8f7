"""What `realcustom serve` says, and how it ends. That it answers HTTP until Ctrl-C is seen in `tests/test_docs.py`."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import psutil
import pytest

from realcustom.inference.settings import ServeSettings
from realcustom.pipeline.serving import announcement
from tests.support.loopback import free_port
from tests.support.tiny import TinyModels

PATIENCE = 120.0  # seconds, on a busy machine
GENERATIONS = "/v1/images/generations"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A `realcustom serve`; its processes and Ray's have `mark` in their environment."""

    process: subprocess.Popen[str]
    url: str
    mark: str

    def processes(self) -> list[psutil.Process]:
        """Those of the command and its Ray that run."""
        found = []
        for one in psutil.process_iter():
            try:
                if one.environ().get("SERVER_MARK") == self.mark and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
            except psutil.Error:  # another user's, or just gone
                continue
        return found

    def child(self) -> psutil.Process:
        """The process that Ray's driver is in."""
        children = psutil.Process(self.process.pid).children()
        return min(children, key=lambda one: one.create_time())

    def ends(self) -> tuple[int, str]:
        """The exit status and stderr, once all processes have ended."""
        self.process.wait(PATIENCE)
        end = time.monotonic() + PATIENCE
        while left := self.processes():
            assert time.monotonic() < end, [one.cmdline() for one in left]
            time.sleep(0.1)
        assert self.process.stderr is not None
        return self.process.returncode, self.process.stderr.read()


Start = Callable[..., Server]


@pytest.fixture
def start(tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts servers on Rays of their own."""
    for name in ("RAY_ADDRESS", "RAY_worker_niceness"):
        monkeypatch.delenv(name, raising=False)
    servers: list[Server] = []

    def call(*options: str, wait: bool = True) -> Server:
        port, mark = free_port(), uuid.uuid4().hex
        given = ["--set", f"serve.port={port}", "--set", "serve.threads=1", "--set", "serve.max_steps=2000", *options]
        process = subprocess.Popen(
            [sys.executable, "-m", "realcustom", "serve", *tiny_models.options, *given],
            env={**os.environ, "SERVER_MARK": mark, "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        server = Server(process=process, url=f"http://127.0.0.1:{port}", mark=mark)
        servers.append(server)
        if wait:
            assert process.stdout is not None
            assert any(line.startswith("ready at") for line in process.stdout)
        return server

    yield call
    for server in servers:
        for process in server.processes():
            process.kill()
        server.process.wait()
        for pipe in (server.process.stdout, server.process.stderr):
            assert pipe is not None
            pipe.close()


def test_a_taken_port_is_one_line(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, said = start("--set", f"serve.port={taken.getsockname()[1]}", wait=False).ends()
    line = r"error: cannot listen on 127.0.0.1 port \d+ .*; choose another port: --set serve.port=N\n"
    assert status == 2 and re.fullmatch(line, said)


def test_the_announcement_names_the_key_that_a_request_needs() -> None:
    text = announcement("http://127.0.0.1:8000", ServeSettings(api_key_variable="MY_KEY"))
    assert "ready at http://127.0.0.1:8000" in text and '-H "Authorization: Bearer $MY_KEY"' in text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_what_runs_end_and_leaves_no_process(start: Start, number: signal.Signals) -> None:
    server = start("--set", "serve.drain_seconds=60")
    request = {"prompt": "a cat in the snow", "seed": 5, "num_inference_steps": 60, "stream": True}
    events: list[str] = []
    with httpx.stream("POST", server.url + GENERATIONS, json=request, timeout=PATIENCE) as response:
        for line in response.iter_lines():
            events += [line] if line.startswith("event: ") else []
            if events.count("event: realcustom.step") == 1 and line == events[-1]:
                server.process.send_signal(number)
    assert events[-1] == "event: image_generation.completed"
    status, said = server.ends()
    assert status == 128 + number and "Traceback" not in said and "terminate called" not in said, said


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process(start: Start) -> None:
    server = start()
    processes = server.processes()
    assert len(processes) > 5 and {one.nice() for one in processes} == {psutil.Process().nice()}  # none stands back
    server.child().kill()
    status, said = server.ends()
    assert status == 128 + signal.SIGKILL and "was ended by SIGKILL" in said


@pytest.mark.slow
def test_so_does_a_killed_command(start: Start) -> None:
    server = start()
    server.process.kill()
    assert server.ends()[0] == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.5, 4.0, 8.0])
def test_a_signal_while_it_starts_leaves_no_process(start: Start, seconds: float) -> None:
    server = start(wait=False)
    time.sleep(seconds)
    server.process.send_signal(signal.SIGTERM)
    status, said = server.ends()
    assert status in (128 + signal.SIGTERM, -signal.SIGTERM) and "terminate called" not in said, said
