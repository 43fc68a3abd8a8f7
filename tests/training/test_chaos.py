"""A run that is killed -9 twenty times at random moments ends with the undisturbed run's bytes and losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from realcustom.store import Store
from realcustom.training.checkpoints import list_checkpoints, load_checkpoint
from realcustom.training.metrics_file import read_rows
from tests.support.training_kills import VARIED, train_with_kills
from tests.support.training_runs import fit, write_settings

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kills", "while_writing", "steps"), [(1, 1, 200), (20, 5, 4000)], ids=["one kill", "twenty kills"]
)
def test_kills_at_random_moments_change_nothing(
    kills: int, while_writing: int, steps: int, world: SimpleNamespace, tmp_path: Path
) -> None:
    config, output = tmp_path / "settings.yaml", tmp_path / "run"
    settings = replace(VARIED, steps=steps)
    write_settings(config, world.base, world.image_encoder, settings)
    arguments = ["--input", world.caches, "--output", str(output), "--config", str(config), "--local"]
    killed = train_with_kills(arguments, output, kills, while_writing, seed=kills)
    assert killed.while_writing >= (3 if kills > 3 else 0)
    whole = fit(world, tmp_path / "whole", settings)
    assert (output / "adapter.safetensors").read_bytes() == Path(whole.adapter).read_bytes()
    kept = ("step", "loss", "val_loss", "val_losses", "grad_norm", "lr", "skipped")
    curves = [
        [{name: row.get(name) for name in kept} for row in rows]
        for rows in (read_rows(str(output), Store()), whole.curve)
    ]
    assert curves[0] == curves[1]
    for uri in list_checkpoints(str(output / "checkpoints"), Store()):
        load_checkpoint(uri, Store())
    assert not list(output.rglob(".tmp-*"))
