"""The attention that queries pay to target words: which layers have maps, on which grids, and how they are recorded.

Letters: B rows, U subjects, T text tokens, M tokens of a row's words, N = h*w queries of a layer, H heads, d head width, L
layers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F

from realcustom.errors import UsageError
from realcustom.sdpa import full_precision, log_sum_exp
from realcustom.settings import MaskLayers


@dataclass(frozen=True, kw_only=True)
class WordTokens:
    """Where the target words of one text stand: their tokens alone, so that no map of the other tokens is made.

    Their keys do not change from step to step: each layer's are taken once and kept, so another text needs another object.
    """

    index: Tensor  # (B, M) positions of tokens; rows with fewer are filled up with others, which have no weight
    weight: Tensor  # (B, M, U) fp32: 1 where a token belongs to the subject's word
    _keys: dict[Attention, Tensor] = field(init=False, default_factory=dict)  # by layer, see `keys`

    @classmethod
    def of(cls, words: Tensor) -> WordTokens:
        """Of token masks (B, U, T), one per subject."""
        marked = words.amax(1)  # (B, T)
        most = max(1, int((marked > 0).sum(1).max()))
        index = marked.argsort(dim=1, descending=True, stable=True)[:, :most]
        weight = words.float().gather(2, index[:, None].expand(-1, words.shape[1], -1))  # (B, U, M)
        return cls(index=index, weight=weight.mT.contiguous())

    @classmethod
    def joined(cls, parts: Sequence[WordTokens]) -> WordTokens:
        """Rows one below the other, filled up to as many tokens and subjects as any has."""
        most, subjects = (max(part.weight.shape[dim] for part in parts) for dim in (1, 2))
        return cls(
            index=torch.cat([F.pad(part.index, (0, most - part.index.shape[1])) for part in parts]),
            weight=torch.cat(
                [F.pad(part.weight, (0, subjects - part.subjects, 0, most - part.index.shape[1])) for part in parts]
            ),
        )

    @property
    def subjects(self) -> int:
        """U."""
        return int(self.weight.shape[2])

    def keys(self, attn: Attention, key: Tensor) -> Tensor:
        """The words' columns of a layer's keys (B, H, T, d), over sqrt(d): (B*H, d, M) fp32."""
        if attn not in self._keys:
            heads, width = key.shape[1], key.shape[3]
            columns = key.gather(2, self.index[:, None, :, None].expand(-1, heads, -1, width))  # (B, H, M, d)
            self._keys[attn] = (columns.float() * width**-0.5).flatten(0, 1).mT
        return self._keys[attn]


@dataclass(kw_only=True)
class MapRecorder:
    """Collects, layer by layer, the attention that each query pays to the target words; a new one for every forward."""

    words: WordTokens  # of the rows that are recorded
    rows: slice = field(default_factory=lambda: slice(None))  # the UNet call's rows that are recorded
    layers: frozenset[Attention] | None = None  # the cross-attentions whose maps count; None = all
    self_grid: tuple[int, int] | None = None  # the grid whose self-attention is recorded; None = of no layer
    self_maps: Tensor | None = None  # (B, N, N), rows = queries: the self-attentions' sum, heads averaged
    _logs: list[tuple[tuple[int, int], Tensor]] = field(init=False, default_factory=list)  # grid, (B*H, N, M), by layer

    def takes(self, attn: Attention, queries: int, *, is_self: bool) -> bool:
        """Whether the map of a layer with this many queries counts."""
        if is_self:
            return self.self_grid is not None and queries == self.self_grid[0] * self.self_grid[1]
        return self.layers is None or attn in self.layers

    @functools.cached_property
    def maps(self) -> list[Tensor]:
        """(B, U, h, w) per layer, fp32, heads averaged; asked for after the forward.

        Layers of one size are finished together: in a layer, small operations would wait for memory that the UNet uses.
        """
        by_grid: dict[tuple[int, int], list[int]] = {}
        for number, (grid, _) in enumerate(self._logs):
            by_grid.setdefault(grid, []).append(number)
        found: dict[int, Tensor] = {}
        for grid, numbers in by_grid.items():
            logs = torch.stack([self._logs[number][1] for number in numbers])  # (L, B*H, N, M)
            words = logs.exp_().unflatten(1, (len(self.words.weight), -1)).mean(2) @ self.words.weight  # (L, B, N, U)
            found |= zip(numbers, words.mT.unflatten(3, grid), strict=True)
        return [found[number] for number in range(len(self._logs))]

    def forget(self) -> None:
        """Take back what was recorded, for another forward."""
        self._logs.clear()
        vars(self).pop("maps", None)
        self.self_maps = None

    def record(
        self, attn: Attention, query: Tensor, key: Tensor, grid: tuple[int, int], normaliser: Tensor | None = None
    ) -> None:
        """Add a cross-attention layer: of its softmax over all text tokens, in fp32, only the words' columns are made.

        Args:
            attn: the layer.
            query, key: of the call's rows, (., H, N, d) and (., H, T, d).
            grid: (h, w).
            normaliser: the softmax's log-sum-exp (., H, N); None = computed here.
        """
        query, key = query[self.rows], key[self.rows]
        normaliser = log_sum_exp(query, key) if normaliser is None else normaliser[self.rows]
        with full_precision(query.device.type):
            logs = torch.baddbmm(  # q k / sqrt(d) - lse, of rows and heads together
                normaliser.float().flatten(0, 1)[..., None],
                query.float().flatten(0, 1),
                self.words.keys(attn, key),
                beta=-1,
            )  # (B*H, N, M)
        self._logs.append((grid, logs))

    def record_self(self, query: Tensor, key: Tensor) -> None:
        """Add a self-attention layer, head by head: all heads of (N, N) at once would be the largest tensor of a call."""
        query, key, total = query[self.rows], key[self.rows], self.self_maps
        with full_precision(query.device.type):
            for head in range(query.shape[1]):
                scores = (query[:, head].float() * query.shape[3] ** -0.5) @ key[:, head].float().mT  # (B, N, N)
                weights = torch.softmax(scores, -1) / query.shape[1]
                total = weights if total is None else total.add_(weights)
        self.self_maps = total


def level_grids(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """(h, w) of each level of a UNet, the finest first; a stride-2 convolution leaves ceil(side / 2)."""
    grids = []
    for _ in range(levels):
        grids.append((height, width))
        height, width = (height + 1) // 2, (width + 1) // 2
    return grids


def by_queries(grids: Sequence[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """The levels' grids by their number of cells."""
    return {height * width: (height, width) for height, width in grids}


def text_cross_attentions(unet: UNet2DConditionModel) -> dict[str, Attention]:
    """The UNet's text cross-attention layers by module path, in construction order (down, up, mid in `named_modules`)."""
    layers = {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
    }
    if not layers:
        raise UsageError("this UNet has no text cross-attention: RealCustom needs one with cross_attention_dim")
    return layers


def level_of(path: str, levels: int) -> int:
    """The level (0 = finest) of a layer by its module path in a UNet with this many levels."""
    block, _, rest = path.partition(".")
    if block == "mid_block":
        return levels - 1
    number = int(rest.partition(".")[0])
    return number if block == "down_blocks" else levels - 1 - number


def mask_grid(unet: UNet2DConditionModel, grids: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(H*, W*): the largest grid that has text cross-attention."""
    return grids[min(level_of(path, len(grids)) for path in text_cross_attentions(unet))]


def mask_layers(
    unet: UNet2DConditionModel, which: MaskLayers | tuple[int, ...], grids: Sequence[tuple[int, int]]
) -> frozenset[Attention] | None:
    """The cross-attentions whose maps count; None = all. Raises UsageError if no layer counts."""
    if which is MaskLayers.ALL:
        return None
    layers = text_cross_attentions(unet)
    sides = {path: max(grids[level_of(path, len(grids))]) for path in layers}
    if isinstance(which, MaskLayers):
        chosen = frozenset(attn for path, attn in layers.items() if path.startswith("up_blocks."))
    else:
        chosen = frozenset(attn for path, attn in layers.items() if sides[path] in which)
    if not chosen:
        there = (
            ""
            if isinstance(which, MaskLayers)
            else f"; longer sides of the grids there are: {sorted(set(sides.values()))}"
        )
        wanted = which.value if isinstance(which, MaskLayers) else list(which)
        raise UsageError(
            f"mask.layers {wanted}: no text cross-attention of this UNet at this size is one of them{there}"
        )
    return chosen
