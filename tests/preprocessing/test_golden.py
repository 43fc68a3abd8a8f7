"""Output bytes and versions of the stages go together: neither changes without the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from realcustom.preprocessing.catalogue import CATALOGUE
from tests.support import golden

HINT = "if the change is meant, raise the stage's version and run `python -m tests.support.golden`"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(golden.RECORD.read_text())
    return record


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    return golden.outputs(tmp_path_factory.mktemp("golden"))


def test_every_stage_is_recorded_at_its_version(recorded: dict[str, Any]) -> None:
    assert recorded["versions"] == {stage.name: stage.version for stage in CATALOGUE.values()}, HINT
    assert {name.partition(" ")[0] for name in recorded["sha256"]} == set(CATALOGUE)


def test_stages_without_models_write_the_recorded_bytes(
    recorded: dict[str, Any], found: dict[str, dict[str, str]]
) -> None:
    if recorded["writer"] != golden.WRITER:
        pytest.skip(f"recorded with {recorded['writer']}, here is {golden.WRITER}")
    plain = [name for name in recorded["sha256"] if "models" not in name]
    assert {name: found[name] for name in plain} == {name: recorded["sha256"][name] for name in plain}, HINT


def test_stages_with_models_write_the_recorded_values(
    recorded: dict[str, Any], found: dict[str, dict[str, str]]
) -> None:
    values = [name for name in recorded["sha256"] if name.endswith(", values")]
    assert len(values) == 5
    assert {name: found[name] for name in values} == {name: recorded["sha256"][name] for name in values}, HINT


def test_stages_with_models_write_the_recorded_bytes(
    recorded: dict[str, Any], found: dict[str, dict[str, str]]
) -> None:
    if recorded["machine"] != golden.machine():
        pytest.skip(f"recorded on {recorded['machine']}, here is {golden.machine()}")
    assert found == recorded["sha256"], HINT


@pytest.mark.parametrize("name", ["score", "encode with models"])
def test_a_changed_byte_without_a_raised_version_is_not_recorded(
    name: str, recorded: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed = {**recorded["sha256"], name: {"unit.parquet": "0"}}
    record = tmp_path / "golden.json"
    record.write_text(json.dumps({**recorded, "machine": golden.machine()}))
    monkeypatch.setattr(golden, "RECORD", record)
    monkeypatch.setattr(golden, "outputs", lambda root: changed)
    assert golden.main() == 1
    assert json.loads(record.read_text())["sha256"] == recorded["sha256"]
