"""Every stage, then `train`, `inspect` and `generate`, each as its verb on the session's cluster, with tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.cli import run
from realcustom.record import check_schema
from tests.pipeline.conftest import Models
from tests.preprocessing.corpora import write_shards

Command = Callable[..., str]
STAGES = ("ingest", "score", "select", "caption", "subjects", "encode")


def test_from_shards_to_an_image_verb_by_verb(
    ray_cluster: str, command: Command, models: Models, photo: str, tmp_path: Path
) -> None:
    source = str(write_shards(tmp_path / "shards", shards=2, samples=6))
    sets = models.stage_sets(tmp_path)
    for stage in STAGES:
        own = [part for pair in zip(sets[::2], sets[1::2], strict=True) for part in pair if f".{stage}." in pair[1]]
        out = command(
            "preprocess", stage, "--input", source, "--output", str(tmp_path / "records"), *own, *models.sets[4:]
        )
        account, source = out.splitlines()
        report = json.loads((Path(source) / "report.json").read_text())
        assert report["in"] == report["kept"] + sum(report["dropped"].values()) + sum(report["quarantined"].values())
        assert report["kept"] > 0, account
    tables = sorted(Path(source).glob("*.parquet"))
    check_schema(pq.read_schema(tables[0]))
    assert f"{report['rows_out']} training records in 2 Parquet files" in command("inspect", source)

    training = ["train", "--input", source, "--output", str(tmp_path / "train"), *models.sets[:2], *models.sets[4:]]
    training += ["--set", "train.steps=2", "--set", "train.batch_size=4", "--set", "train.warmup=0"]
    training += ["--set", "train.validation_records=2", "--set", "train.sample_steps=2", "--set", "train.val_every=2"]
    training += ["--set", "train.sample_records=1", "--set", "train.validation_fraction=0.3"]
    out = command(*training)
    adapter = str(tmp_path / "train" / "adapter.safetensors")
    assert f"adapter {adapter}" in out and "validation loss" in out
    assert command(*training) == out  # finished: the same result, nothing done again

    assert "adapter of" in command("inspect", adapter)
    arguments = ["generate", "--prompt", "a toy", "--image", photo, "--word", "toy", "--steps", "2", *models.sets]
    command(*arguments, "--adapter", adapter, "--output", str(tmp_path / "image"))
    assert (tmp_path / "image" / "image-0.png").is_file()


def test_training_refuses_an_output_of_another_run(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.training.corpus import write_pictures

    write_pictures(tmp_path / "records", count=8)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "settings.yaml").write_text("train: {lr: 1.0}\n")
    arguments = ["train", "--input", str(tmp_path / "records"), "--output", str(tmp_path / "train"), "--local"]
    assert run([*arguments, *models.sets[:2], *models.sets[4:], "--set", "train.num_workers=1"]) == 2
    assert "belongs to a run of another configuration" in capsys.readouterr().err
