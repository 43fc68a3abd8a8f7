"""The application's builder: typed arguments, and the configuration that is checked in."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.serve import Application

from realcustom import config
from realcustom.errors import UsageError
from realcustom.inference.app import ServeArguments, build
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
        ({"nouns": "realcustom.nothing:here"}, "no function 'realcustom.nothing:here'"),
        ({"serve": {"adapters": ["cat=none.safetensors"]}}, "none.safetensors"),
    ],
)
def test_wrong_arguments_are_one_line(tiny_models: TinyModels, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build({"base": tiny_models.base, **wrong})
    assert "\n" not in str(caught.value)
