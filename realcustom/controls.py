"""ControlNets and T2I-adapters: what they add to the UNet's inputs in each of its calls.

A ControlNet sees the latents and the text, not the subjects: its residuals are computed once per step and text, and the
branches with and without subjects share them. A T2I-adapter sees its picture alone and runs once per call.

Letters: B rows, H W pixels, C_l h_l w_l a level of the UNet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor

from realcustom.company import joined
from realcustom.guidance import Branch

Text = Callable[[Sequence[Branch]], dict[str, Any]]  # the UNet's text inputs for the rows of these branches


@dataclass(frozen=True, kw_only=True)
class ControlNet:
    """A ControlNet with its picture."""

    model: ControlNetModel
    pixels: Tensor  # (B, 3, H, W) in [0, 1]
    scale: float
    start: float  # shares of the steps that are run, between which it acts
    end: float

    def acts(self, index: int, steps: int) -> bool:
        """Whether it acts in the step of this index, as diffusers counts."""
        return self.scale != 0 and index / steps >= self.start and (index + 1) / steps <= self.end


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What guides a call besides text and subjects; without arguments nothing."""

    nets: tuple[ControlNet, ...] = ()
    guess_mode: bool = False  # the ControlNets guide the rows with the prompt alone
    features: tuple[Tensor, ...] = ()  # of T2I-adapters, summed: (B, C_l, h_l, w_l) for each level

    def at(self, index: int, steps: int) -> StepControls:
        """Those of a step."""
        nets = tuple(net for net in self.nets if net.acts(index, steps))
        return StepControls(nets=nets, guess_mode=self.guess_mode, features=self.features)


@dataclass(frozen=True, kw_only=True)
class StepControls:
    """The controls of one step; holds the residuals of the texts that it has had."""

    nets: tuple[ControlNet, ...]
    guess_mode: bool
    features: tuple[Tensor, ...]
    _residuals: dict[Branch, list[Tensor]] = field(default_factory=dict)  # (B, C_l, h_l, w_l), the middle block's last

    def unet_inputs(self, branches: Sequence[Branch], scaled: Tensor, timestep: Tensor, text: Text) -> dict[str, Any]:
        """The UNet's further arguments for the rows of these branches.

        Args:
            scaled: (B, c, h, w), the latents as the scheduler scales them.
        """
        inputs: dict[str, Any] = {}
        if self.features:  # a new list for each call: the UNet empties it
            inputs["down_intrablock_additional_residuals"] = [_rows(level, branches) for level in self.features]
        texts = [_text_of(branch) for branch in branches]
        self._run([one for one in dict.fromkeys(texts) if one not in self._residuals], scaled, timestep, text)
        if all(one in self._residuals for one in texts):
            levels = zip(*(self._residuals[one] for one in texts), strict=True)
            *down, middle = [torch.cat(parts) for parts in levels]
            inputs |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return inputs

    def _run(self, texts: Sequence[Branch], scaled: Tensor, timestep: Tensor, text: Text) -> None:
        """Compute the residuals for these texts, if any ControlNet acts on them."""
        guided = [one for one in texts if not (self.guess_mode and one is Branch.UNCONDITIONAL)]
        if not self.nets or not texts:
            return
        if guided:
            total: list[Tensor] = []
            for net in self.nets:
                inputs = text(guided)
                down, middle = net.model(
                    _rows(scaled, guided),
                    timestep,
                    inputs["encoder_hidden_states"],
                    added_cond_kwargs=inputs["added_conditions"],
                    controlnet_cond=_rows(net.pixels, guided),
                    conditioning_scale=net.scale,
                    guess_mode=self.guess_mode,
                    return_dict=False,
                )
                found = [*down, middle]
                total = [one + other for one, other in zip(total, found, strict=True)] if total else found
            parts = [level.chunk(len(guided)) for level in total]
            self._residuals.update({one: [level[at] for level in parts] for at, one in enumerate(guided)})
        own = self._residuals.get(Branch.GUIDANCE)
        if own is not None and len(guided) < len(texts):
            self._residuals[Branch.UNCONDITIONAL] = [torch.zeros_like(level) for level in own]


def _text_of(branch: Branch) -> Branch:
    """The branch that stands for all with the same text."""
    return Branch.UNCONDITIONAL if branch is Branch.UNCONDITIONAL else Branch.GUIDANCE


def _rows(tensor: Tensor, branches: Sequence[Any]) -> Tensor:
    return joined([tensor] * len(branches))
