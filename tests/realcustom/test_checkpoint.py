"""The adapter checkpoint: the same outputs after a round trip, strict on reading, the same bytes on writing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

from realcustom import RealCustomPipeline, Subject, config
from realcustom.checkpoint import FORMAT, Adapter, adapter_sha256, load_adapter, read_header, save_adapter
from realcustom.config import SettingError
from realcustom.settings import MethodSettings
from tests.support import tiny


def draw(pipeline: RealCustomPipeline, image: Image.Image) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    out = pipeline("a dog on grass", [Subject(image=image, word="dog")], generator=generator, output_type="latent")
    assert isinstance(out.images, torch.Tensor)
    return out.images


def test_saved_and_loaded_it_draws_the_same(
    tiny_models: tiny.TinyModels,
    pipeline: RealCustomPipeline,
    picture: Callable[[int], Image.Image],
    tmp_path: Path,
) -> None:
    """inv. 35: save -> load -> bit-identical outputs."""
    adapter = load_adapter(tiny_models.adapter)
    assert pipeline.model is not None
    copy = dataclasses.replace(adapter, tensors=pipeline.model.adapter_state_dict())
    digest = save_adapter(tmp_path / "copy.safetensors", copy)
    assert digest == adapter_sha256(tmp_path / "copy.safetensors") == adapter_sha256(tiny_models.adapter)
    again = RealCustomPipeline.from_pretrained(
        tiny_models.base, tmp_path / "copy.safetensors", image_encoder=tiny_models.image_encoder
    )
    named = dataclasses.replace(tiny.tiny_settings().image_encoder, model=adapter.image_encoder)
    assert again.settings == dataclasses.replace(tiny.tiny_settings(), image_encoder=named)  # by identity, not by path
    assert torch.equal(draw(again, picture(0)), draw(pipeline, picture(0)))


def test_names_are_module_paths(tiny_models: tiny.TinyModels) -> None:
    """inv. 35: the released names."""
    header = read_header(tiny_models.adapter)
    assert header.shapes["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k_vision.weight"] == (32, 32)
    assert all(
        name.startswith("adaptive_scoring.")
        or name.endswith((".attn2.to_k_vision.weight", ".attn2.to_v_vision.weight"))
        for name in header.shapes
    )
    assert header.base.startswith("base@sha256-") and header.image_encoder.startswith("image_encoder@sha256-")


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_reading_is_strict(tiny_models: tiny.TinyModels, tmp_path: Path, change: str) -> None:
    """inv. 35: what does not fit is named."""
    adapter = load_adapter(tiny_models.adapter)
    tensors, name = dict(adapter.tensors), sorted(adapter.tensors)[0]
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["extra.weight"] = torch.zeros(1)
        name = "extra.weight"
    else:
        tensors[name] = torch.zeros(3, 5)
    path = tmp_path / "wrong.safetensors"
    save_adapter(path, dataclasses.replace(adapter, tensors=tensors))
    with pytest.raises(ValueError, match=f"(?s){'of another shape' if change == 'shape' else change}.*{name}"):
        RealCustomPipeline.from_pretrained(tiny_models.base, path, image_encoder=tiny_models.image_encoder)


@pytest.mark.parametrize("match", ["ids", "offsets"])
def test_a_checkpoint_with_a_value_that_was_renamed_is_read(
    tiny_models: tiny.TinyModels, tmp_path: Path, match: str
) -> None:
    """In a file of settings the old value is refused with the new one's name."""
    path = tmp_path / "before.safetensors"
    data = Path(tiny_models.adapter).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b"whole_words", match.encode())
    assert match.encode() in header
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert load_adapter(path).settings == load_adapter(tiny_models.adapter).settings
    with pytest.raises(SettingError, match=f"^words.match: '{match}' is called 'whole_words' now$"):
        config.override(MethodSettings(), {"words": {"match": match}})


def test_what_is_not_an_adapter_is_said(tmp_path: Path, tiny_models: tiny.TinyModels) -> None:
    text = tmp_path / "text.safetensors"
    text.write_bytes(b"hello, this is no checkpoint at all")
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, foreign)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(Path(tiny_models.adapter).read_bytes()[:-100])
    for path, message in ((text, "not a complete"), (foreign, FORMAT), (torn, "not a complete")):
        with pytest.raises(ValueError, match=message):
            load_adapter(path)
    with pytest.raises(FileNotFoundError):
        load_adapter(tmp_path / "absent.safetensors")


def test_another_base_is_warned_of(tiny_models: tiny.TinyModels, tmp_path: Path) -> None:
    other = tiny.tiny_base(tmp_path / "other", seed=9)
    with pytest.warns(UserWarning, match="was trained with the base model"):
        RealCustomPipeline.from_pretrained(other, tiny_models.adapter, image_encoder=tiny_models.image_encoder)


def test_a_local_encoder_must_be_named(tiny_models: tiny.TinyModels) -> None:
    with pytest.raises(ValueError, match="image_encoder="):
        RealCustomPipeline.from_pretrained(tiny_models.base, tiny_models.adapter)


def test_a_write_leaves_nothing_half_done(tmp_path: Path, tiny_models: tiny.TinyModels) -> None:
    adapter = load_adapter(tiny_models.adapter)
    path = tmp_path / "adapter.safetensors"
    before = save_adapter(path, adapter)
    broken = Adapter(
        tensors={"x": torch.zeros(2)},
        settings=adapter.settings,
        base="b",
        image_encoder="e",
        provenance={"bad": {1, 2}},
    )
    with pytest.raises(TypeError):
        save_adapter(path, broken)
    assert adapter_sha256(path) == before and [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("older", "now"),
    [
        ({"mode": "cascade", "guidance_rescale": 0.7}, {"mode": "cascade", "guidance_rescale": 0.0}),
        ({"mode": "direct_rescale", "guidance_rescale": 0.7}, {"mode": "direct", "guidance_rescale": 0.7}),
        ({"mode": "cascade_rescale_masked", "guidance_rescale": 0.7}, {"mode": "cascade", "rescale_by_mask": True}),
        ({"mode": "direct", "guidance_rescale": 0.7, "rescale_by_mask": False}, {"guidance_rescale": 0.7}),
    ],
)
def test_guidance_of_older_adapters_means_what_it_meant(older: dict[str, Any], now: dict[str, Any]) -> None:
    """A mode said whether guidance_rescale acts; in cascade and direct it did nothing."""
    read = config.with_new_names(MethodSettings, {"guidance": older})
    built = config.to_dict(config.build(MethodSettings, read).guidance)
    assert {name: built[name] for name in now} == now
