"""From image features to subject tokens of the text's width (RealCustom++, framework figure; released code).

Letters: B pictures, S patch tokens of a view, k shallow layers, n local views, S_raw = (1 + k + n) S, D width of the
features, C the text's width, H heads, d their width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from realcustom.errors import UsageError
from realcustom.settings import Projector

HEAD_WIDTH = 64  # d; features whose width is no multiple of it (tiny models) have one head
HIDDEN = 4  # the MLP's first hidden width, in widths of the features


class MinAttention(nn.Module):
    """Cross-attention from each query token to all tokens of another stream: no output projection, no residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // HEAD_WIDTH if dim % HEAD_WIDTH == 0 else 1
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)  # of the queries; of the keys and values
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Queries (B, S, D), keys and values of (B, N, D) -> (B, S, D)."""
        queries, context = self.norm1(queries), self.norm2(context)
        q, k, v = (
            tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, H, S or N, d)
            for tokens in (self.to_q(queries), self.to_k(context), self.to_v(context))
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class HighResProjector(nn.Module):
    """One token per patch of the global view, with detail of the local views added; the default released weights.

    Parameter names are the released ones. A time-aware fusion (drawn in a figure, ignored by the released code) would
    weigh the two terms of `fused` by the timestep's embedding.
    """

    def __init__(self, image_dim: int, text_dim: int, local_views: int) -> None:
        """`image_dim` D, `text_dim` C, `local_views` n."""
        super().__init__()
        self.local_views = local_views
        self.min_attention = MinAttention(image_dim)
        self.projector = _mlp(image_dim, text_dim)
        self.projector_base = nn.Linear(image_dim, text_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        """(B, S_raw, D) as `SiglipDinoEncoder.encode` orders them -> (B, S, C)."""
        deep, _, local = split_features(image_embeds.to(self.projector_base.weight.dtype), 0, self.local_views)
        return self.fused(deep, local)

    def fused(self, deep: Tensor, local: Tensor) -> Tensor:
        """The global view's tokens plus their attention to the local views: (B, S, C)."""
        tokens: Tensor = self.projector_base(deep) + self.projector(self.min_attention(deep, local))
        return tokens


class ShallowProjector(HighResProjector):
    """The same tokens and as many again, from the global view's attention to its shallow layers (structure).

    The released code makes the tokens with detail and then overwrites them with `projector_base` alone: `detail=False`
    does the same, and `min_attention` and `projector` have no effect. Parameter names are those of the released code.
    """

    def __init__(self, image_dim: int, text_dim: int, local_views: int, shallow_layers: int, detail: bool) -> None:
        """`shallow_layers` k."""
        super().__init__(image_dim, text_dim, local_views)
        self.shallow_layers, self.detail = shallow_layers, detail
        self.min_attention2 = MinAttention(image_dim)
        self.projector2 = _mlp(image_dim, text_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        """(B, S_raw, D) -> (B, 2S, C): content, then structure."""
        image_embeds = image_embeds.to(self.projector_base.weight.dtype)
        deep, shallow, local = split_features(image_embeds, self.shallow_layers, self.local_views)
        content = self.fused(deep, local) if self.detail else self.projector_base(deep)
        return torch.cat([content, self.projector2(self.min_attention2(deep, shallow))], 1)


def make_projector(
    kind: Projector, image_dim: int, text_dim: int, local_views: int, shallow_layers: int
) -> HighResProjector | None:
    """The projector that the settings name; None = the features are the tokens.

    Args:
        image_dim: D, width of the image encoder's features.
        text_dim: C, the UNet's cross_attention_dim.
        local_views: n, as `ImageEncoder.local_views`; four in the release.
        shallow_layers: k, hidden states before the deepest; three in the released shallow configuration.
    Raises:
        UsageError: the features lack the layers or views that the kind needs.
    """
    if kind is Projector.NONE:
        return None
    shallow = kind is not Projector.HIGHRES
    if local_views < 1 or shallow != (shallow_layers > 0):
        raise UsageError(
            f"projector {kind.value} takes {'one or more shallow layers' if shallow else 'no shallow layer'} and one or "
            f"more local views, the image features have {shallow_layers} and {local_views}"
        )
    if shallow:
        return ShallowProjector(image_dim, text_dim, local_views, shallow_layers, kind is Projector.SHALLOW_FIG)
    return HighResProjector(image_dim, text_dim, local_views)


def split_features(image_embeds: Tensor, shallow_layers: int, local_views: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, S_raw, D) -> deep (B, S, D), shallow (B, k*S, D), local (B, n*S, D).

    Raises UsageError if the tokens are not 1 + k + n square grids of patches.
    """
    parts = 1 + shallow_layers + local_views
    tokens, rest = divmod(image_embeds.shape[1], parts)
    if rest or tokens < 1 or math.isqrt(tokens) ** 2 != tokens:
        raise UsageError(
            f"{image_embeds.shape[1]} image tokens are not a global view, {shallow_layers} shallow layers and "
            f"{local_views} local views of one square grid: they were made by another encoder or another high_res"
        )
    deep, shallow, local = image_embeds.split([tokens, shallow_layers * tokens, local_views * tokens], 1)
    return deep, shallow, local


def _mlp(image_dim: int, text_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(image_dim, HIDDEN * image_dim),
        nn.GELU(),
        nn.Linear(HIDDEN * image_dim, text_dim),
        nn.GELU(),
        nn.Linear(text_dim, text_dim),
        nn.LayerNorm(text_dim),
    )
