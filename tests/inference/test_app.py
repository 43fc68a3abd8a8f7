"""The endpoint on Ray Serve, over HTTP."""

from __future__ import annotations

import base64
import io
import re
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import ray
from PIL import Image

from realcustom.checkpoint import adapter_sha256
from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.errors import UsageError
from realcustom.evaluation.generators import EndpointGenerator, PipelineGenerator, to_base64
from realcustom.evaluation.table import Case, Setting
from realcustom.inference.metrics import METRICS
from realcustom.inference.settings import ServeSettings
from realcustom.inference.starting import start, stop
from realcustom.pipeline.naming import Naming
from tests.support.loopback import free_port
from tests.support.tiny import TinyModels

REFERENCE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
REQUEST: dict[str, Any] = {
    "prompt": "a cat in the snow",
    "seed": 5,
    "num_inference_steps": 2,
    "subjects": [{"image": to_base64(REFERENCE), "word": "cat"}],
}


def test_what_cannot_start_is_said(
    ray_cluster: str, tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ValueError, match="NO_SUCH_KEY is not set"):
        start(ServeSettings(api_key_variable="NO_SUCH_KEY"), tiny_models.base, None)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ValueError, match="choose another port"):
            start(ServeSettings(port=other.getsockname()[1]), tiny_models.base, None)
    with pytest.raises(ValueError, match="has no unet"):  # the loader's own words, out of the replica
        start(ServeSettings(port=free_port(), device="cpu"), str(tmp_path), None)


@pytest.fixture(scope="module")
def url(ray_cluster: str, tiny_models: TinyModels) -> Iterator[str]:
    settings = ServeSettings(port=free_port(), threads=1, max_steps=2000, device="cpu", body_timeout_seconds=1.0)
    yield start(settings, tiny_models.base, tiny_models.adapter, tiny_models.image_encoder, partial(Naming, None))
    stop()


def _post(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/images/generations", json=REQUEST | fields, timeout=60.0)


def test_a_customised_image_with_its_masks(url: str, tiny_models: TinyModels) -> None:
    answer = _post(url, return_masks=True)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["adapter"] == adapter_sha256(tiny_models.adapter)
    [data] = body["data"]
    image = Image.open(io.BytesIO(base64.b64decode(data["b64_json"])))
    assert (image.format, image.size, data["seed"]) == ("PNG", (32, 32), 5)
    assert [(mask["subject"], mask["step"]) for mask in data["masks"]] == [(0, 0), (0, 1)]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["masks"][0]["b64_json"]))))
    assert mask.dtype == np.uint8 and mask.shape == (16, 16) and mask.max() == 255
    assert np.count_nonzero(mask) <= 64  # a quarter of the grid


def test_health_and_the_adapter(url: str, tiny_models: TinyModels) -> None:
    assert httpx.get(f"{url}/healthz").status_code == 200
    assert httpx.get(f"{url}/readyz").json()["status"] == "ready"
    [adapter] = httpx.get(f"{url}/v1/adapters").json()["data"]
    assert adapter["sha256"] == adapter_sha256(tiny_models.adapter)
    assert adapter["settings"]["mask"]["influence_scope"] == 0.25 and "/" not in adapter["base"]


def test_ids_and_headers_come_once_through_serves_proxy(url: str) -> None:
    for headers in ({}, {"X-Request-Id": "mine"}):
        answer = httpx.get(f"{url}/v1/models", headers=headers)
        [found] = answer.headers.get_list("X-Request-Id")
        assert found == headers.get("X-Request-Id", found) and answer.headers["X-Content-Type-Options"] == "nosniff"
    assert httpx.delete(f"{url}/v1/requests/none").status_code == 404
    assert httpx.get(f"{url}/docs").status_code == 200


def test_another_address_is_refused_and_what_runs_goes_on(url: str, tiny_models: TinyModels) -> None:
    port = url.rpartition(":")[2]
    with pytest.raises(UsageError, match=rf"Serve runs on this cluster with the address 127.0.0.1 port {port}, not .*"):
        start(ServeSettings(port=free_port(), device="cpu"), tiny_models.base, None)
    assert _post(url).status_code == 200


def test_half_a_body_ends_after_its_time(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(20)
        connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_errors_that_help(url: str) -> None:
    for fields, kind, message in (
        ({"influence_scop": 0.2}, "invalid_request", "did you mean 'influence_scope'?"),
        ({"prompt": "a star in space"}, "word_not_in_prompt", "a, star, in, space"),
        ({"subjects": [{"image": "bm90IGEgcGljdHVyZQ==", "word": "cat"}]}, "not_an_image", "PNG, JPEG or WEBP"),
    ):
        answer = _post(url, **fields)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (422, kind) and message in error["message"]


def test_a_client_that_hangs_up_frees_the_engine(url: str) -> None:
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{url}/v1/images/generations", json=REQUEST | {"num_inference_steps": 900}, timeout=1.0)
    started = time.monotonic()
    assert _post(url, num_inference_steps=1).status_code == 200
    assert time.monotonic() - started < 10.0  # 900 steps would take much longer


def test_openais_client_over_serve(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    buffer = io.BytesIO()
    REFERENCE.save(buffer, "PNG")
    picture = ("cat.png", buffer.getvalue())
    edited = client.images.edit(image=picture, prompt="a cat, red", extra_body={"seed": 5, "num_inference_steps": 2})
    assert edited.data is not None and (edited.model_extra or {})["words"] == ["cat"]
    assert len(client.models.list().data) == 2


def test_a_stream_comes_step_by_step_and_ends_with_its_client(url: str) -> None:
    request = REQUEST | {"stream": True, "num_inference_steps": 4, "partial_images": 1}
    with httpx.stream("POST", f"{url}/v1/images/generations", json=request, timeout=60.0) as response:
        names = [line for line in response.iter_lines() if line.startswith("event: ")]
    assert names[-1] == "event: image_generation.completed" and "event: image_generation.partial_image" in names
    long = REQUEST | {"stream": True, "num_inference_steps": 900}
    with httpx.stream("POST", f"{url}/v1/images/generations", json=long, timeout=60.0) as response:
        next(line for line in response.iter_lines() if line == "event: realcustom.step")  # before the last was done
    started = time.monotonic()
    assert _post(url, num_inference_steps=1).status_code == 200
    assert time.monotonic() - started < 10.0


def test_the_endpoint_draws_what_the_pipeline_draws(url: str, tiny_pipeline: RealCustomPipeline) -> None:
    case = Case(
        uid="0",
        prompt="a cat in the snow",
        target_word="cat",
        reference=REFERENCE,
        wrong_reference=REFERENCE.rotate(90),
        oracle=REFERENCE,
        seed=11,
    )
    remote = EndpointGenerator(url=url, num_inference_steps=2)
    local = PipelineGenerator(pipeline=tiny_pipeline, num_inference_steps=2)
    for setting in (Setting.TEXT_TO_IMAGE, Setting.SUBJECT_WITHOUT_MASK, Setting.WRONG_REFERENCE):
        pairs = zip(remote(setting, [case]), local(setting, [case]), strict=True)
        assert all(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max() <= 1 for a, b in pairs)


def test_ray_exports_every_metric(url: str) -> None:
    """Those of this endpoint's requests, at the address that Prometheus reads."""
    assert _post(url, stream=True, partial_images=1).status_code == 200
    held = httpx.post(f"{url}/v1/subjects", json={"image": to_base64(REFERENCE)}, timeout=60.0).json()
    assert _post(url, subjects=[{"id": held["id"], "word": "cat"}]).status_code == 200
    [node] = [node for node in ray.nodes() if node["Alive"]]
    names, end = {f"realcustom_{name}" for name in METRICS}, time.monotonic() + 60
    while missing := names - set(re.findall(r"realcustom_\w+", _scraped(node["MetricsExportPort"]))):
        assert time.monotonic() < end, missing
        time.sleep(1.0)


def _scraped(port: int) -> str:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10.0).text
    return re.sub(r"\bray_", "", text)
