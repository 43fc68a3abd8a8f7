"""What a step computes beside its UNet calls, for the rows of several samplers at once: influence masks, and token scores.

Letters: B rows of a sampler, U subjects, T text tokens, S image tokens, n selected ones, c h w latent.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

from realcustom.company import joined
from realcustom.maps import MapRecorder
from realcustom.mask import influence_mask
from realcustom.model import RealCustomModel
from realcustom.settings import MaskResize, MaskSettings


@dataclass(frozen=True, kw_only=True)
class Masking:
    """The masks of one sampler's rows, to be made from recorded maps: (B, U, H*, W*)."""

    recorder: MapRecorder
    influence_scope: Tensor  # (B, U)
    settings: MaskSettings
    grid: tuple[int, int]
    alone: bool = False  # see `Launch`

    def shape(self) -> Hashable:
        """Those of equal shape may be made together."""
        if self.alone:
            return id(self)
        return self.settings, self.grid, tuple(layer.shape[1:] for layer in self.recorder.maps)

    @staticmethod
    def done(works: Sequence[Masking]) -> list[Tensor]:
        """Each one's masks. Raises as `influence_mask`."""
        first = works[0]
        layers = zip(*(work.recorder.maps for work in works), strict=True)
        own = [work.recorder.self_maps for work in works]
        masks = influence_mask(
            [joined(parts) for parts in layers],
            joined([work.influence_scope for work in works]),
            first.settings,
            grid=first.grid,
            self_attention=joined([part for part in own if part is not None]) if own[0] is not None else None,
        )
        return list(masks.split([len(work.influence_scope) for work in works]))


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """The selection of one subject's tokens, to be made for a UNet call: see `RealCustomModel.score`."""

    model: RealCustomModel
    encoder_hidden_states: Tensor  # (B, T, D)
    latents: Tensor  # (B, c, h, w)
    image_embeds: Tensor  # (B, S, D)
    alphas_cumprod: Tensor  # a scalar
    influence_quantity: float
    words: Tensor  # (B, T)
    mask: Tensor | None  # (B, 1, H*, W*)
    mask_resize: MaskResize
    alone: bool = False  # see `Launch`

    def shape(self) -> Hashable:
        """Those of equal shape may be made together."""
        if self.alone:
            return id(self)
        tensors = self.encoder_hidden_states, self.latents, self.image_embeds, self.words, self.mask
        shapes = tuple(None if tensor is None else tensor.shape[1:] for tensor in tensors)
        return id(self.model), self.influence_quantity, self.mask_resize, shapes

    @staticmethod
    def done(works: Sequence[Scoring]) -> list[tuple[Tensor | None, Tensor | None]]:
        """Each one's indices and gates, (B, n)."""
        first, counts = works[0], [len(work.image_embeds) for work in works]
        masks = [work.mask for work in works if work.mask is not None]
        index, gate = first.model.score(
            joined([work.encoder_hidden_states for work in works]),
            joined([work.latents for work in works]),
            joined([work.image_embeds for work in works]),
            joined([work.alphas_cumprod.expand(count) for work, count in zip(works, counts, strict=True)]),
            first.influence_quantity,
            words=joined([work.words for work in works]),
            mask=joined(masks) if masks else None,
            mask_resize=first.mask_resize,
        )
        if index is None or gate is None:
            return [(None, None)] * len(works)
        return list(zip(index.split(counts), gate.split(counts), strict=True))
