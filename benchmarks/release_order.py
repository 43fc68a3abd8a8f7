"""RealCustom's released sampler as a baseline: its order of work, written from its description.

Three forwards a step, one after another, while the mask is updated: text alone, whose prediction is discarded and whose
maps make the mask; text and image; negative text with the mask. Every cross-attention of every forward takes the
softmax over all text tokens in fp32 and keeps it, all heads and all tokens, until the forward ends, as the release does
outside training. Details that the description leaves open are done in the cheapest way: the output is computed from the
same softmax, maps are views, the mask reads only the word's columns and is resized once for each grid, and
self-attention is stock diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F

from realcustom.maps import text_cross_attentions

Text = tuple[Tensor, dict[str, Tensor] | None]  # (B, T, D), and SDXL's further conditions


@dataclass(kw_only=True)
class Collected:
    """The arguments of a forward for its cross-attention layers, and the maps that they record."""

    grids: Mapping[int, tuple[int, int]]  # number of queries -> (h, w)
    tokens: Tensor | None = None  # (B, S, Di)
    mask: Tensor | None = None  # (B, 1, H*, W*)
    maps: list[Tensor] = field(default_factory=list)  # per layer (B, H, T, h, w), fp32


class MaterialisingProcessor:
    """Attention as a matrix product, a softmax in fp32 that is kept, and another product; then the masked visual term."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # (B, N, C)
        encoder_hidden_states: Tensor,  # (B, T, D)
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        collected: Collected | None = None,
    ) -> Tensor:
        assert attention_mask is None and collected is not None
        query = _heads(attn, attn.to_q(hidden_states))  # (B, H, N, d)
        key, value = _heads(attn, attn.to_k(encoder_hidden_states)), _heads(attn, attn.to_v(encoder_hidden_states))
        weights = torch.softmax((query @ key.mT).float() * attn.scale, -1)  # (B, H, N, T)
        grid = collected.grids[query.shape[2]]
        collected.maps.append(weights.mT.unflatten(3, grid))
        output = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)  # (B, N, H*d)
        if collected.tokens is not None:
            key, value = (_heads(attn, layer(collected.tokens)) for layer in (attn.to_k_vision, attn.to_v_vision))
            visual = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
            assert collected.mask is not None
            mask = F.interpolate(collected.mask, size=grid, mode="bilinear", align_corners=False)
            output = output + visual * mask.flatten(2).mT.to(visual.dtype)
        projected: Tensor = attn.to_out[1](attn.to_out[0](output))
        return projected


def _heads(attn: Attention, tokens: Tensor) -> Tensor:
    """(B, n, H*d) -> (B, H, n, d)."""
    heads: Tensor = tokens.unflatten(2, (attn.heads, -1))  # (B, n, H, d)
    return heads.transpose(1, 2)


class StockIgnoringProcessor:
    """diffusers' own, in self-attention, which also gets the cross-attention's argument."""

    def __init__(self) -> None:
        self._stock = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        collected: Collected | None = None,
    ) -> Tensor:
        output: Tensor = self._stock(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return output


def install(unet: UNet2DConditionModel, vision: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Set the processors, and give each cross-attention its visual key and value weights, by module path."""
    layers = text_cross_attentions(unet)
    for path, attn in layers.items():
        for name, weight in zip(("to_k_vision", "to_v_vision"), vision[path], strict=True):
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight.device, weight.dtype)
            with torch.no_grad():
                linear.weight.copy_(weight)
            attn.add_module(name, linear)
    unet.set_attn_processor(
        {
            name: MaterialisingProcessor() if name.removesuffix(".processor") in layers else StockIgnoringProcessor()
            for name in unet.attn_processors
        }
    )


@dataclass(kw_only=True)
class ReleaseOrder:
    """The loop. `text` and `negative` are at the batch's size."""

    unet: UNet2DConditionModel
    scheduler: Any
    text: Text
    negative: Text
    word: Tensor  # (T,): 1 at the target word's tokens
    tokens: Tensor  # (B, S, Di)
    scope: float
    guidance_scale: float

    @torch.no_grad()
    def __call__(
        self, latents: Tensor, steps: int, mask_reused_step: int, replay: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Denoise; the last latents and each step's mask.

        `replay`: masks that are used instead of its own, at the same cost.
        """
        sides = [torch.Size(latents.shape[2:])]
        for _ in self.unet.config.block_out_channels:
            sides.append(torch.Size((side + 1) // 2 for side in sides[-1]))
        grids = {grid.numel(): (grid[0], grid[1]) for grid in sides}
        nothing = torch.zeros_like(self.tokens)  # a black picture's tokens in the release; none act in this comparison
        self.scheduler.set_timesteps(steps, device=latents.device)
        masks: list[Tensor] = []
        for index, timestep in enumerate(self.scheduler.timesteps):
            if index < mask_reused_step:
                collected = Collected(grids=grids)
                self._forward(latents, timestep, self.text, collected)  # its prediction is not used
                masks.append(self._mask(collected.maps))
            mask = masks[-1] if replay is None else replay[index]
            with_image = Collected(grids=grids, tokens=self.tokens, mask=mask)
            prediction = self._forward(latents, timestep, self.text, with_image)
            without = Collected(grids=grids, tokens=nothing, mask=mask)
            negative = self._forward(latents, timestep, self.negative, without)
            guided = negative + self.guidance_scale * (prediction - negative)
            latents = self.scheduler.step(guided, timestep, latents, return_dict=False)[0]
        return latents, masks

    def _forward(self, latents: Tensor, timestep: Tensor, text: Text, collected: Collected) -> Tensor:
        prediction: Tensor = self.unet(
            latents,
            timestep,
            text[0],
            cross_attention_kwargs={"collected": collected},
            added_cond_kwargs=text[1],
            return_dict=False,
        )[0]
        return prediction

    def _mask(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, 1, H*, W*): the word's maps averaged over heads and layers, the largest kept, divided by the maximum."""
        columns = self.word.nonzero().flatten()
        by_grid: dict[tuple[int, ...], Tensor] = {}
        for layer in maps:
            word = layer[:, :, columns].sum(2).mean(1, keepdim=True)  # (B, 1, h, w)
            grid = tuple(word.shape[2:])
            by_grid[grid] = by_grid[grid] + word if grid in by_grid else word
        largest = max(by_grid, key=lambda grid: grid[0] * grid[1])
        resized = [F.interpolate(word, size=largest, mode="bilinear") for word in by_grid.values()]
        mean = (torch.stack(resized).sum(0) / len(maps)).flatten(1)  # (B, N)
        values, cells = mean.topk(max(1, int(self.scope * mean.shape[1])))
        kept = torch.zeros_like(mean).scatter(1, cells, values / values.amax(1, keepdim=True))
        return kept.reshape(-1, 1, *largest)
