"""A stage and a training as jobs of two nodes, on a store: what they write is what they write without a cluster.

All stages, evaluation and serving, with the loss of a node in each: test_jobs_on_three_nodes.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from realcustom import storage
from realcustom.checkpoint import adapter_sha256
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.local_cluster import local_cluster
from tests.support.corpora import write_shards
from tests.support.jobs import Submitted, tree_here, tree_in_store, upload
from tests.support.tiny import TinyModels
from tests.support.training_corpus import write_pictures
from tests.support.training_runs import SETTINGS, write_settings

STORE = "s3://realcustom"


def test_a_stage_and_a_training(tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "raw", 4, 2)
    write_pictures(tmp_path / "records", 12)
    models = {"base": Path(tiny_models.base), "image_encoder": Path(tiny_models.image_encoder)}
    short = replace(SETTINGS, steps=4, warmup=0, val_every=4, checkpoint_every=2, loggers=())
    write_settings(tmp_path / "here.yaml", str(models["base"]), str(models["image_encoder"]), short)
    ingest, corpus = ("preprocess", "ingest"), ("--set", "preprocess.ingest.corpus=toys")
    assert run([*ingest, "--local", "--input", f"{tmp_path}/raw", "--output", str(tmp_path), *corpus]) == 0
    trained = ("--input", f"{tmp_path}/records", "--output", f"{tmp_path}/run", "--config", f"{tmp_path}/here.yaml")
    assert run(["train", "--local", *trained]) == 0
    monkeypatch.setenv("REALCUSTOM_CACHE", str(tmp_path / "cache"))
    with local_cluster(2, 3, s3=True, head_cpus=0) as cluster:
        for name, value in cluster.environment().items():
            monkeypatch.setenv(name, value)
        for name in ("raw", "records"):
            upload(tmp_path / name, f"{STORE}/{name}")
        stored = {name: f"{STORE}/models/{folder.name}" for name, folder in models.items()}
        for name, folder in models.items():
            upload(folder, stored[name])
        write_settings(tmp_path / "there.yaml", stored["base"], stored["image_encoder"], short)
        storage.write_bytes(f"{STORE}/there.yaml", (tmp_path / "there.yaml").read_bytes())
        Submitted(tmp_path, *ingest, "--input", f"{STORE}/raw", "--output", STORE, *corpus).end()
        trained = ("--input", f"{STORE}/records", "--output", f"{STORE}/run", "--config", f"{STORE}/there.yaml")
        Submitted(tmp_path, "train", *trained).end()
        assert tree_in_store(STORE, "ingest") == tree_here(tmp_path, "ingest")
        found = adapter_sha256(f"{STORE}/run/adapter.safetensors")
    assert found == adapter_sha256(tmp_path / "run" / "adapter.safetensors")
