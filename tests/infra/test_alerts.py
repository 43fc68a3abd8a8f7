"""Prometheus' alerts: on metrics that there are, with cases that fire them and cases that do not, and a section of the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from realcustom.inference.metrics import METRICS, PREFIX
from realcustom.preprocessing.engine import ray_metrics as stage_metrics
from realcustom.training import ray_metrics as training_metrics

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs" / "runbook.md"
FOLDER = ROOT / "infra" / "prometheus"
ALERTS = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]

# metrics that Ray itself has, and the file of its package that makes them; `_total` is added to a counter's name
RAYS = {
    "node_disk_utilization_percentage": "dashboard/modules/reporter/reporter_agent.py",
    "node_gpus_utilization": "dashboard/modules/reporter/reporter_agent.py",
    "serve_deployment_replica_starts": "serve/_private/replica.py",
}
RAYS_OWN = {f"ray_{name}" for name in RAYS} | {f"ray_{name}_total" for name in RAYS}


def promtool(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool: infra/prometheus/programs.sh FOLDER, and FOLDER in PATH")
    return subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)


def test_each_alert_is_on_metrics_that_there_are_and_has_a_section_of_the_runbook() -> None:
    known = {f"ray_{PREFIX}{name}" for name in METRICS} | RAYS_OWN
    for module in (stage_metrics, training_metrics):
        assert module.__file__ is not None
        known |= {f"ray_{name}" for name in re.findall(r'"(realcustom_\w+)"', Path(module.__file__).read_text())}
    headings = re.findall(r"^## (.*)$", RUNBOOK.read_text(), re.MULTILINE)
    sections = {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}
    assert len(ALERTS) >= 9
    for alert in ALERTS:
        named = set(re.findall(r"ray_\w+", alert["expr"]))
        assert named and named <= known, alert["alert"]
        page, _, section = alert["annotations"]["runbook"].partition("#")
        assert page == "docs/runbook.md" and section in sections, alert["alert"]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| \[[^]]+\]\(#([\w-]+)\) \| [^|]+ \|$", RUNBOOK.read_text(), re.MULTILINE)
    told = {alert["alert"]: alert["annotations"]["runbook"].partition("#")[2] for alert in ALERTS}
    assert dict(rows) == told and len(rows) == len(told)


def test_each_section_of_the_runbook_has_few_commands() -> None:
    sections = RUNBOOK.read_text().split("\n## ")[1:]
    assert len(sections) >= 14
    for section in sections:
        commands = [
            line for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL) for line in block.splitlines()
        ]
        assert len(commands) <= 3, section.partition("\n")[0]


def test_ray_has_the_metrics_of_its_own_that_alerts_are_on() -> None:
    import ray

    for name, file in RAYS.items():
        assert f'"{name}"' in (Path(ray.__file__).parent / file).read_text(), name


def test_each_alert_has_a_case_that_fires_it_and_one_that_does_not() -> None:
    cases: dict[str, set[bool]] = {}
    for test in yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            cases.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
            runs = {run for series in test["input_series"] for run in re.findall('run="(.*?)"', series["series"])}
            if len(runs) > len(case["exp_alerts"]):
                cases[case["alertname"]].add(False)  # the other run's values do not fire it
    assert cases == {alert["alert"]: {True, False} for alert in ALERTS}


def test_promtool_finds_no_mistake_and_finds_one_that_is_planted(tmp_path: Path) -> None:
    for name in ("alerts.yaml", "alerts_test.yaml"):
        shutil.copy(FOLDER / name, tmp_path)
    checked = promtool(tmp_path, "check", "rules", "alerts.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = promtool(tmp_path, "test", "rules", "alerts_test.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    text = (FOLDER / "alerts.yaml").read_text()
    for wrong, arguments in (
        (text.replace("sum by (run) (increase", "sum by (run (increase"), ("check", "rules", "alerts.yaml")),
        (text.replace("> 0.05", "> 0.5"), ("test", "rules", "alerts_test.yaml")),
    ):
        (tmp_path / "alerts.yaml").write_text(wrong)
        assert promtool(tmp_path, *arguments).returncode != 0
