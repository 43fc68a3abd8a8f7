"""The application's builder: typed arguments, and the configuration that is checked in."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.serve import Application

from realcustom import config
from realcustom.errors import UsageError
from realcustom.inference.app import ServeArguments, application, build
from realcustom.inference.handling import SPARE_BODIES
from realcustom.inference.settings import ServeSettings
from tests.support.tiny import TinyModels

FILE = Path(__file__).parents[2] / "infra" / "serve.yaml"


def test_the_checked_in_configuration_is_read(tiny_models: TinyModels) -> None:
    [entry] = yaml.safe_load(FILE.read_text())["applications"]
    assert entry["import_path"] == f"{build.__module__}:{build.__name__}"
    given = config.build(ServeArguments, entry["args"])
    assert given.serve.max_engines == 4 and given.serve.num_gpus == 1
    models = {"base": tiny_models.base, "adapter": tiny_models.adapter}
    assert isinstance(build({**entry["args"], **models}), Application)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bse": "x"}, "bse"),
        ({"serve": {"max_engins": 2}}, "max_engines"),
        ({"serve": {"min_engines": 3}}, "min_engines must lie in 0..max_engines, got 3"),
        ({"naming": "realcustom.nothing:Here"}, "no class 'realcustom.nothing:Here'"),
        ({"serve": {"detector": "dino"}}, "serve.detector: nothing uses it"),
        ({"serve": {"adapters": ["cat=none.safetensors"]}}, "none.safetensors"),
    ],
)
def test_wrong_arguments_are_one_line(tiny_models: TinyModels, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build({"base": tiny_models.base, **wrong})
    assert "\n" not in str(caught.value)


def test_more_adapters_than_one_need_places_for_two(tiny_models: TinyModels) -> None:
    given = {"base": tiny_models.base, "adapter": tiny_models.adapter}
    serve = {"adapters": [f"other={tiny_models.adapter}"], "max_adapters": 1}
    with pytest.raises(UsageError, match=r"serve\.max_adapters: .* it must be 2 or more"):
        build({**given, "serve": serve})
    assert isinstance(build({**given, "serve": serve | {"max_adapters": 2}}), Application)


def test_each_process_has_places_for_more_than_its_slow_clients(tiny_models: TinyModels) -> None:
    settings = ServeSettings(max_engines=3, max_queue=4)
    app = application(ServeArguments(base=tiny_models.base, serve=settings), None)
    api = app._bound_deployment._deployment_config
    bodies = settings.places + SPARE_BODIES
    assert settings.places == 15 and api.max_ongoing_requests > settings.places + bodies
    assert 0 < api.max_queued_requests < 1000  # Serve's own default has no bound
