"""`realcustom export`: the folder, its card, diffusers' loading of it, and the way onto a hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image

from realcustom import RealCustomPipeline, Subject
from realcustom.checkpoint import adapter_sha256, load_adapter, save_adapter
from realcustom.errors import UsageError
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.configure import resolve
from tests.support import tiny
from tests.support.hub import TOKEN, hub
from tests.support.tiny import TinyModels

Command = Callable[..., str]


def code_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_the_folder_has_the_adapter_its_settings_a_pipeline_and_a_card(
    command: Command, tiny_models: TinyModels, tmp_path: Path
) -> None:
    folder = tmp_path / "toys"
    out = command("export", tiny_models.adapter, "--output", str(folder), "--model-card")
    names = ["adapter.safetensors", "settings.yaml", "pipeline.py", "README.md"]
    assert out.splitlines() == [str(folder / name) for name in names]
    assert (folder / names[0]).read_bytes() == Path(tiny_models.adapter).read_bytes()
    assert resolve("sprites", [folder / "settings.yaml"]).method.tokens.hidden == 16  # --config takes it
    card = (folder / "README.md").read_text()
    _, metadata, text = card.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["realcustom", "subject-driven", "text-to-image"],
    }
    assert text.startswith("\n# toys\n") and adapter_sha256(tiny_models.adapter) in text
    assert "`base@sha256-" in text and "`image_encoder@sha256-" in text and "not recorded" in text


def test_what_the_card_says_of_use_runs(
    command: Command, tiny_models: TinyModels, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command("export", tiny_models.adapter, "--output", "FOLDER", "--model-card")
    Path("photo.jpg").write_bytes(Path(photo).read_bytes())
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    models = {"BASE": tiny_models.base, "IMAGE_ENCODER": tiny_models.image_encoder}
    by_library, by_diffusers = code_blocks(Path("FOLDER/README.md").read_text())
    exec(by_library, dict(models))
    assert Path("dog.png").is_file()
    names: dict[str, object] = dict(models)
    exec(by_diffusers, names)
    pipe = names["pipe"]
    assert isinstance(pipe, DiffusionPipeline) and type(pipe).__name__ == "RealCustomStockPipeline"


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_diffusers_loads_it_on_a_base_and_draws_the_same(
    command: Command, photo: str, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = (tiny.tiny_base if family == "sd" else tiny.tiny_sdxl_base)(tmp_path / "base")
    encoder = tiny.tiny_image_encoder(tmp_path / "encoder")
    adapter = tiny.tiny_adapter(tmp_path / "adapter.safetensors", base, encoder)
    folder = tmp_path / "export"
    command("export", adapter, "--output", str(folder))
    assert not (folder / "README.md").exists()
    file = str(folder / "adapter.safetensors")
    custom = {"custom_pipeline": str(folder), "trust_remote_code": True}
    pipe = DiffusionPipeline.from_pretrained(base, **custom, adapter=file, image_encoder=encoder)
    own = RealCustomPipeline.from_pretrained(base, file, encoder)
    subjects = [Subject(image=Image.open(photo), word="toy")]
    for each in (pipe, own):
        each.set_progress_bar_config(disable=True)

    def drawn(which: object) -> np.ndarray:
        assert callable(which)
        image: Image.Image = which(
            "a toy in the snow", subjects=subjects, generator=torch.Generator().manual_seed(1)
        ).images[0]
        return np.asarray(image)

    first = drawn(pipe)
    assert (first == drawn(own)).all()
    pipe.scheduler = own.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    assert (drawn(pipe) == drawn(own)).all() and (drawn(pipe) != first).any()
    pipe.vae = own.vae = tiny.tiny_vae(seed=1)  # a part that is assigned takes effect, and is saved
    assert (drawn(pipe) == drawn(own)).all() and (drawn(pipe) != first).any()
    pipe.save_pretrained(tmp_path / "saved")
    saved = RealCustomPipeline.from_pretrained(tmp_path / "saved")
    saved.set_progress_bar_config(disable=True)
    assert (drawn(saved) == drawn(own)).all()
    with pytest.raises(UsageError, match="the UNet holds the adapter"):
        pipe.unet = tiny.tiny_unet()
        drawn(pipe)
    pipe.unet = pipe.realcustom.unet
    assert pipe.load_lora_weights == pipe.realcustom.load_lora_weights
    assert pipe.to(torch.float64).realcustom.base.unet.dtype == torch.float64

    with pytest.raises(UsageError, match="adapter: none given"):
        DiffusionPipeline.from_pretrained(base, **custom)


def test_a_base_of_the_hub_is_named_in_the_metadata_and_in_the_use(
    command: Command, tiny_models: TinyModels, tmp_path: Path
) -> None:
    adapter = load_adapter(tiny_models.adapter)
    train = {"steps": 500, "lr": 1e-4}
    of_hub = replace(adapter, base="owner/model@0123abc", image_encoder="owner/clip", provenance={"train": train})
    save_adapter(tmp_path / "a.safetensors", of_hub)
    command("export", str(tmp_path / "a.safetensors"), "--output", str(tmp_path / "out"), "--model-card")
    card = (tmp_path / "out" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("owner/model", "adapter")
    assert "from_pretrained('owner/model', adapter=" in card and "IMAGE_ENCODER" not in card
    assert "steps: 500" in card
    assert resolve("sprites", [tmp_path / "out" / "settings.yaml"]).base == "owner/model@0123abc"


def test_nothing_is_overwritten_silently(
    command: Command, tiny_models: TinyModels, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    arguments = ["export", tiny_models.adapter, "--output", str(folder)]
    command(*arguments, "--model-card")
    assert run(arguments) == 2 and "holds an earlier result" in capfd.readouterr().err
    command(*arguments, "--overwrite")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.safetensors", "pipeline.py", "settings.yaml"]
    (folder / "notes.txt").write_text("mine")
    assert run([*arguments, "--overwrite"]) == 2
    assert "holds other files (notes.txt ...)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.safetensors"], "ADAPTER: no adapter checkpoint at nowhere.safetensors"),
        (["{photo}"], "is not an adapter checkpoint of this project"),
        (
            ["{adapter}", "--output", "s3://b/out", "--push", "me/a"],
            "--push: what goes onto the hub is a folder of this",
        ),
        (["{adapter}", "--push", "a/b/c"], "--push: Repo id must be"),
        (["{adapter}", "--push", "me/toys"], "--push me/toys: no token is set; run `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str],
    message: str,
    tiny_models: TinyModels,
    photo: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    filled = [word.format(photo=photo, adapter=tiny_models.adapter) for word in arguments]
    output = tmp_path / "out"
    assert run(["export", *filled[:1], "--output", str(output), *filled[1:]]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not output.exists()


def test_it_is_pushed_by_the_hub_s_own_client(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def push(name: str, token: str, *options: str) -> int:
        monkeypatch.setenv("HF_TOKEN", token)
        output = ["--output", str(tmp_path / name), "--model-card", "--push", f"me/{name}"]
        return run(["export", tiny_models.adapter, *output, *options])

    def refusal() -> str:
        err = capsys.readouterr().err
        assert err.startswith("error: --push me/") and err.count("\n") == 1, err
        return err

    with hub() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        assert push("toys", TOKEN) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"{server.url}/me/toys/commit/{40 * 'a'}"
        files = {path.name: path.read_bytes() for path in (tmp_path / "toys").iterdir()}
        assert server.repositories == {"me/toys": files} and b"# toys" in files["README.md"]
        assert push("others", "hf_wrong") == 2 and "401" in refusal()
    assert push("toys", TOKEN, "--overwrite") == 2 and "refused" in refusal()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert push("toys", TOKEN, "--overwrite") == 2 and "offline mode is enabled" in refusal()
