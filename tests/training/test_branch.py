"""A run that begins at a checkpoint of another, and one whose schedule may be extended."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from realcustom.checkpoint import load_adapter
from realcustom.errors import UsageError
from realcustom.pipeline.cli.main import run
from realcustom.store import Store
from realcustom.training.checkpoints import Snapshot, file_name, load_checkpoint
from realcustom.training.job import split_parent
from realcustom.training.run import TrainResult, train
from realcustom.training.settings import Schedule, TrainSettings
from tests.support.training_runs import METHOD, SETTINGS, Killed, curve, fit, fit_killed, kill_at, write_settings


def branch(world: SimpleNamespace, output: Path, parent: str, settings: TrainSettings = SETTINGS) -> TrainResult:
    return train(
        world.caches, str(output), world.base, world.image_encoder, METHOD, settings, local=True, parent=parent
    )


@pytest.fixture(scope="module")
def parent(world: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints after 5, 10 and 12 steps."""
    output = tmp_path_factory.mktemp("parent") / "run"
    fit(world, output, replace(SETTINGS, keep_checkpoints=9))
    return output


def test_a_branch_without_a_change_is_its_parent(world: SimpleNamespace, parent: Path, tmp_path: Path) -> None:
    result = branch(world, tmp_path, f"{parent}@5")
    assert load_adapter(result.adapter).provenance["parent"]["step"] == 5
    assert [step for step, _, loss in curve(result) if loss is not None] == [5, 6, 12]
    ours, theirs = (load_adapter(str(run / "adapter.safetensors")).tensors for run in (tmp_path, parent))
    assert all((value == theirs[name]).all() for name, value in ours.items())
    assert result.loss_after == json.loads((parent / "result.json").read_text())["loss_after"]


def test_a_branch_has_its_own_settings_and_is_continued(
    world: SimpleNamespace, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when its parent is there no more, once it has a checkpoint of its own."""
    settings = replace(SETTINGS, lr=5e-3, ema_decay=0.0, steps=15, batch_size=4, schedule=Schedule.COSINE)
    settings = replace(settings, checkpoint_every=1)
    whole = branch(world, tmp_path / "whole", str(parent), settings)  # at its last step, 12
    assert (
        json.loads(json.dumps(yaml.safe_load((tmp_path / "whole" / "settings.yaml").read_text())["parent"]))["step"]
        == 12
    )
    moved = tmp_path / "moved"
    shutil.copytree(parent, moved)
    with monkeypatch.context() as patch:
        kill_at(14, patch)
        with pytest.raises(Killed):
            branch(world, tmp_path / "killed", f"{moved}@12", settings)
    shutil.rmtree(moved / "checkpoints")
    result = branch(world, tmp_path / "killed", f"{moved}@12", settings)
    assert result.sha256 == whole.sha256 and curve(result) == curve(whole)
    with pytest.raises(UsageError, match=r"was begun from step 12 of its parent, not from step 5"):
        branch(world, tmp_path / "whole", f"{parent}@5", settings)


def test_a_parent_s_path_may_have_an_at_sign() -> None:
    assert split_parent("outputs/train@x@500") == ("outputs/train@x", 500)
    assert split_parent("outputs/train@x") == ("outputs/train@x", None) and split_parent("500") == ("500", None)


def test_a_branch_is_tried_from_its_parent(
    world: SimpleNamespace, parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dry run counts the steps that are left; its price belongs to it alone."""
    moved = shutil.copytree(parent, tmp_path / "run@x")
    write_settings(tmp_path / "settings.yaml", world.base, world.image_encoder, SETTINGS)
    given = ["train", "--input", world.caches, "--config", str(tmp_path / "settings.yaml"), "--from", f"{moved}@5"]
    assert run([*given, "--dry-run", "--hourly-price", "1"]) in (0, None)
    assert "; 7 steps on 1 such workers" in capsys.readouterr().out
    assert run([*given, "--output", str(tmp_path / "new"), "--hourly-price", "1"]) == 2
    assert "--hourly-price is for --dry-run" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_moments_of_another_optimizer_begin_anew(
    world: SimpleNamespace, parent: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And count their own steps, also over a kill."""
    other = tmp_path / "other"
    shutil.copytree(parent, other)
    kept = load_checkpoint(str(other / "checkpoints" / file_name(5)), Store())
    renamed = {f"{name}.codes" if name.startswith("exp") else name: value for name, value in kept.tensors.items()}
    snapshot = Snapshot()
    snapshot.take(replace(kept, tensors=renamed))
    snapshot.write(str(other / "checkpoints"), Store())
    settings = replace(SETTINGS, steps=9, checkpoint_every=1)
    caplog.set_level("INFO")
    whole = branch(world, tmp_path / "whole", f"{other}@5", settings)
    assert "the parent's optimizer was another one than adamw, whose moments begin anew" in caplog.text
    with pytest.MonkeyPatch.context() as patch:
        kill_at(8, patch)
        with pytest.raises(Killed):
            branch(world, tmp_path / "killed", f"{other}@5", settings)
    assert branch(world, tmp_path / "killed", f"{other}@5", settings).sha256 == whole.sha256
    assert branch(world, tmp_path / "same", f"{parent}@5", settings).sha256 != whole.sha256  # with the parent's moments


def test_what_cannot_be_a_parent_is_said(world: SimpleNamespace, parent: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has checkpoints of the steps 5, 10, 12"):
        branch(world, tmp_path / "new", f"{parent}@7")
    with pytest.raises(UsageError, match="holds no training checkpoint"):
        branch(world, tmp_path / "new", world.caches)
    with pytest.raises(UsageError, match=r"12 steps are done there, train\.steps=12; give more"):
        branch(world, tmp_path / "new", str(parent))
    method = replace(METHOD, tokens=replace(METHOD.tokens, hidden=8))
    with pytest.raises(
        UsageError, match=r"does not fit: \S+ \(and \d+ more\) differ; it is of a run with another base or me"
    ):
        train(
            *(world.caches, str(tmp_path / "narrow"), world.base, world.image_encoder, method, SETTINGS),
            local=True,
            parent=f"{parent}@5",
        )
    with pytest.raises(UsageError, match="give --initial-adapter or --from"):
        train(
            *(world.caches, str(tmp_path / "new"), world.base, world.image_encoder, METHOD, SETTINGS),
            initial_adapter=str(parent / "adapter.safetensors"),
            local=True,
            parent=str(parent),
        )
    assert not (tmp_path / "new").exists()


def test_wsd_is_extended_before_its_rate_falls(world: SimpleNamespace, tmp_path: Path) -> None:
    settings = replace(SETTINGS, schedule=Schedule.WSD, decay=2, steps=4, checkpoint_every=2, val_every=0)
    longer = replace(settings, steps=6)
    whole = fit(world, tmp_path / "whole", longer)
    fit_killed(3, world, tmp_path / "run", settings)
    assert fit(world, tmp_path / "run", longer).sha256 == whole.sha256
    fit(world, tmp_path / "short", settings)
    with pytest.raises(UsageError, match=r"has begun to fall at step 2, and 4 are done; branch from .*--from \S+@2 "):
        fit(world, tmp_path / "short", longer)
    further = branch(world, tmp_path / "branch", f"{tmp_path / 'short'}@2", longer)
    assert further.loss_after == whole.loss_after
