"""The shipped models, measured live on drawings that none of them has seen, held to their floors."""

from __future__ import annotations

from pathlib import Path

import pytest

from realcustom.checkpoint import read_header
from realcustom.identity import model_identity
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.zoo import measure_zoo
from realcustom.sprites import ZOO, zoo_path

FLOORS = {
    "plain_background": 0.9,
    "plain_noun": 0.7,
    "attention_iou": 0.5,
    "detection_recall": 0.5,
    "mask_iou": 0.6,
    "caption_background": 0.8,
}
MAX_BYTES = 40e6


def test_the_zoo_is_complete_and_small() -> None:
    names = {"pipeline", "clip", "image_encoder", "blip", "grounding_dino", "sam", "heads", "judge"}
    assert {path.name for path in ZOO.iterdir()} == {*names, "adapter.safetensors", "adapter_crop.safetensors"}
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < MAX_BYTES


@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter_crop.safetensors"])
def test_an_adapter_belongs_to_the_models_beside_it(name: str) -> None:
    header = read_header(zoo_path(name))
    assert header.base == model_identity(zoo_path("pipeline"))
    assert header.image_encoder == model_identity(zoo_path("image_encoder"))


def test_inspect_zoo_measures_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "zoo", "--images", "4", "--seed", "7"]) == 0
    lines = [line.strip().partition(": ") for line in capsys.readouterr().out.splitlines()]
    measured = {name: float(value) for name, _, value in lines if value.replace(".", "").isdigit()}
    assert set(FLOORS) <= set(measured) and all(0 <= value <= 1 for value in measured.values())


@pytest.mark.slow
def test_the_models_reach_their_floors() -> None:
    measured = measure_zoo(images=256, seed=1)
    assert {name: measured[name] for name, floor in FLOORS.items() if measured[name] < floor} == {}


def test_no_path_of_this_machine_is_shipped() -> None:
    home = str(Path.home()).encode()
    for path in ZOO.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert str(ZOO.parent.parent).encode() not in data and home + b"/" not in data, path
