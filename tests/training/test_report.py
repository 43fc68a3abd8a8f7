"""What a run shows: report.html, `realcustom inspect`, `realcustom train --dry-run`."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from realcustom.config import to_dict
from realcustom.pipeline.cli.main import run
from realcustom.store import Store
from realcustom.training.activations import Activations, count_activations
from realcustom.training.chart import curve_svg, ticks
from realcustom.training.facts import read_facts
from realcustom.training.flops import count_flops
from realcustom.training.metrics import _rate
from realcustom.training.page import render, write_page
from realcustom.training.run import make_job
from realcustom.training.sheets import read_captions
from realcustom.training.trial import memory_by_part
from realcustom.training.worker import Worker
from realcustom.training.world import World
from tests.support.training_runs import METHOD, SETTINGS, Killed, fit, kill_at


@pytest.fixture(scope="module")
def seen(world: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with sheets at two steps, whose device is said to do a TFLOP/s."""
    output = tmp_path_factory.mktemp("seen") / "run"
    settings = replace(SETTINGS, steps=6, sample_records=1, sample_every=3, sample_steps=1, device_tflops=1.0)
    fit(world, output, settings, records=world.pictures)
    return output


def test_the_page_has_curves_sheets_settings_and_the_account(seen: Path) -> None:
    page = (seen / "report.html").read_text()
    for name in ("training loss", "validation loss", "gradient norm", "learning rate", "images/s", "data wait", "MFU"):
        assert f'aria-label="{name} over steps"' in page
    assert page.count("<polyline") == 9  # two strata
    assert json.loads(re.findall(r'id="names">(.*?)</script>', page)[0]) == ["step-00000003.png", "step-00000006.png"]
    assert "23 in = " in page and "weight_decay: 0.01" in page
    captions = read_captions(str(seen), "step-00000006.png", Store())
    assert len(captions) == 1 and captions[0][0] in captions[0][1]
    assert "<li><b>{}</b><br>{}</li>".format(*captions[0]) in page


def test_the_page_opens_no_sheet(seen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses large ones, as one of 57 rows of 1024 pixels."""
    page = (seen / "report.html").read_bytes()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    write_page(str(seen), read_facts(str(seen), Store()).result["identity"], Store())
    assert (seen / "report.html").read_bytes() == page


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["0.0", "0.5", "1.0"]),
        (0.00029, 0.00104, ["0.0004", "0.0006", "0.0008", "0.0010"]),
        (-0.6, 10.6, ["0", "5", "10"]),
        (1.00009, 1.00093, ["1.0002", "1.0004", "1.0006", "1.0008"]),
        (1e-7, 1.1e-5, ["5e-06", "1e-05"]),
        (1000.0, 52000.0, ["20000", "40000"]),
    ],
)
def test_an_axis_has_a_few_round_numbers(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in ticks(low, high)] == labels


@pytest.mark.parametrize(("steps", "labels"), [([0], "0"), ([0, 1], "01"), ([0, 3, 6], "036")])
def test_a_step_is_labelled_once(steps: list[int], labels: str) -> None:
    drawn = curve_svg("loss", [(step, 0.5) for step in steps])
    assert sorted(re.findall(r">(\d+)</text>", drawn)) == list(labels)


def test_a_slow_rate_has_two_digits() -> None:
    assert [_rate(value) for value in (0.0341, 0.67, 1.66, 9.96, 16.6, 1234.5)] == [
        "0.034",
        "0.67",
        "1.7",
        "10",
        "17",
        "1234",
    ]


def test_a_run_is_inspected(seen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(seen)]) in (0, None)
    said = capsys.readouterr().out
    account = json.loads((seen / "report.json").read_text())
    assert f"records: 23 in = {account['trained']} trained on + {account['held_out']} held out + 0 dropped" in said
    assert "steps: 6 of 6\n" in said and "MFU: " in said and "its sha256: " in said


def test_a_run_under_way_is_shown_too(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_at(7, monkeypatch)
    with pytest.raises(Killed):
        fit(world, tmp_path)
    assert run(["inspect", str(tmp_path)]) in (0, None)
    said = capsys.readouterr().out
    assert "steps: 4 of 12; not finished" in said and "starts" not in said
    assert "validation loss" in (tmp_path / "report.html").read_text()  # of the checkpoint after 5 steps
    monkeypatch.undo()
    fit(world, tmp_path)
    assert run(["inspect", str(tmp_path)]) in (0, None)
    assert "starts: 2; at least 0 steps were done again" in capsys.readouterr().out


def test_text_of_a_run_is_escaped(seen: Path) -> None:
    facts = read_facts(str(seen), Store())
    note = {"uid": "<b>", "reason": "<script>alert(1)</script>"}
    page = render(replace(facts, account={**facts.account, "dropped_records": [note]}), "<i>run</i>").decode()
    assert "<script>alert" not in page and "<i>run" not in page and "&lt;b&gt;" in page


def test_flops_are_those_of_the_model_s_products(world: SimpleNamespace, tmp_path: Path) -> None:
    """Twice in the backward where inputs and weights have gradients; what is computed twice counts once."""
    counts = []
    for checkpointing in (False, True):
        settings = replace(SETTINGS, gradient_checkpointing=checkpointing)
        job = make_job(world.caches, str(tmp_path), world.base, world.image_encoder, METHOD, settings)
        worker = Worker(job, World())
        batch = worker.batches.training(worker.order.share(0, 0, 1))
        counts.append(count_flops(worker.trainer, batch))
        assert worker.model.unet.is_gradient_checkpointing is checkpointing
        assert all(value.grad is None for value in worker.trainer.parameters.values())
    assert counts[0] == counts[1] > 1e6


def test_a_dry_run_counts_what_is_sharded_over_the_workers(world: SimpleNamespace, tmp_path: Path) -> None:
    """Of four workers each has a fourth of the optimizer and the average; weights and gradients are gathered for a step."""

    def parts(shard: bool) -> dict[str, float]:
        settings = replace(SETTINGS, num_workers=4, shard=shard)
        worker = Worker(
            make_job(world.caches, str(tmp_path), world.base, world.image_encoder, METHOD, settings), World()
        )
        return memory_by_part(worker, worker.batches.training(worker.order.share(0, 0, 4)))

    whole, sharded = parts(False), parts(True)
    assert whole["optimizer"] == pytest.approx(2 * whole["trained weights"], rel=0.01)  # and a count of steps
    factors = {"trained weights": 5 / 4, "gradients": 5 / 4, "optimizer": 1 / 4, "EMA": 1 / 4}
    for name, size in whole.items():
        assert size > 0 and sharded[name] == pytest.approx(size * factors.get(name, 1)), name


def test_activations_are_what_a_forward_keeps(world: SimpleNamespace, tmp_path: Path) -> None:
    """Each row as much as the one before; with gradient checkpointing less is kept, and some of it for a time."""

    def counted(checkpointing: bool, rows: int) -> Activations:
        settings = replace(SETTINGS, gradient_checkpointing=checkpointing, batch_size=rows)
        worker = Worker(
            make_job(world.caches, str(tmp_path), world.base, world.image_encoder, METHOD, settings), World()
        )
        batch = worker.batches.training(worker.order.share(0, 0, 1))
        found = count_activations(worker.model, lambda: worker.trainer.errors(worker.model, batch, 0.8))
        worker.trainer.step(batch)  # checkpoints as before
        assert worker.model.unet.is_gradient_checkpointing is checkpointing
        return found

    one, two, four = (counted(False, rows) for rows in (1, 2, 4))
    assert four.kept - two.kept == pytest.approx(2 * (two.kept - one.kept), rel=1e-3) and four.again == 0
    less = counted(True, 4)
    assert less.kept < 0.5 * four.kept and less.again > 0 and less.most < four.kept


def test_a_dry_run_counts_and_measures_and_writes_nothing(
    world: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"base": world.base, "method": to_dict(METHOD), "train": to_dict(replace(SETTINGS, num_workers=2))}
    config["method"]["image_encoder"]["model"] = world.image_encoder
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    before = sorted(Path(world.caches).iterdir())
    arguments = ["train", "--input", world.caches, "--config", "config.yaml", "--dry-run", "--hourly-price", "2"]
    arguments += ["--set", "train.device_tflops=1"]
    assert run(arguments) in (0, None)
    said = capsys.readouterr().out
    assert re.search(r"records: 23 = \d+ trained on \+ \d+ held out", said)
    assert re.search(r"steps: \d an epoch of batches of 5; train\.steps=12 are \d\.\d\d epochs", said)
    assert re.search(
        r"frozen weights \S+, trained weights \S+, gradients \S+, optimizer \S+, EMA \S+, activations", said
    )
    assert re.search(r"speed: \d+\.\d\d images/s of a worker, MFU 0\.\d{3} \(\S+ TFLOP/s\)", said)
    assert re.search(r"12 steps on 2 such workers.* hours, \d+\.\d\d at 2 an hour a worker", said)
    assert sorted(Path(world.caches).iterdir()) == before and [path.name for path in tmp_path.iterdir()] == [
        "config.yaml"
    ]
