"""`realcustom generate` end to end with a photograph and tiny models, and `inspect` of the adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline.cli import run
from pipeline.generate import mask_strip
from tests.pipeline.conftest import Models

Command = Callable[..., str]


def test_a_photograph_becomes_images_masks_and_settings(
    command: Command, models: Models, photo: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = ["generate", "--prompt", "a toy in the snow", "--image", photo, "--word", "toy", *models.sets]
    out = command(*arguments, "--count", "2", "--seed", "5", "--steps", "2", "--output", str(output))
    assert out.splitlines() == [str(output / "image-0.png"), str(output / "image-1.png")]
    assert sorted(path.name for path in output.iterdir()) == [
        "image-0.png",
        "image-1.png",
        "masks-0.png",
        "masks-1.png",
        "settings.yaml",
    ]
    first, second = (np.asarray(Image.open(output / f"image-{i}.png")) for i in range(2))
    assert first.shape == second.shape == (32, 32, 3) and (first != second).any()
    strip = Image.open(output / "masks-0.png")
    assert strip.size == (2 * 66, 66) and np.asarray(strip).max() == 255
    saved = yaml.safe_load((output / "settings.yaml").read_text())
    assert saved["request"]["prompt"] == "a toy in the snow" and saved["request"]["seed"] == 5
    assert saved["method"]["tokens"]["hidden"] == 16  # the adapter's own settings, not the recipe's

    command(*arguments, "--seed", "6", "--steps", "2", "--output", str(output))
    assert sorted(path.name for path in output.iterdir()) == ["image-0.png", "masks-0.png", "settings.yaml"]
    assert (np.asarray(Image.open(output / "image-0.png")) == second).all()  # image i is that of seed + i


def test_text_alone_needs_no_adapter(command: Command, models: Models, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command("generate", "--prompt", "a toy", "--base", models.base, "--steps", "2", "--output", str(output))
    assert sorted(path.name for path in output.iterdir()) == ["image-0.png", "settings.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--word", "to"], "the word 'to' is not in the prompt; its words are: a, toy, in, the, snow"),
        (["--word", "toy", "--width", "31"], "width must be a positive multiple of 2 pixels, got 31"),
        (["--word", "toy", "--image-encoder", "/nowhere"], "no image encoder at /nowhere"),
    ],
)
def test_what_only_the_models_can_tell_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, models: Models, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    common = ["generate", "--prompt", "a toy in the snow", "--image", photo, *models.sets, "--output", str(output)]
    assert run([*common, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("error:") == 1
    assert not output.exists()


def test_an_adapter_that_is_none(
    models: Models, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(Path(models.adapter).read_bytes()[:1000])
    arguments = ["generate", "--prompt", "a toy", "--image", photo, "--word", "toy", *models.sets]
    assert run([*arguments, "--adapter", str(broken), "--output", str(tmp_path / "out")]) == 2
    assert "is not an adapter checkpoint of this project" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_inspect_says_what_an_adapter_is(command: Command, models: Models) -> None:
    out = command("inspect", models.adapter)
    assert "base: base@sha256-" in out and "image_encoder: image_encoder@sha256-" in out
    assert "to_k_vision.weight" in out and "influence_scope: 0.25" in out


def test_the_strip_has_steps_to_the_right_and_subjects_downwards() -> None:
    masks = [torch.zeros(2, 16, 16), torch.ones(2, 16, 16)]
    masks[0][1] = 1
    strip = np.asarray(mask_strip(masks))
    assert strip.shape == (2 * 66, 2 * 66)
    assert [strip[33, 33], strip[33, 99], strip[99, 33], strip[99, 99]] == [0, 255, 255, 255]
