"""`train` as a verb, where its output belongs to another run. The whole chain of verbs is run by `tests/test_docs.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from realcustom.pipeline.cli.main import run
from tests.support.tiny import TinyModels


def test_training_refuses_an_output_of_another_run(
    tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.support.training_corpus import write_pictures

    write_pictures(tmp_path / "records", count=8)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "settings.yaml").write_text("train: {lr: 1.0}\n")
    arguments = ["train", "--input", str(tmp_path / "records"), "--output", str(tmp_path / "train"), "--local"]
    assert run([*arguments, *tiny_models.training_options, "--set", "train.num_workers=1"]) == 2
    assert "belongs to a run of another configuration" in capsys.readouterr().err
