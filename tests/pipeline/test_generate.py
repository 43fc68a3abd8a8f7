"""`realcustom generate` end to end with a photograph and tiny models, and `inspect` of the adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from realcustom import storage
from realcustom.model import RealCustomModel
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.generate import mask_strip
from tests.support import tiny
from tests.support.tiny import TinyModels

Command = Callable[..., str]


def test_a_photograph_becomes_images_masks_and_settings(
    command: Command, tiny_models: TinyModels, photo: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = ["generate", "--prompt", "a toy in the snow", "--image", photo, "--word", "toy", *tiny_models.options]
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
    assert "sampling" not in saved["request"]  # each knob is there once
    assert saved["method"]["tokens"]["hidden"] == 16  # the adapter's own settings, not the recipe's

    assert run([*arguments, "--output", str(output)]) == 2  # nothing is overwritten silently
    assert (np.asarray(Image.open(output / "image-0.png")) == first).all()
    command(*arguments, "--seed", "6", "--steps", "2", "--output", str(output), "--overwrite")
    assert sorted(path.name for path in output.iterdir()) == ["image-0.png", "masks-0.png", "settings.yaml"]
    assert (np.asarray(Image.open(output / "image-0.png")) == second).all()  # image i is that of seed + i


@pytest.mark.slow
def test_photograph_and_result_may_be_on_a_store(
    command: Command, tiny_models: TinyModels, photo: str, bucket: str, capfd: pytest.CaptureFixture[str]
) -> None:
    storage.write_bytes(f"{bucket}/photo.jpg", Path(photo).read_bytes())
    arguments = [
        "generate",
        "--prompt",
        "a toy",
        "--image",
        f"{bucket}/photo.jpg",
        "--word",
        "toy",
        *tiny_models.options,
    ]
    output = [*arguments, "--steps", "2", "--output", f"{bucket}/out/"]
    assert command(*output).splitlines() == [f"{bucket}/out/image-0.png"]
    assert storage.list_names(f"{bucket}/out") == ["image-0.png", "masks-0.png", "settings.yaml"]
    assert run(output) == 2 and "holds an earlier result" in capfd.readouterr().err
    storage.write_bytes(f"{bucket}/out/notes.txt", b"mine")
    assert run([*output, "--overwrite"]) == 2 and "holds other files (notes.txt" in capfd.readouterr().err
    exported = command("export", tiny_models.adapter, "--output", f"{bucket}/exported").splitlines()
    assert exported == [f"{bucket}/exported/{name}" for name in ("adapter.safetensors", "settings.yaml", "pipeline.py")]


def test_the_settings_that_it_wrote_ask_for_the_same_again(
    command: Command, tiny_models: TinyModels, photo: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["--prompt", "a toy in the snow", "--image", photo, "--word", "toy", *tiny_models.options, "--no-mask"]
    command("generate", *asked, "--count", "2", "--seed", "5", "--steps", "2", "--output", str(tmp_path / "a"))
    earlier = ["generate", "--config", str(tmp_path / "a" / "settings.yaml")]
    command(*earlier, "--output", str(tmp_path / "b"))
    for file in ("image-0.png", "image-1.png", "settings.yaml"):
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "a" / file).read_bytes(), file
    command(
        *earlier, "--seed", "6", "--count", "1", "--output", str(tmp_path / "c")
    )  # an option wins, a default does not
    alone, in_batch = (
        np.asarray(Image.open(tmp_path / name), dtype=int) for name in ("c/image-0.png", "a/image-1.png")
    )
    assert np.abs(alone - in_batch).max() <= 1  # a batch of another size differs in last bits
    saved = yaml.safe_load((tmp_path / "c" / "settings.yaml").read_text())["request"]
    assert (saved["n"], saved["seed"], saved["use_mask"], saved["num_inference_steps"]) == (1, 6, False, 2)

    wrong = yaml.safe_load((tmp_path / "a" / "settings.yaml").read_text())
    for change, message in (({"prompptt": "x"}, "did you mean 'request.prompt'"), ({"n": 0}, "n must be at least 1")):
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({"request": wrong["request"] | change}))
        assert run(["generate", "--config", str(tmp_path / "wrong.yaml"), "--output", str(tmp_path / "d")]) == 2
        assert message in capfd.readouterr().err


def test_without_an_output_the_next_free_folder_is_taken(
    command: Command, tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["generate", "--prompt", "a toy", "--base", tiny_models.base, "--steps", "1"]
    for number in ("", "-2", "-3"):
        assert command(*arguments) == f"outputs/generate{number}/image-0.png\n"


def test_text_alone_needs_no_adapter(command: Command, tiny_models: TinyModels, tmp_path: Path) -> None:
    output = tmp_path / "out"
    unread = ("--set", "train.num_workers=8", "--set", "train.batch_size=4")  # contradict each other, in another verb
    command(
        "generate", "--prompt", "a toy", "--base", tiny_models.base, "--steps", "2", "--output", str(output), *unread
    )
    assert sorted(path.name for path in output.iterdir()) == ["image-0.png", "settings.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--word", "to"], "the word 'to' is not in the prompt; its words are: a, toy, in, the, snow"),
        (["--word", "toy", "--width", "31"], "width must be a positive multiple of 2 pixels, got 31"),
        (["--word", "toy", "--device", "cuda:7"], "--device: torch "),
        (["--word", "toy", "--set", "method.image_encoder.model=/gone"], "--image-encoder: "),
        (["--word", "toy", "--image-encoder", "/nowhere"], "--image-encoder: no model folder at /nowhere"),
    ],
)
def test_what_only_the_models_can_tell_is_one_line_and_leaves_nothing(
    arguments: list[str],
    message: str,
    tiny_models: TinyModels,
    photo: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    common = [
        "generate",
        "--prompt",
        "a toy in the snow",
        "--image",
        photo,
        *tiny_models.options,
        "--output",
        str(output),
    ]
    assert run([*common, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("error:") == 1
    assert not output.exists()


def test_an_adapter_that_is_none(
    tiny_models: TinyModels, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(Path(tiny_models.adapter).read_bytes()[:1000])
    arguments = ["generate", "--prompt", "a toy", "--image", photo, "--word", "toy", *tiny_models.options]
    assert run([*arguments, "--adapter", str(broken), "--output", str(tmp_path / "out")]) == 2
    assert "is not an adapter checkpoint of this project" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_inspect_says_what_an_adapter_is(command: Command, tiny_models: TinyModels) -> None:
    out = command("inspect", tiny_models.adapter)
    assert "base: base@sha256-" in out and "image_encoder: image_encoder@sha256-" in out
    assert "to_k_vision.weight" in out and "influence_scope: 0.25" in out


def test_the_strip_has_steps_to_the_right_and_subjects_downwards() -> None:
    masks = [torch.zeros(2, 16, 16), torch.ones(2, 16, 16)]
    masks[0][1] = 1
    strip = np.asarray(mask_strip(masks))
    assert strip.shape == (2 * 66, 2 * 66)
    assert [strip[33, 33], strip[33, 99], strip[99, 33], strip[99, 99]] == [0, 255, 255, 255]


@pytest.mark.parametrize("encoder", ["clip", "siglip_dino"])
def test_a_photograph_on_an_sdxl_base(command: Command, photo: str, tmp_path: Path, encoder: str) -> None:
    """A diffusers folder of SDXL's shape, with the paper's adapter and with RealCustom++'s."""
    base = tiny.tiny_sdxl_base(tmp_path / "base")
    if encoder == "clip":
        model, settings = tiny.tiny_image_encoder(tmp_path / "encoder"), tiny.tiny_settings()
    else:
        model, settings = tiny.tiny_siglip_dino(tmp_path / "encoder"), tiny.tiny_pp_settings()
    adapter = tiny.tiny_adapter(tmp_path / "adapter.safetensors", base, model, settings)
    output = tmp_path / "out"
    arguments = ["--base", base, "--adapter", adapter, "--image-encoder", model, "--output", str(output)]
    command(
        "generate", "--prompt", "a toy in the snow", "--image", photo, "--word", "toy",
        "--width", "40", "--height", "32", "--steps", "2", *arguments,
    )  # fmt: skip
    assert sorted(path.name for path in output.iterdir()) == ["image-0.png", "masks-0.png", "settings.yaml"]
    with Image.open(output / "image-0.png") as image:
        assert image.size == (40, 32)
    saved = yaml.safe_load((output / "settings.yaml").read_text())
    assert saved["method"]["image_encoder"]["kind"] == encoder
    described = command("inspect", adapter)
    assert f"kind: {encoder}" in described and "base: base@sha256-" in described
    assert ("encoder_hidden_states_vision_projection.projector_base.weight" in described) == (encoder != "clip")


def test_converted_weights_are_an_adapter(command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`convert` writes what `inspect` and `generate` read; a file that does not fit is one line that names what."""
    base, encoder = tiny.tiny_sdxl_base(tmp_path / "base"), tiny.tiny_siglip_dino(tmp_path / "encoder")
    model = RealCustomModel(tiny.tiny_sdxl_unet(), tiny.tiny_pp_settings(), image_embed_dim=64)
    state = model.adapter_state_dict()
    torch.save(state, tmp_path / "released.pth")
    output = str(tmp_path / "adapter.safetensors")
    arguments = ["convert", str(tmp_path / "released.pth"), "--base", base, "--image-encoder", encoder]
    said = command(*arguments, "--output", output)
    assert f"{len(state)} tensors" in said and "variant: realcustom_pp" in command("inspect", output)
    del state["mid_block.attentions.0.transformer_blocks.1.attn2.to_k_vision.weight"]
    torch.save(state, tmp_path / "released.pth")
    assert run([*arguments, "--output", str(tmp_path / "other.safetensors")]) == 2
    err = capfd.readouterr().err
    assert "missing: mid_block.attentions.0.transformer_blocks.1.attn2.to_k_vision.weight" in err
    assert not (tmp_path / "other.safetensors").exists()
