"""Inputs that mean harm: each is refused clearly; no file is opened, no address contacted, no secret logged."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import struct
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from realcustom import log

URL, EDITS, SUBJECTS = "/v1/images/generations", "/v1/images/edits", "/v1/subjects"
REQUEST: dict[str, Any] = {"prompt": "a cat in the snow", "num_inference_steps": 1, "seed": 1}
WATCHED = (
    "open",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "subprocess.Popen",
    "os.system",
    "exec",
)

_watchers: list[list[tuple[str, str]]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watchers and event in WATCHED and threading.current_thread() is not threading.main_thread():
        _watchers[-1].append((event, repr(arguments)[:200]))


sys.addaudithook(_hook)  # of the whole process, and for good: it does nothing while nobody watches


@contextlib.contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """What the server's threads open, contact or run; the test's own thread is the client."""
    seen: list[tuple[str, str]] = []
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.pop()


def _png(size: int = 24) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _saved(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, form)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_bomb(width: int, height: int, text: bytes = b"") -> bytes:
    """A PNG of a few bytes that says it is large, or has a text that unpacks to much."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + text + _chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + _chunk(b"IEND", b"")


def _zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../evil.py", "import os")
    return buffer.getvalue()


PICTURES = {
    "a path": b"/etc/passwd",
    "a relative path": b"../../../../etc/passwd",
    "a file URL": b"file:///etc/passwd",
    "a URL": b"http://169.254.169.254/latest/meta-data/",
    "a bucket": b"s3://bucket/key",
    "a share": b"\\\\host\\share\\a.png",
    "a data URL of a URL": b"data:text/uri-list;base64,http://localhost/",
    "a data URL without base64": b"data:image/svg+xml,<svg/>",
}
BYTES = {
    "nothing": b"",
    "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "XML with an entity": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n",
    "GIF and script": b"GIF89a/*" + b"\0" * 50 + b"*/=1;alert(1)//",
    "GIF": _saved("GIF"),
    "BMP": _saved("BMP"),
    "TIFF": _saved("TIFF"),
    "ICO": _saved("ICO"),
    "a zip": _zipped(),
    "HTML": b"<!doctype html><script>alert(1)</script>",
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    "half a PNG": _png()[:100],
    "a PNG with a broken checksum": _png()[:-20] + bytes(20),
    "a bomb of pixels": _png_bomb(60_000, 60_000),
    "a bomb of height": _png_bomb(1, 2**31 - 1),
    "a bomb of text": _png_bomb(8, 8, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))),
    "a WebP bomb": b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x0f" + bytes(8),
}
PART = b'--a\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--a--'
FIELDS: dict[str, dict[str, Any]] = {
    "many steps": {"num_inference_steps": 10**9},
    "a number of many digits": {"num_inference_steps": 10**400},
    "a negative seed": {"seed": -1},
    "a seed beyond JSON": {"seed": 2**64},
    "infinity": {"guidance_scale": float("inf")},
    "NaN": {"guidance_scale": float("nan")},
    "NUL": {"prompt": "a cat\0in the snow"},
    "a huge size": {"size": "99999x99999"},
    "a size with an exponent": {"size": "1e9x1"},
    "a list for a text": {"prompt": ["a"] * 1000},
    "an object for a text": {"prompt": {"$ne": None}},
    "a long prompt": {"prompt": "a " * 100_000},
    "many subjects": {"subjects": [{"image": "x", "word": "cat"}] * 10_000},
    "many unknown fields": {f"field{i}": i for i in range(5000)},
    "a long name": {"x" * 50_000: 1},
    "the name of an attribute": {"__class__": "x", "model_fields_set": 1},
    "a model's path": {"model": "../../etc/passwd"},
    "many images": {"n": 10**6},
    "a template": {"output_format": "{{7*7}}"},
    "a subject's path": {"subjects": [{"id": "../../etc/passwd", "word": "cat"}]},
    "a regular expression": {"subjects": [{"image": base64.b64encode(_png()).decode(), "word": "(a+)+$"}]},
}


@pytest.fixture(scope="module")
def running(serve: Callable[..., Any]) -> Any:
    running = serve(max_body_bytes=2_000_000, body_timeout_seconds=1.0, max_steps=4, access_log=True, max_n=2)
    picture = base64.b64encode(_png()).decode()
    for _ in range(2):  # everything is imported, every format's reader is loaded
        httpx.post(running.url + URL, json=REQUEST | {"subjects": [{"image": picture, "word": "cat"}]}, timeout=60.0)
        httpx.post(running.url + EDITS, data={"prompt": "a cat", "word": "cat"}, files={"image": _png()}, timeout=60.0)
        for data in BYTES.values():
            httpx.post(running.url + SUBJECTS, json={"image": base64.b64encode(data).decode()}, timeout=60.0)
    return running


def _refused(answer: httpx.Response, *statuses: int) -> str:
    assert answer.status_code in (statuses or (400, 404, 413, 415, 422)), (answer.status_code, answer.text[:300])
    error = answer.json()["error"]
    assert error.keys() == {"type", "message", "param"} and len(answer.content) < 2000
    assert "root:" not in answer.text and "/work" not in answer.text and "Traceback" not in answer.text
    return str(error["message"])


@pytest.mark.parametrize("name", PICTURES)
def test_strings_in_the_place_of_pictures(running: Any, name: str) -> None:
    text = PICTURES[name].decode()
    with watched() as seen:
        _refused(httpx.post(running.url + URL, json=REQUEST | {"subjects": [{"image": text, "word": "cat"}]}), 422)
        _refused(httpx.post(running.url + SUBJECTS, json={"image": text}), 422)
        form = {"prompt": (None, "a cat"), "word": (None, "cat"), "image": (None, text)}
        _refused(httpx.post(running.url + EDITS, files=form), 422)
    assert seen == []


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_picture(running: Any, name: str) -> None:
    encoded = base64.b64encode(BYTES[name]).decode()
    with watched() as seen:
        for text in (encoded, f"data:image/png;base64,{encoded}"):
            started = time.monotonic()
            _refused(
                httpx.post(running.url + URL, json=REQUEST | {"subjects": [{"image": text, "word": "cat"}]}), 413, 422
            )
            assert time.monotonic() - started < 10
        files = {"image": ("../../etc/passwd\0.png", BYTES[name], "image/png")}
        _refused(httpx.post(running.url + EDITS, data={"prompt": "a cat", "word": "cat"}, files=files), 413, 422)
    assert seen == []


def test_a_picture_that_is_something_else_too_is_read_as_a_picture_alone(running: Any) -> None:
    plain, both = (base64.b64encode(data).decode() for data in (_png(), _png() + _zipped() + BYTES["HTML"]))
    with watched() as seen:
        answers = [
            httpx.post(running.url + URL, json=REQUEST | {"subjects": [{"image": text, "word": "cat"}]}, timeout=60.0)
            for text in (plain, both)
        ]
    assert seen == [] and [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["data"] == answers[1].json()["data"]


@pytest.mark.parametrize("name", FIELDS)
def test_fields_that_cannot_be_meant(running: Any, name: str) -> None:
    with watched() as seen:
        message = _refused(httpx.post(running.url + URL, content=json.dumps(REQUEST | FIELDS[name]), timeout=60.0))
    assert seen == [] and message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe{\0}\0",
        b'{"prompt": "\\ud800 cat"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "a cat"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"prompt": "a cat", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a cat", "seed": 1e999}',
        b"\x1f\x8b\x08\0" + b"\0" * 20,
    ],
)
def test_bodies_that_are_no_request(running: Any, body: bytes) -> None:
    with watched() as seen:
        for path in (URL, SUBJECTS):
            _refused(httpx.post(running.url + path, content=body, headers={"Content-Encoding": "gzip"}), 422)
        _refused(httpx.post(running.url + EDITS, content=body), 415)
    assert seen == []


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=", b"x"),
        ("multipart/form-data; boundary=a", b""),
        ("multipart/form-data; boundary=a", b"--a\r\n"),
        ("multipart/form-data; boundary=a", b"--a\r\nContent-Disposition: form-data\r\n\r\nx\r\n--a--\r\n"),
        ("multipart/form-data; boundary=a", b'--a\r\nContent-Disposition: form-data; name="x"\r\n' + b"H: x\r\n" * 5000),
        ("multipart/form-data; boundary=a", b'--a\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n' * 5000 + b"--a--"),
        ("multipart/form-data; boundary=" + "a" * 5000, b"--a\r\n" * 100),
        ("multipart/form-data; charset=utf-16; boundary=a", PART),
        ("multipart/form-data; charset=zlib; boundary=a", PART),
    ],
)  # fmt: skip
def test_forms_that_are_none(running: Any, content_type: str, body: bytes) -> None:
    with watched() as seen:
        answer = httpx.post(running.url + EDITS, content=body, headers={"Content-Type": content_type}, timeout=60.0)
        _refused(answer, 400, 413, 422)
    assert seen == []


def _connect(running: Any) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(20)
    return connection


def test_bodies_without_an_end(running: Any) -> None:
    """100 MB, sent in pieces without a length: the answer comes after the limit, and the rest is not read."""
    sent = 0
    with _connect(running) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
        connection.settimeout(2)
        connection.sendall(f"POST {URL} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        while sent < 100_000_000:
            connection.sendall(piece)
            sent += 0x10000
    assert sent < 50_000_000
    _refused(httpx.post(running.url + URL, content=b"x" * 2_000_001), 413)


def test_a_body_that_drips(running: Any) -> None:
    with _connect(running) as connection:
        started = time.monotonic()
        connection.sendall(f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - started < 3:
                connection.sendall(b" ")
                time.sleep(0.1)
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"X-%d: y\r\n" % i for i in range(20_000)),
        b"X: " + b"y" * 1_000_000 + b"\r\n",
        b"X-Request-Id: \x01\x02\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    ],
)
def test_floods_of_headers(running: Any, head: bytes) -> None:
    with _connect(running) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(f"POST {URL} HTTP/1.1\r\nHost: x\r\n".encode() + head + b"\r\nhello")
        answer = connection.recv(4096)
        assert answer == b"" or b" 4" in answer[:12], answer[:100]
    assert httpx.get(f"{running.url}/healthz").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/..%2f..%2fetc/passwd",
        "/docs/../../etc/passwd",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/subjects/%00",
        "//etc",
    ],
)
def test_paths_that_climb(running: Any, path: str) -> None:
    with watched() as seen:
        _refused(httpx.get(running.url + path), 404)
    assert seen == []


def test_what_a_client_sends_is_not_logged(running: Any, capfd: pytest.CaptureFixture[str]) -> None:
    log.configure()
    picture = base64.b64encode(_png()).decode()
    headers = {"Authorization": "Bearer my-secret-key-of-today", "Cookie": "session=my-secret-cookie"}
    for fields in (
        {},
        {"prompt": "Mausi\0"},
        {"size": "Mausi"},
        {"Mausi": 1},
        {"subjects": [{"image": picture, "word": "Mausi"}]},
    ):
        request = REQUEST | {"prompt": "a cat named Mausi"} | fields
        httpx.post(f"{running.url}{URL}?prompt=Mausi", json=request, headers=headers, timeout=60.0)
    said, end = "", time.monotonic() + 10
    while said.count('"route": "/v1/images/generations"') < 5:  # a line is written after its answer has gone
        assert time.monotonic() < end
        said += "".join(capfd.readouterr())
    for secret in ("Mausi", picture[:40], "my-secret"):
        assert secret not in said
