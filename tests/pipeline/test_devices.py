"""A verb that needs a GPU on a cluster without one: a line that ends it, unless the cluster may grow."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from realcustom.errors import UsageError
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.devices import require_gpu_node
from realcustom.sprites import zoo_path
from tests.support.suites import write_suite
from tests.support.tiny import TinyModels
from tests.support.training_corpus import write_pictures

PHOTOS = Path(__file__).parents[1] / "data" / "photos"
CPU = {"Alive": True, "Resources": {"CPU": 8.0}, "Labels": {}}


@pytest.mark.parametrize(
    ("nodes", "refused"),
    [
        ([CPU, CPU], True),
        ([CPU, {**CPU, "Resources": {"GPU": 1.0}}], False),
        ([{**CPU, "Resources": {"GPU": 1.0}, "Alive": False}, CPU], True),
        ([{**CPU, "Labels": {"ray.io/node-group": "headgroup"}}], False),
    ],
)
def test_what_is_refused(nodes: list[dict[str, Any]], refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(UsageError, match="nodes has one") if refused else contextlib.nullcontext():
        require_gpu_node("train.use_gpu=true", "set train.use_gpu=false")


@pytest.mark.parametrize("verb", ["stage", "train", "evaluate"])
def test_a_verb_that_needs_one_ends_with_a_line(
    verb: str, ray_cluster: str, tiny_models: TinyModels, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if verb == "stage":
        ingest = ["preprocess", "ingest", "--local", "--input", str(PHOTOS), "--output", str(tmp_path)]
        assert run(ingest) == 0
        given, way_out = ["preprocess", "score", "--input", str(tmp_path), "--output", str(tmp_path)], "device=cpu"
        given += ["--set", "preprocess.compute.device=cuda"]
    elif verb == "train":
        write_pictures(tmp_path / "records", 12)
        given, way_out = (
            ["train", "--input", str(tmp_path / "records"), "--output", str(tmp_path / "run")],
            "use_gpu=false",
        )
        given += ["--set", "train.use_gpu=true", *tiny_models.training_options]
    else:
        suite = write_suite(tmp_path, subjects=2)
        given, way_out = ["evaluate", "--suite", "own", "--subjects", str(suite.folder)], "leave --gpu out"
        given += ["--prompts", str(suite.prompts), "--workers", "1", "--gpu", "--output", str(tmp_path / "evaluated")]
        given += ["--metric", f"diversity@{zoo_path('image_encoder')}", *tiny_models.options]
    capfd.readouterr()
    begun = time.monotonic()
    assert run(given) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "none of the cluster's 1 nodes has one" in errors[0] and way_out in errors[0]
    assert time.monotonic() - begun < 60  # on a busy machine; a second where it is quiet
