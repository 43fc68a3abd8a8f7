"""What operators and machines do to the endpoint: no engine while nobody asks, one that hangs, `serve deploy`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from realcustom.inference.app import ENGINE
from realcustom.inference.settings import ServeSettings
from realcustom.inference.starting import start, stop
from realcustom.pipeline import owned
from tests.support.loopback import free_port
from tests.support.replicas import replicas, running_engines
from tests.support.tiny import TinyModels
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow
URL = "/v1/images/generations"
APPLICATIONS = "/api/serve/applications/"  # of Ray's dashboard
LONG: dict[str, Any] = {"prompt": "a cat in the snow", "seed": 5, "num_inference_steps": 900}
SHORT = LONG | {"num_inference_steps": 2}
PATIENCE = 240.0  # seconds, on a busy machine; Serve gives a silent replica half a minute
TOKEN = "f" * 32  # of the Ray that `serve deploy` is tried on
CONFIG = Path(__file__).parents[2] / "infra" / "serve.yaml"


def _settings(**more: Any) -> ServeSettings:
    return ServeSettings(port=free_port(), threads=1, max_steps=2000, device="cpu", num_cpus=0.5, **more)


def test_there_is_no_engine_while_nobody_asks(ray_cluster: str, tiny_models: TinyModels) -> None:
    settings = _settings(min_engines=0, scale_down_seconds=2.0, scale_up_seconds=0.1)
    url = start(settings, tiny_models.base, tiny_models.adapter, tiny_models.image_encoder)
    try:
        for _ in range(2):
            wait_for(lambda: not replicas(ENGINE) and running_engines() == 0, PATIENCE)
            assert httpx.get(f"{url}/readyz").status_code == 200
            answer = httpx.post(url + URL, json=SHORT, timeout=PATIENCE)  # waits for one to load
            assert answer.status_code == 200, answer.text
    finally:
        stop()


def test_an_engine_that_hangs_is_replaced(ray_cluster: str, tiny_models: TinyModels) -> None:
    url = start(_settings(), tiny_models.base, tiny_models.adapter, tiny_models.image_encoder)
    try:
        with httpx.stream("POST", url + URL, json=LONG | {"stream": True}, timeout=PATIENCE) as response:
            lines, hanging = [], None
            for line in response.iter_lines():
                lines.append(line)
                if hanging is None and line == "event: realcustom.step":
                    [hanging] = replicas(ENGINE)
                    os.kill(hanging.pid, signal.SIGSTOP)
        assert hanging is not None and any('"type":"engine_lost"' in line for line in lines[-4:])
        wait_for(lambda: hanging not in replicas(ENGINE) and running_engines() == 1, PATIENCE)
        assert httpx.post(url + URL, json=SHORT, timeout=PATIENCE).status_code == 200
    finally:
        stop()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of the dashboard of a Ray that is started as on a server, in a session of its own; it wants `TOKEN`."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    ray, dashboard = Path(sys.executable).with_name("ray"), free_port()
    options = ["--head", f"--port={free_port()}", "--include-dashboard=true", f"--dashboard-port={dashboard}"]
    process = subprocess.Popen(
        [ray, "start", *options, "--num-cpus=4", "--block", "--disable-usage-stats"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    owned.watch([process.pid])  # for a test that is killed itself
    url = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(lambda: _answers(f"{url}{APPLICATIONS}"), PATIENCE)
        yield url
    finally:
        own = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in own:
            one.kill()
        process.wait()


def _get(url: str) -> httpx.Response:
    return httpx.get(url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30.0)


def _answers(url: str) -> bool:
    try:
        return _get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_the_checked_in_configuration_is_deployed(cluster: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    """`serve deploy` of it, with models and resources that are here."""
    config, port = yaml.safe_load(CONFIG.read_text()), free_port()
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    [entry] = config["applications"]
    entry["args"] |= {"base": tiny_models.base, "adapter": tiny_models.adapter}
    entry["args"]["image_encoder"] = tiny_models.image_encoder
    entry["args"]["serve"] |= {"num_gpus": 0, "dtype": "float32", "device": "cpu", "num_cpus": 0.5, "api_cpus": 0.1}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    program = Path(sys.executable).with_name("serve")
    subprocess.run([program, "deploy", tmp_path / "serve.yaml", "--address", cluster], check=True, capture_output=True)
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: _answers(f"{url}/readyz"), PATIENCE)
    request = SHORT | {"seed": 7}
    answer = httpx.post(url + URL, json=request, timeout=PATIENCE)
    assert answer.status_code == 200 and answer.json()["data"][0]["seed"] == 7
    status = _get(f"{cluster}{APPLICATIONS}").json()
    assert status["applications"]["realcustom"]["status"] == "RUNNING"
