"""Ray's launcher files, and the endpoint's, have the fields that Ray's own schema knows, and one image with the manifests."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FILES = sorted((Path(__file__).parents[2] / "infra" / "vm").glob("*.yaml"))


def schema() -> dict[str, Any]:
    found = importlib.util.find_spec("ray")
    assert found is not None and found.submodule_search_locations is not None
    [folder] = found.submodule_search_locations
    loaded: dict[str, Any] = json.loads((Path(folder) / "autoscaler" / "ray-schema.json").read_text())
    return loaded


def mistakes(launcher: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(schema()).iter_errors(launcher)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_launcher_file_is_one_of_ray_s(path: Path) -> None:
    launcher = yaml.safe_load(path.read_text())
    assert mistakes(launcher) == []
    assert launcher["docker"]["image"].startswith("registry.example/realcustom:0.1.0-")
    assert (
        "--env RAY_AUTH_MODE=token" in launcher["docker"]["run_options"]
        and "~/.ray/auth_token" in launcher["file_mounts"]
    )
    planted = copy.deepcopy(launcher)
    planted["idle_timeout"] = 5
    assert mistakes(planted)


def test_the_endpoint_s_configuration_is_one_of_serve_s() -> None:
    from ray.serve.schema import ServeDeploySchema

    endpoint = yaml.safe_load((FILES[0].parents[1] / "serve.yaml").read_text())
    ServeDeploySchema(**endpoint)
    planted = copy.deepcopy(endpoint)
    planted["proxy_location"] = "everywhere"
    with pytest.raises(ValueError, match="proxy_location"):
        ServeDeploySchema(**planted)
