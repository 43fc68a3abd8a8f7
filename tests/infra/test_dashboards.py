"""Grafana's dashboards: their panels have queries on metrics that there are; real runs, scraped by a real Prometheus, fill all."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from realcustom.inference.metrics import METRICS, PREFIX
from realcustom.pipeline.local_cluster import LocalCluster, local_cluster
from realcustom.preprocessing.engine import ray_metrics as stage_metrics
from realcustom.training import ray_metrics as training_metrics
from tests.support.corpora import picture, write_shards
from tests.support.loopback import free_port
from tests.support.tiny import TinyModels
from tests.support.training_corpus import write_pictures
from tests.support.training_runs import SETTINGS, write_settings
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]
BOARDS = {
    path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "infra/grafana/dashboards").glob("*.json"))
}
SCHEMA = json.loads((Path(__file__).parent / "grafana.json").read_text())
RAYS = {"rayDefaultDashboard", "rayDataDashboard", "rayTrainDashboard", "rayServeDashboard"}  # uids of Ray's own
PATIENCE = 240


def queries(board: dict[str, Any]) -> dict[str, str]:
    """Of each target of each panel."""
    return {
        f"{panel['title']}/{target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel["targets"]
    }


def mistakes(board: dict[str, Any]) -> list[str]:
    return [
        f"{list(error.path)}: {error.message}" for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(board)
    ]


def known_metrics() -> dict[str, set[str]]:
    """Dashboard -> the series that its metrics have in Prometheus."""
    found = {}
    for name, module in (("preprocessing", stage_metrics), ("training", training_metrics)):
        assert module.__file__ is not None
        found[name] = {f"ray_{each}" for each in re.findall(r'"(realcustom_\w+)"', Path(module.__file__).read_text())}
    found["serving"] = {f"ray_{PREFIX}{name}" for name in METRICS}
    return found


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_one_of_grafana_s(name: str) -> None:
    board = BOARDS[name]
    assert mistakes(board) == [] and board["uid"] == f"realcustom-{name}"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places), "no panel lies on another"
    assert {link["url"].removeprefix("/d/") for link in board["links"]} <= RAYS
    for planted in ("expr", "refId"):
        wrong = copy.deepcopy(board)
        wrong["panels"][0]["targets"][0].pop(planted)
        assert mistakes(wrong)


def test_ray_has_the_dashboards_that_ours_link_to() -> None:
    import ray

    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    assert {json.loads(path.read_text()).get("uid") for path in folder.glob("*_base.json")} >= RAYS


@pytest.mark.parametrize("name", BOARDS)
def test_every_metric_that_we_have_is_shown_and_no_other(name: str) -> None:
    known = known_metrics()[name]
    named = set(re.findall(r"ray_realcustom_\w+", " ".join(queries(BOARDS[name]).values())))
    ends = ("", "_bucket", "_sum", "_count")  # of a histogram
    assert {metric for metric in named if not any(f"{one}{end}" == metric for one in known for end in ends)} == set()
    assert {one for one in known if not any(f"{one}{end}" in named for end in ends)} == set()


@dataclass(frozen=True, kw_only=True)
class Prometheus:
    """A Prometheus that scrapes the nodes of a cluster each second."""

    url: str
    began: float  # seconds since 1970

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/status/config").is_success
        except httpx.HTTPError:
            return False

    def values(self, query: str) -> list[float]:
        """The finite values that a query had since the beginning, a second apart."""
        for name, length in {"$__rate_interval": "8s", "$__range": "600s"}.items():
            query = query.replace(name, length)
        times = {"start": self.began, "end": time.time(), "step": 1}
        answer = httpx.get(f"{self.url}/query_range", params={"query": query, **times}).json()
        assert answer["status"] == "success", (query, answer)
        values = [float(value) for series in answer["data"]["result"] for _, value in series["values"]]
        return [value for value in values if math.isfinite(value)]


@contextlib.contextmanager
def scraping(folder: Path, targets: list[str]) -> Iterator[Prometheus]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs Prometheus: infra/prometheus/programs.sh FOLDER, and FOLDER in PATH")
    job = {"job_name": "ray", "static_configs": [{"targets": targets}]}
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}))
    port = free_port()
    options = [
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, *options], stderr=log)
    try:
        found = Prometheus(url=f"http://127.0.0.1:{port}/api/v1", began=time.time())
        wait_for(found.answers, 30, (folder / "log").read_text)
        yield found
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_metrics_report_interval_ms", "500")  # a worker tells its node of its metrics; else 10 s
    with local_cluster(2, 4) as cluster:
        for name, value in cluster.environment().items():
            patch.setenv(name, value)
        yield cluster
        patch.undo()


@pytest.fixture(scope="module")
def prometheus(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with scraping(tmp_path_factory.mktemp("prometheus"), [node.metrics for node in cluster.nodes]) as found:
        yield found


@contextlib.contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A context in which a command runs; it is ended after it."""
    process = subprocess.Popen([sys.executable, "-m", "realcustom", *arguments], cwd=ROOT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


def all_filled(prometheus: Prometheus, name: str, going_on: Callable[[], bool]) -> None:
    """Returns when every panel has had a value; fails where the run has ended without."""
    empty = dict(queries(BOARDS[name]))
    while empty:
        empty = {title: query for title, query in empty.items() if not prometheus.values(query)}
        if not going_on():
            time.sleep(3)  # the last scrape
            empty = {title: query for title, query in empty.items() if not prometheus.values(query)}
            break
        time.sleep(1)
    assert empty == {}


@pytest.mark.cluster
def test_a_stage_fills_the_panels_of_preprocessing(prometheus: Prometheus, tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 60, 40, size=(768, 768))
    with command(
        "preprocess", "ingest", "--input", str(tmp_path / "src"), "--output", str(tmp_path / "out")
    ) as process:
        all_filled(prometheus, "preprocessing", lambda: process.poll() is None)


@pytest.mark.cluster
def test_a_run_fills_the_panels_of_training(prometheus: Prometheus, tiny_models: TinyModels, tmp_path: Path) -> None:
    write_pictures(tmp_path / "records", 23, side=32)
    settings = replace(SETTINGS, steps=10**6, log_every=5, val_every=50, checkpoint_every=50, loggers=())
    config = tmp_path / "settings.yaml"
    write_settings(config, str(tiny_models.base), str(tiny_models.image_encoder), settings)
    run = ("--input", str(tmp_path / "records"), "--output", str(tmp_path / "run"), "--config", str(config))
    with command("train", *run) as process:
        all_filled(prometheus, "training", lambda: process.poll() is None)


@pytest.mark.cluster
def test_requests_fill_the_panels_of_serving(prometheus: Prometheus, tiny_models: TinyModels) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    body = {
        "prompt": "a toy on grass",
        "subjects": [{"image": small_picture(), "word": "toy"}],
        "num_inference_steps": 8,
        "stream": True,
        "partial_images": 2,
    }

    def is_ready(process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None
        try:
            return httpx.get(f"{url}/readyz").is_success
        except httpx.HTTPError:
            return False

    def draws() -> bool:
        httpx.post(f"{url}/v1/images/generations", json=body, timeout=PATIENCE).raise_for_status()
        return time.monotonic() < deadline

    with command("serve", *tiny_models.options, "--set", f"serve.port={port}") as process:
        wait_for(lambda: is_ready(process), PATIENCE)
        deadline = time.monotonic() + PATIENCE
        all_filled(prometheus, "serving", draws)


def small_picture() -> str:
    buffer = io.BytesIO()
    picture(0, (64, 64)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
