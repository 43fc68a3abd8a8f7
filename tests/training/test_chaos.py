"""A run that is killed -9 at random moments ends with the undisturbed run's bytes and losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from realcustom.store import Store
from realcustom.training.checkpoints import list_checkpoints, load_checkpoint
from realcustom.training.metrics_file import read_rows
from realcustom.training.run import TrainResult
from tests.support.training_kills import VARIED, train_on_ray_with_kills, train_with_kills
from tests.support.training_runs import fit, write_settings

pytestmark = pytest.mark.slow


def check_same(output: Path, whole: TrainResult) -> None:
    """The killed run has the undisturbed one's adapter and rows, and nothing half written."""
    assert (output / "adapter.safetensors").read_bytes() == Path(whole.adapter).read_bytes()
    kept = ("step", "loss", "val_loss", "val_losses", "grad_norm", "lr", "skipped")
    ours, theirs = (
        [{name: row.get(name) for name in kept} for row in rows]
        for rows in (read_rows(str(output), Store()), whole.curve)
    )
    assert ours == theirs
    for uri in list_checkpoints(str(output / "checkpoints"), Store()):
        load_checkpoint(uri, Store())
    assert not list(output.rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("kills", "while_writing", "steps"), [(1, 1, 60), (20, 5, 300)], ids=["one kill", "twenty kills"]
)
def test_kills_at_random_moments_change_nothing(
    kills: int, while_writing: int, steps: int, world: SimpleNamespace, tmp_path: Path
) -> None:
    config, output, settings = tmp_path / "settings.yaml", tmp_path / "run", replace(VARIED, steps=steps)
    write_settings(config, world.base, world.image_encoder, settings)
    arguments = ["--input", world.caches, "--output", str(output), "--config", str(config), "--local"]
    killed = train_with_kills(arguments, output, steps, kills, while_writing, seed=kills)
    assert killed.while_writing >= (3 if kills > 3 else 0)
    check_same(output, fit(world, tmp_path / "whole", settings))


def test_kills_of_workers_and_of_the_driver_change_nothing(
    world: SimpleNamespace, tmp_path: Path, ray_cluster: str
) -> None:
    """Two workers, one of which is killed twice, and the command with its cluster between that."""
    config, output = tmp_path / "settings.yaml", tmp_path / "run"
    settings = replace(VARIED, steps=300, num_workers=2, batch_size=6, max_failures=-1)
    write_settings(config, world.base, world.image_encoder, settings)
    arguments = ["--input", world.caches, "--output", str(output), "--config", str(config)]
    train_on_ray_with_kills(arguments, output, settings.steps, ["worker", "driver", "worker"], seed=3)
    check_same(output, fit(world, tmp_path / "whole", settings, local=False))
