"""`train` as a verb, where it is refused. The whole chain of verbs is run by `tests/test_docs.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from realcustom.errors import UsageError
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.devices import check_training
from realcustom.training.settings import TrainSettings
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


def test_an_elastic_run_asks_for_its_least_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realcustom.pipeline.devices.is_embedded", lambda _: True)  # a test before may have connected
    many = TrainSettings(num_workers=10_000, batch_size=10_000)
    check_training(replace(many, min_workers=1), local=False, address=None)
    for least, said in ((0, "num_workers=10000"), (9999, "min_workers=9999")):
        with pytest.raises(UsageError, match=rf"train\.{said} asks for \d+ CPUs"):
            check_training(replace(many, min_workers=least), local=False, address=None)
