"""Settings: recipe < file < assignment, strictly, and printed in a form that is read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from realcustom.config import SettingError
from realcustom.pipeline.configure import resolve, to_yaml
from realcustom.pipeline.recipes import RECIPES


def test_a_file_wins_over_the_recipe_and_an_assignment_over_both(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("train: {lr: 0.5, steps: 7}\nserve: {port: 9001}\n")
    second.write_text("train: {steps: 8}\n")
    recipe = resolve("sprites")
    run = resolve("sprites", [first, second], ["train.lr=1e-3", "method.mask.influence_scope=0.4"])
    assert (run.train.lr, run.train.steps, run.serve.port) == (1e-3, 8, 9001)
    assert run.method.mask.influence_scope == 0.4
    assert run.train.batch_size == recipe.train.batch_size


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_printed_is_read_back(recipe: str, tmp_path: Path) -> None:
    run = resolve(recipe, sets=["train.seed=3"])
    file = tmp_path / "settings.yaml"
    file.write_text(to_yaml(run))
    assert resolve("sprites", [file]) == run


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.batchsize=1", "did you mean 'train.batch_size'"),
        ("trian.lr=1", "did you mean 'train'"),
        ("preprocess.select.min_sid=3", "did you mean 'preprocess.select.min_side'"),
        ("method.guidance.mode=cascad", "did you mean 'cascade'"),
        ("train.steps=many", "train.steps: expected int, got 'many'"),
        ("train.lr", "--set wants NAME=VALUE"),
        ("method.mask.influence_scope=1.5", "influence_scope is a ratio from 0 to 1, got 1.5"),
    ],
)
def test_a_mistyped_assignment_names_the_nearest_valid_one(assignment: str, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        resolve("sprites", sets=[assignment])
    assert message in str(caught.value)


def test_an_unknown_recipe_names_the_nearest_one() -> None:
    with pytest.raises(SettingError, match="did you mean 'sprites'"):
        resolve("sprits")


def test_a_settings_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no settings file"):
        resolve("sprites", [tmp_path / "nothing.yaml"])
    file = tmp_path / "list.yaml"
    file.write_text("- 1\n")
    with pytest.raises(SettingError, match="expected a mapping"):
        resolve("sprites", [file])


def test_the_whole_run_names_its_base_model_once() -> None:
    for recipe in RECIPES.values():
        run = recipe()
        assert run.preprocess.encode.base == run.base
        assert run.preprocess.encode.image_encoder == run.method.image_encoder.model


def test_the_printed_settings_are_plain_yaml() -> None:
    printed = yaml.safe_load(to_yaml(resolve("paper_sd15")))
    assert list(printed) == ["base", "adapter", "method", "preprocess", "train", "serve", "evaluate"]
    assert printed["method"]["guidance"]["mode"] == "cascade"
