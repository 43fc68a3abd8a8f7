"""Keys with their limits, times and sizes of bodies, security headers, and what the access log says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from realcustom.errors import UsageError
from realcustom.inference.handling import SPARE_BODIES
from realcustom.inference.keys import Key, KeyLimits, digest_of, find_keys
from realcustom.inference.settings import ServeSettings
from tests.support.waiting import wait_for

URL = "/v1/images/generations"
REQUEST: dict[str, Any] = {"prompt": "a cat in the snow", "num_inference_steps": 1}
SECRET = "alice-has-a-long-key"


def _key(name: str, **limits: Any) -> Key:
    return Key(name=name, digest=digest_of(f"{name}-has-a-long-key"), limits=KeyLimits(**limits))


KEYS = [
    _key("alice", max_pixels=32 * 32, max_steps=5, max_body_bytes=2000, max_n=1),
    _key("small", max_pixels=16 * 16),
    _key("quick", max_steps=2),
    _key("busy", max_running=1),
    _key("often", requests_per_minute=120),
    _key("free"),
]


@pytest.fixture(scope="module")
def running(serve: Callable[..., Any]) -> Any:
    return serve(KEYS, access_log=True, body_timeout_seconds=0.5, max_body_bytes=100_000)


def _post(running: Any, name: str, **fields: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {name}-has-a-long-key"}
    return httpx.post(running.url + URL, json=REQUEST | fields, headers=headers, timeout=60.0)


def test_every_route_of_the_api_needs_a_key(running: Any) -> None:
    document = httpx.get(f"{running.url}/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            answer = httpx.request(method, running.url + re.sub(r"{\w+}", "x", path))
            assert (answer.status_code == 401) == path.startswith("/v1/") == ("security" in operation), path
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for wrong in ("Bearer", "Basic x", "bearer é", f"Token {SECRET}", f"Bearer {SECRET}x"):
        answer = httpx.get(f"{running.url}/v1/models", headers={b"Authorization": wrong.encode("latin-1")})
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
    assert httpx.get(f"{running.url}/v1/models", headers={"Authorization": f"bearer {SECRET}"}).status_code == 200


def test_a_key_has_sizes_of_its_own(running: Any) -> None:
    assert _post(running, "alice").status_code == 200
    for field, value in {"size": "64x32", "num_inference_steps": 6, "n": 2}.items():
        answer = _post(running, "alice", **{field: value})
        assert answer.status_code == 422 and "limit of" in answer.json()["error"]["message"]
        assert _post(running, "free", **{field: value}).status_code == 200
    assert _post(running, "alice", user="x" * 2000).status_code == 413


def test_what_is_left_out_is_limited_too(running: Any, serve: Callable[..., Any]) -> None:
    """The base's own size is 32x32, the adapter's own number of steps 3."""
    for name, fields, param, message in (
        ("small", {}, "size", "32x32 is over the limit of 256 pixels"),
        ("small", {"size": "auto"}, "size", "32x32 is over the limit of 256 pixels"),
        ("quick", {"num_inference_steps": None}, "num_inference_steps", "3 is more than the limit of 2"),
    ):
        answer = _post(running, name, **fields)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["message"]) == (422, param, f"{param}: {message}")
    assert _post(running, "small", size="16x16").status_code == 200
    server = serve(max_pixels=16 * 16)
    assert httpx.post(server.url + URL, json=REQUEST, timeout=60.0).status_code == 422  # its own limit as well


def _hold(running: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Holds the engine at its next step: set when it is there, and to be set to let it go."""
    scheduler = type(running.service.engine().pipeline.scheduler)  # each job has one of its own
    step, started, go_on = scheduler.step, threading.Event(), threading.Event()

    def held(*args: Any, **kwargs: Any) -> Any:
        started.set()
        assert go_on.wait(30)
        return step(*args, **kwargs)

    monkeypatch.setattr(scheduler, "step", held)
    return started, go_on


def test_a_key_has_a_number_of_requests_at_once(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = _hold(running, monkeypatch)
    answers: list[httpx.Response] = []
    sender = threading.Thread(target=lambda: answers.append(_post(running, "busy")))
    sender.start()
    assert started.wait(30)
    refused = _post(running, "busy")
    go_on.set()
    sender.join(30)
    assert refused.status_code == 429 and refused.json()["error"]["type"] == "rate_limited"
    assert int(refused.headers["Retry-After"]) >= 1 and answers[0].status_code == 200
    assert _post(running, "busy").status_code == 200  # its place is free again
    assert _post(running, "busy", prompt="").status_code == 422 and _post(running, "busy").status_code == 200


def test_a_key_cancels_its_own_requests_alone(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = _hold(running, monkeypatch)
    mine = {"Authorization": "Bearer free-has-a-long-key", "X-Request-Id": "same"}
    answers: list[httpx.Response] = []

    def send() -> None:
        answers.append(httpx.post(running.url + URL, json=REQUEST, headers=mine, timeout=60.0))

    sender = threading.Thread(target=send)
    sender.start()
    assert started.wait(30)
    of_another = httpx.delete(f"{running.url}/v1/requests/same", headers={"Authorization": f"Bearer {SECRET}"})
    ours = httpx.delete(f"{running.url}/v1/requests/same", headers={"Authorization": mine["Authorization"]})
    go_on.set()
    sender.join(30)
    assert (of_another.status_code, ours.status_code, answers[0].status_code) == (404, 200, 499)


def test_a_key_has_a_rate(serve: Callable[..., Any]) -> None:
    running = serve([_key("seldom", requests_per_minute=2)])
    assert [_post(running, "seldom").status_code for _ in range(3)] == [200, 200, 429]
    refused = _post(running, "seldom")
    assert 1 <= int(refused.headers["Retry-After"]) <= 30 and "2 requests a minute" in refused.text


def test_half_a_body_is_waited_for_no_longer_than_allowed(running: Any) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    head = (
        f"POST {URL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer free-has-a-long-key\r\nContent-Length: 1000\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(10)
        started = time.monotonic()
        connection.sendall(head.encode() + b'{"prompt": ')
        answer = connection.recv(10_000).decode()
    assert answer.startswith("HTTP/1.1 408") and "body_too_slow" in answer and time.monotonic() - started < 5


def test_bodies_that_come_slowly_leave_room_for_others(serve: Callable[..., Any]) -> None:
    url = serve(max_queue=0).url
    host, port = url.removeprefix("http://").split(":")
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{"
    with contextlib.ExitStack() as stack:
        for _ in range(1 + SPARE_BODIES):
            connection = stack.enter_context(socket.create_connection((host, int(port))))
            connection.sendall(head.encode())

        def refused() -> bool:
            answer = httpx.post(url + URL, json=REQUEST, timeout=60.0)
            return answer.status_code == 429 and answer.headers["Retry-After"] == "1"

        wait_for(refused, 20.0)
        assert httpx.get(f"{url}/healthz").status_code == 200
    wait_for(lambda: httpx.post(url + URL, json=REQUEST, timeout=60.0).status_code == 200, 20.0)


def test_a_declared_length_is_refused_before_it_is_sent(running: Any) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer free-has-a-long-key\r\nContent-Length: {10**12}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(10)
        connection.sendall(head.encode())
        assert connection.recv(10_000).startswith(b"HTTP/1.1 413")


def test_security_headers_are_on_every_answer(running: Any) -> None:
    for method, path in (
        ("GET", "/healthz"),
        ("GET", "/nothing"),
        ("GET", "/v1/models"),
        ("POST", URL),
        ("GET", "/docs"),
    ):
        headers = httpx.request(method, running.url + path).headers
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in headers and headers.get_list("X-Request-Id") != []


def test_the_access_log_has_numbers_and_no_secrets(running: Any, capfd: pytest.CaptureFixture[str]) -> None:
    _post(running, "free", prompt="a cat named Mausi", model=None, n=2, seed=123456789)
    httpx.post(running.url + URL, json={"prompt": "Mausi"}, headers={"Authorization": "Bearer wrong-key-of-mine"})
    httpx.get(f"{running.url}/v1/subjects/Mausi", headers={"Authorization": f"Bearer {SECRET}"})
    said, end = "", time.monotonic() + 10
    while said.count("\n{") + said.startswith("{") < 3 or not said.endswith("\n"):  # written after the answer has gone
        assert time.monotonic() < end
        said += capfd.readouterr().err
    first, refused, missing = (json.loads(line) for line in said.splitlines() if line.startswith("{"))
    assert (first["route"], first["status"], first["key"]) == (URL, 200, "free")
    assert (first["steps"], first["images"], first["model"]) == (1, 2, "realcustom:0123456789ab")
    assert first["seconds"] >= first["compute_seconds"] > 0 and first["queue_seconds"] >= 0 and first["request_id"]
    assert (refused["status"], refused["error"]) == (401, "unauthorized") and "key" not in refused
    assert (missing["route"], missing["error"]) == ("/v1/subjects/{subject_id}", "subject_not_found")
    for secret in ("Mausi", "123456789,", "wrong-key", SECRET):
        assert secret not in said


def _write(path: Path, text: str, mode: int = 0o600) -> ServeSettings:
    path.write_text(text)
    path.chmod(mode)
    return ServeSettings(keys_file=str(path))


def test_a_keys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = hashlib.sha256(b"another long key").hexdigest()
    settings = _write(
        tmp_path / "keys.yaml",
        f"alice: {{key: {SECRET}, requests_per_minute: 30, max_running: 2, max_pixels: 4096}}\nbob: {{sha256: {hashed}}}\n",
    )
    alice, bob = find_keys(settings)
    assert alice == Key(
        name="alice",
        digest=digest_of(SECRET),
        limits=KeyLimits(requests_per_minute=30.0, max_running=2, max_pixels=4096),
    )
    assert bob == Key(name="bob", digest=digest_of("another long key"))
    assert alice.limits.narrow(settings).max_pixels == 4096 and bob.limits.narrow(settings) == settings
    monkeypatch.setenv("A_KEY", "from the environment")
    both = ServeSettings(keys_file=settings.keys_file, api_key_variable="A_KEY")
    assert [key.name for key in find_keys(both)] == ["default", "alice", "bob"]
    assert find_keys(ServeSettings()) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no keys"),
        ("- a", "holds no keys"),
        (f"alice: {SECRET}", "alice has no entries"),
        ("alice: {}", "alice has 0 of key and sha256"),
        (f"alice: {{key: {SECRET}, sha256: x}}", "alice has 2 of key and sha256"),
        ("alice: {key: short}", "at least 16 characters"),
        ("alice: {key: 12345678901234567890}", "a text of at least 16"),
        ("alice: {sha256: abc}", "64 hexadecimal digits"),
        (f"'a b': {{key: {SECRET}}}", "a key's name is"),
        (f"alice: {{key: {SECRET}, max_runing: 2}}", "max_running"),
        (f"alice: {{key: {SECRET}, max_running: 0}}", "more than 0"),
        (f"alice: {{key: {SECRET}}}\nbob: {{key: {SECRET}}}", "two keys have the same key"),
        (f"alice: {{key: {SECRET}", "not valid YAML"),
    ],
)
def test_a_keys_file_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        find_keys(_write(tmp_path / "keys.yaml", text))
    assert SECRET not in str(caught.value)


def test_a_keys_file_that_others_can_read_or_that_is_not_there(tmp_path: Path) -> None:
    for mode in (0o644, 0o640, 0o602):
        with pytest.raises(UsageError, match=r"others can use .* chmod 600"):
            find_keys(_write(tmp_path / "keys.yaml", f"alice: {{key: {SECRET}}}", mode))
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        find_keys(ServeSettings(keys_file=str(tmp_path / "none.yaml")))
