"""A tiny run and what tests ask of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from realcustom.checkpoint import load_adapter
from realcustom.config import to_dict
from realcustom.settings import MethodSettings, TokenSettings
from realcustom.training.run import TrainResult, train
from realcustom.training.settings import TrainSettings
from realcustom.training.worker import Worker

METHOD = MethodSettings(tokens=TokenSettings(hidden=16))
SETTINGS = TrainSettings(
    lr=1e-2,
    steps=12,
    batch_size=5,
    warmup=3,
    ema_decay=0.9,
    p_drop_text=0.2,
    p_drop_image=0.2,
    validation_fraction=0.2,
    validation_timesteps=2,
    val_every=6,
    log_every=4,
    checkpoint_every=5,
    sample_records=0,
    num_workers=1,
    threads=1,
)


def fit(
    world: SimpleNamespace,
    output: Path | str,
    settings: TrainSettings = SETTINGS,
    records: str | None = None,
    method: MethodSettings = METHOD,
    initial_adapter: str | None = None,
    local: bool = True,
) -> TrainResult:
    return train(
        records or world.caches, str(output), world.base, world.image_encoder, method, settings, initial_adapter, local
    )


def fit_killed(
    step: int,
    world: SimpleNamespace,
    output: Path | str,
    settings: TrainSettings = SETTINGS,
    records: str | None = None,
) -> None:
    """As `fit`, but killed at a step (`kill_at`)."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(step, patch)
        with pytest.raises(Killed):
            fit(world, output, settings, records)


def write_settings(path: Path, base: str, image_encoder: str, settings: TrainSettings) -> None:
    """A file for `--config` that makes a command train as `fit` does."""
    method = replace(METHOD, image_encoder=replace(METHOD.image_encoder, model=image_encoder))
    path.write_text(yaml.safe_dump({"base": base, "method": to_dict(method), "train": to_dict(settings)}))


def curve(result: TrainResult) -> list[tuple[int, float | None, float | None]]:
    return [(row["step"], row.get("loss"), row.get("val_loss")) for row in result.curve]


def tensors(result: TrainResult) -> dict[str, torch.Tensor]:
    return dict(load_adapter(result.adapter).tensors)


class Killed(BaseException):
    """Ends a run in the middle of a step, as a signal would."""


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    after_step = Worker._after_step

    def killed(worker: Worker, *arguments: object) -> None:
        if worker.trainer.step_count == step:
            raise Killed
        after_step(worker, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "_after_step", killed)
