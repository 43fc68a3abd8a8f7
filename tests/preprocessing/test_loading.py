"""Models that cannot be loaded: said in words before a cluster is started and before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from realcustom.preprocessing.catalogue import CAPTION, ENCODE, INGEST, SCORE
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.run import InProcess, OnRay, run_stage
from realcustom.preprocessing.settings import (
    CaptionSettings,
    EncodeSettings,
    PreprocessSettings,
    ScoreSettings,
    SubjectsSettings,
)
from realcustom.settings import MethodSettings
from tests.support import tiny_models
from tests.support.corpora import write_shards
from tests.support.tiny import tiny_base, tiny_image_encoder

REVISION = "0" * 40


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound models, and a corpus."""
    root = tmp_path_factory.mktemp("sound")
    for name in ("clip", "blip", "grounding_dino", "sam"):
        getattr(tiny_models, name)(root / name)
    tiny_base(root / "base")
    tiny_image_encoder(root / "encoder")
    write_shards(root / "src", 1, 1)
    run_stage(INGEST, str(root / "src"), str(root), PreprocessSettings(), executor=InProcess())
    return root


def no_cluster() -> None:
    raise AssertionError("a cluster is asked for")


def refusal(sound: Path, output: Path, stage: Stage, **given: str) -> str:
    """What a run on Ray is refused with."""
    settings = PreprocessSettings(
        score=ScoreSettings(clip=given.get("clip", str(sound / "clip")), heads=given.get("heads")),
        caption=CaptionSettings(model=given.get("blip", str(sound / "blip"))),
        subjects=SubjectsSettings(
            detector=given.get("grounding_dino", str(sound / "grounding_dino")),
            segmenter=given.get("sam", str(sound / "sam")),
        ),
        encode=EncodeSettings(base=given.get("base"), image_encoder=str(sound / "encoder")),
    )
    (source,) = sound.glob("ingest@*")
    with pytest.raises(ValueError) as error:
        run_stage(stage, str(source), str(output), settings, method=MethodSettings(), executor=OnRay(no_cluster))
    assert not output.exists()
    return str(error.value)


def drop_a_weight(weights: dict[str, torch.Tensor]) -> None:
    weights.pop(sorted(weights)[3])


def reshape_a_weight(weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name in sorted(weights) if weights[name].ndim == 2)
    weights[name] = torch.zeros(3, 3)


@pytest.mark.parametrize("damage", [drop_a_weight, reshape_a_weight])
@pytest.mark.parametrize(
    ("name", "stage", "setting"),
    [
        ("clip", SCORE, "score.clip"),
        ("blip", CAPTION, "caption.model"),
    ],
)
def test_weights_that_do_not_fit_the_model(
    sound: Path,
    tmp_path: Path,
    name: str,
    stage: Stage,
    setting: str,
    damage: Callable[[dict[str, torch.Tensor]], None],
) -> None:
    folder = shutil.copytree(sound / name, tmp_path / name)
    weights = load_file(folder / "model.safetensors")
    damage(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    words = refusal(sound, tmp_path / "out", stage, **{name: str(folder)})
    assert f"{setting}={folder}" in words and "cannot be loaded" in words
    assert ("lacks weights: " in words) is (damage is drop_a_weight)


def test_files_that_are_cut_or_not_there(sound: Path, tmp_path: Path) -> None:
    base = shutil.copytree(sound / "base", tmp_path / "base")
    weights = next((base / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert f"encode.base: {weights} cannot be loaded: " in refusal(sound, tmp_path / "a", ENCODE, base=str(base))
    clip = shutil.copytree(sound / "clip", tmp_path / "clip")
    (clip / "preprocessor_config.json").unlink()
    assert f"score.clip={clip} cannot be loaded: " in refusal(sound, tmp_path / "b", SCORE, clip=str(clip))
    heads = tiny_models.heads(tmp_path / "heads")
    save_file(
        {"aesthetic.weight": torch.zeros(1, 8), "aesthetic.bias": torch.zeros(1)}, Path(heads, "heads.safetensors")
    )
    assert "score.clip embeds in 16 dim" in refusal(sound, tmp_path / "c", SCORE, heads=heads)


def test_a_hub_model_is_judged_by_its_config(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's cache holds it, with weights and without."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = tmp_path / "cache/models--some--model/snapshots" / REVISION
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs/main").write_text(REVISION)
    shutil.copytree(sound / "clip", snapshot)
    model = f"some/model@{REVISION}"
    words = refusal(sound, tmp_path / "a", CAPTION, blip="some/model")
    assert words == f"caption.model: {model} is a model of type 'clip', and 'blip' is what runs there"
    config = json.loads((snapshot / "config.json").read_text())
    (snapshot / "config.json").write_text(json.dumps({**config, "projection_dim": 8}))
    assert f"score.clip={model} cannot be loaded: " in refusal(sound, tmp_path / "b", SCORE, clip="some/model")
