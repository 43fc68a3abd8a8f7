"""The JSON schema of the settings accepts what the command line accepts."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml

from realcustom.config import SettingError
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.configure import resolve, to_yaml
from realcustom.pipeline.recipes import RECIPES


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    from realcustom.pipeline.schema import settings_schema

    schema = settings_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_it_is_printed_with_what_each_setting_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    train = json.loads(capsys.readouterr().out)["properties"]["train"]["properties"]
    assert train["lr"] == {"type": "number", "description": "AdamW's peak learning rate", "default": 1e-5}
    assert train["schedule"]["enum"] == ["constant", "cosine", "linear", "wsd"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_valid(recipe: str, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(yaml.safe_load(to_yaml(resolve(recipe))))


@pytest.mark.parametrize(
    ("data", "valid"),
    [
        ({"train": {"lr": 1}}, True),
        ({"train": {"lr": "fast"}}, False),
        ({"train": {"lrr": 1}}, False),
        ({"preprocess": {"caption": {"batch_size": "auto", "nouns": ["dog"], "word": None}}}, True),
        ({"preprocess": {"caption": {"batch_size": "most"}}}, False),
        ({"method": {"tokens": {"gamma_num_train": [0.3, 1.0]}, "mask": {"layers": [8, 16]}}}, True),
        ({"method": {"tokens": {"gamma_num_train": [0.3]}}}, False),
        ({"method": {"words": {"occurrence": 0}, "guidance": {"mode": "cascade"}}}, True),
        ({"method": {"guidance": {"mode": "casade"}}}, False),
    ],
)
def test_it_agrees_with_the_command_line(
    data: dict[str, Any], valid: bool, validator: jsonschema.Draft202012Validator, tmp_path: Any
) -> None:
    assert validator.is_valid(data) == valid
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(data))
    if valid:
        resolve("sprites", [tmp_path / "a.yaml"])
    else:
        with pytest.raises(SettingError):
            resolve("sprites", [tmp_path / "a.yaml"])
