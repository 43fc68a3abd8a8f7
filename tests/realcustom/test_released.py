"""The converter of the released RealCustom++ weights, on a file of their exact key set at tiny size."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import DPMSolverSinglestepScheduler, UNet2DConditionModel
from torch import Tensor

from realcustom import RealCustomPipeline
from realcustom.checkpoint import load_adapter, save_adapter
from realcustom.presets import released_sdxl
from realcustom.released import convert_released
from realcustom.settings import MaskResize, SiglipGelu
from tests.support import tiny

PROJECTOR = "encoder_hidden_states_vision_projection"
IMAGE_WIDTH = 64  # of tiny SigLIP and DINOv2 together


def released_unet() -> UNet2DConditionModel:
    """SDXL's blocks, 70 cross-attentions in all, at tiny widths."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * tiny.TEXT_WIDTH,
        attention_head_dim=(2, 4, 4),
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + tiny.TEXT_WIDTH,
    ).eval()


def released_state() -> dict[str, Tensor]:
    """The released names, written out here: 140 projections, 17 tensors of the projector."""
    blocks = {  # module path -> (attentions, transformer blocks in each, width)
        "down_blocks.1": (2, 2, 32),
        "down_blocks.2": (2, 10, 64),
        "mid_block": (1, 10, 64),
        "up_blocks.0": (3, 10, 64),
        "up_blocks.1": (3, 2, 32),
    }
    text, image = 2 * tiny.TEXT_WIDTH, IMAGE_WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        f"{path}.attentions.{i}.transformer_blocks.{j}.attn2.{name}.weight": (width, text)
        for path, (attentions, depth, width) in blocks.items()
        for i in range(attentions)
        for j in range(depth)
        for name in ("to_k_vision", "to_v_vision")
    }
    assert len(shapes) == 140
    own: dict[str, tuple[int, ...]] = {
        f"min_attention.{norm}.{kind}": (image,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")
    }
    own |= {f"min_attention.{name}.weight": (image, image) for name in ("to_q", "to_k", "to_v")}
    for index, (rows, columns) in {0: (4 * image, image), 2: (text, 4 * image), 4: (text, text)}.items():
        own |= {f"projector.{index}.weight": (rows, columns), f"projector.{index}.bias": (rows,)}
    own |= {f"projector.5.{kind}": (text,) for kind in ("weight", "bias")}
    own |= {"projector_base.weight": (text, image), "projector_base.bias": (text,)}
    assert len(own) == 17
    shapes |= {f"{PROJECTOR}.{name}": shape for name, shape in own.items()}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of an SDXL-shaped base with 70 cross-attentions, of a tiny SigLIP and DINOv2, and of the weights."""
    root = tmp_path_factory.mktemp("released")
    pipeline = tiny.tiny_sdxl_pipeline()
    pipeline.unet = released_unet()
    pipeline.save_pretrained(root / "base")
    torch.save(released_state(), root / "RealCustom_highres.pth")
    return {
        "base": str(root / "base"),
        "encoder": tiny.tiny_siglip_dino(root / "encoder"),
        "weights": str(root / "RealCustom_highres.pth"),
    }


def convert(parts: dict[str, str], weights: Path | str | None = None) -> Any:
    settings = tiny.tiny_pp_settings()  # the high resolution of tiny encoders
    return convert_released(weights or parts["weights"], parts["base"], parts["encoder"], settings)


def test_converted_weights_are_those_of_the_file(parts: dict[str, str], tmp_path: Path) -> None:
    """inv. 35: 140 + 17 tensors, name by name, through our checkpoint into a pipeline that draws with them."""
    adapter = convert(parts)
    assert len(adapter.tensors) == 157 and adapter.provenance == {"converted_from": "RealCustom_highres.pth"}
    save_adapter(tmp_path / "adapter.safetensors", adapter)
    loaded = load_adapter(tmp_path / "adapter.safetensors")
    for name, value in released_state().items():
        assert torch.equal(loaded.tensors[name], value), name
    pipeline = RealCustomPipeline.from_pretrained(parts["base"], tmp_path / "adapter.safetensors", parts["encoder"])
    assert pipeline.model is not None
    for name, value in released_state().items():
        assert torch.equal(pipeline.model.trained_parameters()[name], value), name


def test_the_settings_are_the_presets(parts: dict[str, str]) -> None:
    adapter = convert_released(parts["weights"], parts["base"], parts["encoder"])
    encoder = dataclasses.replace(released_sdxl().image_encoder, model=adapter.settings.image_encoder.model)
    assert adapter.settings == dataclasses.replace(released_sdxl(), image_encoder=encoder)
    assert encoder.siglip_gelu is SiglipGelu.EXACT and encoder.high_res == 768
    assert adapter.settings.mask.mask_reuse_after == 12
    assert adapter.image_encoder.count("@sha256-") == 2 and adapter.base.startswith("base@sha256-")


def test_an_adapter_converted_before_loads(parts: dict[str, str], tmp_path: Path) -> None:
    """Its settings name the released resize, diffusers' solver and no activation: they mean what they meant."""
    adapter = convert(parts)
    save_adapter(tmp_path / "new.safetensors", adapter)
    with safetensors.safe_open(tmp_path / "new.safetensors", "pt") as file:
        metadata = file.metadata()
    settings = json.loads(metadata["settings"])
    settings["mask"]["mask_resize"] = "release_compat"
    settings["sampler"] = {"scheduler": "dpmpp_single", "num_inference_steps": 25, "timestep_spacing": "trailing"}
    del settings["image_encoder"]["siglip_gelu"]
    old = tmp_path / "old.safetensors"
    safetensors.torch.save_file(dict(adapter.tensors), old, metadata | {"settings": json.dumps(settings)})
    loaded = load_adapter(old).settings
    assert loaded.mask.mask_resize is MaskResize.BILINEAR and loaded.image_encoder.siglip_gelu is SiglipGelu.MODEL
    pipeline = RealCustomPipeline.from_pretrained(parts["base"], old, parts["encoder"])
    assert type(pipeline.scheduler) is DPMSolverSinglestepScheduler
    save_adapter(old, dataclasses.replace(adapter, settings=loaded))
    assert load_adapter(old).settings.mask.mask_resize is MaskResize.BILINEAR


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(f"{PROJECTOR}.projector_base.bias"), f"missing: {PROJECTOR}.projector_base.bias$"),
        (lambda state: state.update({"ema": torch.ones(2)}), "unexpected: ema$"),
        (
            lambda state: state.update({f"{PROJECTOR}.projector.5.bias": torch.ones(7)}),
            r"of another shape: .*projector.5.bias \(7,\), here \(48,\)",
        ),
        (lambda state: [state.pop(name) for name in list(state) if "to_k_vision" in name], "and 66 more"),
    ],
)
def test_what_does_not_fit_is_named(parts: dict[str, str], tmp_path: Path, change: Any, message: str) -> None:
    state = released_state()
    change(state)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        convert(parts, tmp_path / "other.pth")


def test_nothing_in_the_file_is_run(parts: dict[str, str], tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    for name, content in {"pickle": pickle.dumps(Malicious(), protocol=2), "text": b"no weights", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="not a file of plain tensors"):
            convert(parts, tmp_path / name)
    torch.save({"state": Malicious()}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match="not a file of plain tensors"):
        convert(parts, tmp_path / "nested.pth")
    torch.save({"model": released_state()}, tmp_path / "deep.pth")
    with pytest.raises(ValueError, match="flat mapping"):
        convert(parts, tmp_path / "deep.pth")
    assert not (tmp_path / "touched").exists()
    with pytest.raises(FileNotFoundError, match="no file at"):
        convert(parts, tmp_path / "absent.pth")
