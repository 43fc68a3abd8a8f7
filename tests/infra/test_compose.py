"""The compose file, SkyPilot's tasks and what Prometheus and Grafana are given: known fields, files that are there, one image."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

import jsonschema
import pytest
import yaml

from realcustom.pipeline.cli.main import run

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
COMPOSE = INFRA / "compose" / "compose.yaml"
TASKS = sorted((INFRA / "sky").glob("*.yaml"))
GIVEN = {
    "STAGE": "score",
    "INPUT": "s3://bucket/records",
    "OUTPUT": "s3://bucket/output",
}  # what a task leaves to its user
Plant = Callable[[dict[str, Any]], Any]


def mistakes(document: dict[str, Any], schema: str) -> list[str]:
    known = json.loads((Path(__file__).parent / f"{schema}.json").read_text())
    return [
        f"{list(error.path)}: {error.message}" for error in jsonschema.Draft202012Validator(known).iter_errors(document)
    ]


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def test_the_compose_file_has_known_fields() -> None:
    assert mistakes(compose(), "compose") == []


@pytest.mark.parametrize(
    "plant",
    [
        lambda file: file["services"]["head"].update(shm="2gb"),
        lambda file: file["services"]["worker"].update(shm_size="2 gigabytes"),
        lambda file: file["services"]["worker"]["depends_on"]["head"].update(condition="healthy"),
        lambda file: file["services"]["store"].pop("image"),
        lambda file: file["services"]["store"].update(image="minio/minio"),
        lambda file: file.update(volume={}),
    ],
)
def test_a_mistake_that_is_planted_in_it_is_found(plant: Plant) -> None:
    file = compose()
    plant(file)
    assert mistakes(file, "compose")


def test_its_parts_fit_together() -> None:
    file = compose()
    services = file["services"]
    assert {service["image"] for name, service in services.items() if name in ("head", "worker")} == {
        "registry.example/realcustom:0.1.0-cpu"
    }
    build = services["head"]["build"]
    assert (COMPOSE.parent / build["context"] / build["dockerfile"]).resolve().is_file()
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (COMPOSE.parent / source).is_dir() if source.startswith(".") else source in file["volumes"], volume
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} is for this machine alone"
    assert services["head"]["environment"]["RAY_AUTH_MODE"] == "token"
    store = services["store"]["environment"]
    given = services["worker"]["environment"]
    assert (given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"]) == tuple(store.values())


def test_what_prometheus_and_grafana_read_is_where_it_is_mounted() -> None:
    services = compose()["services"]
    mounts = {
        name: {volume.split(":")[1]: volume.split(":")[0] for volume in services[name]["volumes"]}
        for name in ("prometheus", "grafana")
    }
    prometheus = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text())
    for rules in prometheus["rule_files"]:
        assert (COMPOSE.parent / mounts["prometheus"]["/etc/prometheus"] / rules).is_file()
    [scrape] = prometheus["scrape_configs"]
    [listed] = scrape["file_sd_configs"][0]["files"]
    # the head's /tmp, where Ray's session is
    assert listed.startswith("/rays/ray/") and mounts["prometheus"]["/rays"] == mounts["grafana"]["/rays"] == "sessions"
    assert "sessions:/tmp" in services["head"]["volumes"]
    provisioning = COMPOSE.parent / mounts["grafana"]["/etc/grafana/provisioning"]
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus" and source["url"] == "http://prometheus:9090"
    providers = yaml.safe_load((provisioning / "dashboards" / "dashboards.yaml").read_text())["providers"]
    own, rays = (provider["options"]["path"] for provider in providers)
    assert list((COMPOSE.parent / mounts["grafana"][own]).glob("*.json")) and rays.startswith("/rays/ray/")


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_skypilot_task_has_known_fields_and_runs_a_verb(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = yaml.safe_load(path.read_text())
    assert mistakes(task, "skypilot") == []
    assert "infra/image/steps.sh install python3 ~/venv" in task["setup"]
    values = {name: value if value is not None else GIVEN[name] for name, value in task["envs"].items()}
    program, *arguments = shlex.split(Template(task["run"]).substitute(values))
    assert program == "~/venv/bin/realcustom"
    assert run([*arguments, "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["checkpoint_minutes"] == (10 if path.stem == "train" else 0)


@pytest.mark.parametrize(
    "plant",
    [
        lambda task: task["resources"].update(spot=True),
        lambda task: task["resources"]["job_recovery"].update(max_restarts_on_errors="often"),
        lambda task: task["envs"].update({"an input": "x"}),
        lambda task: task.pop("run"),
    ],
)
def test_a_mistake_that_is_planted_in_a_task_is_found(plant: Plant) -> None:
    for path in TASKS:
        task = yaml.safe_load(path.read_text())
        plant(task)
        assert mistakes(task, "skypilot"), path.name
