"""Settings: recipe < file < assignment, strictly, and printed in a form that is read back."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from realcustom import config, storage
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
        ("method.words.occurrence=frist", "did you mean 'first'? It is one of all, first, last, or int"),
        ("preprocess.caption.batch_size=atuo", "did you mean 'auto'? It is one of auto, or int"),
        ("preprocess.caption.batch_size=1.5", "1.5 is not allowed. It is one of auto, or int"),
        ("method.mask.mask_reuse_after=nevr", "did you mean 'never'? It is one of never, or int"),
        ("method.mask.layers=upp", "did you mean 'up'? It is one of all, up, or a list of int"),
        ("train.validation_records=many", "expected int, got 'many'"),
    ],
)
def test_a_mistyped_assignment_names_the_nearest_valid_one(assignment: str, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        resolve("sprites", sets=[assignment])
    assert message in str(caught.value)


@dataclass(frozen=True, kw_only=True)
class _Inner:
    RENAMED: ClassVar[Mapping[str, str]] = {"learning_rate": "lr"}
    RENAMED_VALUES: ClassVar[Mapping[str, Mapping[str, str]]] = {"kind": {"old": "new"}}
    lr: float = 1.0
    kind: str = "new"


@dataclass(frozen=True, kw_only=True)
class _Outer:
    steps: int
    inner: _Inner = field(default_factory=_Inner)


def test_a_setting_that_was_renamed_is_refused_with_its_new_name() -> None:
    with pytest.raises(SettingError, match=r"^setting 'inner.learning_rate' is called 'inner.lr' now$"):
        config.override(_Outer(steps=1), {"inner": {"learning_rate": 2.0}})
    with pytest.raises(SettingError, match=r"^inner.kind: 'old' is called 'new' now$"):
        config.override(_Outer(steps=1), {"inner": {"kind": "old"}})
    assert config.to_dict(_Outer(steps=1)) == {"steps": 1, "inner": {"lr": 1.0, "kind": "new"}}
    with pytest.raises(SettingError, match=r"unknown setting 'inner\.RENAMED'"):
        config.build(_Outer, {"steps": 1, "inner": {"RENAMED": {}}})


def test_what_was_written_with_old_names_is_translated() -> None:
    """Names and values at every depth; what is unknown stays for `build` to refuse."""
    before = {"steps": 1, "inner": {"learning_rate": 2.0, "kind": "old", "odd": ["old"]}, "kind": "old"}
    translated = config.with_new_names(_Outer, before)
    assert translated == {"steps": 1, "inner": {"lr": 2.0, "kind": "new", "odd": ["old"]}, "kind": "old"}


def test_a_setting_without_default_that_is_missing_is_named() -> None:
    with pytest.raises(SettingError, match=r"^_Outer: steps is missing$"):
        config.build(_Outer, {})


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
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingError, match="is not valid YAML"):
        resolve("sprites", [file])


def test_a_settings_file_on_a_store(bucket: str) -> None:
    storage.write_bytes(f"{bucket}/run.yaml", b"train: {steps: 7}")
    assert resolve("sprites", [f"{bucket}/run.yaml"]).train.steps == 7
    with pytest.raises(SettingError, match=r"no settings file at s3://corpus/none\.yaml"):
        resolve("sprites", [f"{bucket}/none.yaml"])


def test_a_settings_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "secret.yaml").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SettingError, match="cannot be read: Permission denied"):
        resolve("sprites", [tmp_path / "secret.yaml"])


def test_the_whole_run_names_its_base_model_once() -> None:
    for recipe in RECIPES.values():
        run = recipe()
        assert run.preprocess.encode.base is run.preprocess.encode.image_encoder is None
        encode = run.for_stages().encode
        assert (encode.base, encode.image_encoder) == (run.base, run.method.image_encoder.model)
    own = resolve("sprites", sets=["base=x", "preprocess.encode.image_encoder=y"]).for_stages().encode
    assert (own.base, own.image_encoder) == ("x", "y")


def test_a_section_is_checked_in_verbs_that_read_it() -> None:
    sets = ["train.num_workers=8", "train.batch_size=4", "base=x"]
    with pytest.raises(SettingError, match="num_workers=8 exceeds batch_size=4"):
        resolve("sprites", sets=sets, used=("base", "train"))
    assert resolve("sprites", sets=sets, used=("base", "adapter")).base == "x"
    assert resolve("sprites", sets=sets, used=("preprocess.encode", "method.image_encoder", "base")).base == "x"
    both = ["preprocess.ingest.join=folder=x", "preprocess.encode.resolution=64"]
    assert resolve("sprites", sets=both, used=("preprocess.encode",)).preprocess.encode.resolution == 64
    for section in ("preprocess.ingest", "preprocess", "preprocess.ingest.join"):
        with pytest.raises(SettingError, match=r"ingest\.join needs ingest\.metadata"):
            resolve("sprites", sets=both, used=(section,))
    with pytest.raises(SettingError, match=r"did you mean 'train\.lr'"):  # a name is wrong in every verb
        resolve("sprites", sets=["train.lrr=1"], used=("base",))


def test_the_printed_settings_are_plain_yaml() -> None:
    printed = yaml.safe_load(to_yaml(resolve("paper_sd15")))
    assert list(printed) == ["base", "adapter", "method", "preprocess", "train", "serve", "evaluate"]
    assert printed["method"]["guidance"]["mode"] == "cascade"
