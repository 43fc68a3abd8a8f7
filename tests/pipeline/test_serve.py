"""`realcustom serve` as a user runs it: a process that answers HTTP until Ctrl-C."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from PIL import Image

from inference.settings import ServeSettings
from pipeline.serving import announcement
from tests.pipeline.conftest import Models


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_it_answers_until_ctrl_c(ray_cluster: str, models: Models, photo: str) -> None:
    port = free_port()
    arguments = ["serve", *models.sets, "--set", f"serve.port={port}", "--set", "serve.threads=1"]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("realcustom"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    stderr: list[str] = []
    reader = threading.Thread(target=lambda: stderr.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        assert process.stdout is not None
        ready = next((line for line in process.stdout if line.startswith("ready at ")), None)
        assert ready is not None, "".join(stderr)
        url = f"http://127.0.0.1:{port}"
        assert url in ready
        subject = {"image": base64.b64encode(Path(photo).read_bytes()).decode(), "word": "toy"}
        request = {"prompt": "a toy in the snow", "seed": 3, "num_inference_steps": 2, "subjects": [subject]}
        answer = httpx.post(f"{url}/v1/images/generations", json=request, timeout=120)
        assert answer.status_code == 200, answer.text
        image = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
        assert image.size == (32, 32)
        wrong = httpx.post(f"{url}/v1/images/generations", json={**request, "prompt": "a cat"}, timeout=60)
        assert wrong.status_code == 422 and "its words are: a, cat" in wrong.text
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        reader.join(10)
        assert "interrupted\n" in stderr and "Traceback" not in "".join(stderr)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/healthz", timeout=5)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
        reader.join(10)
        process.stderr.close()


def test_a_taken_port_is_one_line(ray_cluster: str, models: Models) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        arguments = ["serve", *models.sets, "--set", f"serve.port={taken.getsockname()[1]}"]
        done = subprocess.run(
            [Path(sys.executable).with_name("realcustom"), *arguments], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 2
    assert re.search(r"^error: cannot listen on 127.0.0.1 port \d+ .*; choose another port$", done.stderr, re.MULTILINE)


def test_the_announcement_names_the_key_that_a_request_needs() -> None:
    text = announcement("http://127.0.0.1:8000", ServeSettings(api_key_variable="MY_KEY"))
    assert "ready at http://127.0.0.1:8000" in text and '-H "Authorization: Bearer $MY_KEY"' in text
