"""A tiny Stable Diffusion checkpoint in one file, under the names that the original repository gives its weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# of `tiny.tiny_unet`: a layer in each of two blocks, attention in the finer one
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0": "output_blocks.1.1",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def write_single_file(path: Path, pipeline: Any) -> str:
    """Write the UNet, the VAE and the text encoder of `tiny.tiny_pipeline(kl=True)`; returns the path."""
    weights = {f"model.diffusion_model.{_unet_name(name)}": value for name, value in pipeline.unet.state_dict().items()}
    weights |= {f"first_stage_model.{name}": value for name, value in _vae(pipeline.vae.state_dict()).items()}
    text = pipeline.text_encoder.state_dict()
    prefix = "cond_stage_model.transformer."
    weights |= {
        f"{prefix}{'' if name.startswith('text_model.') else 'text_model.'}{name}": v for name, v in text.items()
    }
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return str(path)


def _unet_name(name: str) -> str:
    block = max((block for block in _UNET if name.startswith(f"{block}.")), key=len)
    rest = name[len(block) + 1 :]
    layer, _, kind = rest.partition(".")
    return f"{_UNET[block]}.{_RESNET[layer]}.{kind}" if "resnets" in block else f"{_UNET[block]}.{rest}"


def _vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        new = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        new = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda found: f"up.{1 - int(found[1])}.block.{found[2]}", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{1 - int(found[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", new)
        new = new.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
        for ours, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            new = new.replace(f"mid_block.attentions.0.{ours}", f"mid.attn_1.{theirs}")
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        projection = "attn_1" in new and "norm" not in new and value.ndim == 2
        renamed[new] = value[:, :, None, None] if projection else value  # the original's are 1 x 1 convolutions
    return renamed
