"""From the word's attention maps to the influence mask: where the subject may act (paper, section 3.3, eq. 11).

Letters: B rows, U subjects, h x w a layer's grid, H* x W* the largest one (the mask's grid), N = H* W*.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from realcustom.settings import MaskNorm, MaskSettings, Overlap


def influence_mask(maps: Sequence[Tensor], influence_scope: Tensor | float, settings: MaskSettings) -> Tensor:
    """Aggregate maps over layers, keep the largest, divide by the maximum.

    Args:
        maps: per layer (B, U, h, w): the attention paid to each subject's word, heads averaged, summed over its tokens.
        influence_scope: gamma_scope in [0, 1], one number or (B, U). 0 gives an all-zero mask, 1 keeps every pixel.
        settings: normalisation, binary, overlap.
    Returns:
        (B, U, H*, W*) fp32 in [0, 1]; with norm `max` the largest kept value is exactly 1.
    Raises:
        ValueError: no maps, or a value that is not finite.
    """
    if not maps:
        raise ValueError("no attention maps were recorded, so there is nothing to make a mask of")
    combined = _aggregate(maps)
    scope = torch.as_tensor(influence_scope, dtype=torch.float64).expand(combined.shape[:2])
    mask = _normalise(_keep_largest(combined, scope), settings)
    if settings.overlap is Overlap.ARGMAX and mask.shape[1] > 1:
        winner = mask.argmax(1, keepdim=True)
        mask = torch.where(torch.arange(mask.shape[1], device=mask.device)[None, :, None, None] == winner, mask, 0.0)
    return mask


def _aggregate(maps: Sequence[Tensor]) -> Tensor:
    """The layers' mean on the largest grid, fp32: bilinear, align_corners=False, no antialias."""
    grid = max((tuple(layer.shape[-2:]) for layer in maps), key=lambda size: size[0] * size[1])
    total = torch.zeros(*maps[0].shape[:2], *grid, device=maps[0].device)
    by_grid: dict[tuple[int, int], Tensor] = {}
    for layer in maps:  # one resize per grid: resizing is linear
        size = (int(layer.shape[-2]), int(layer.shape[-1]))
        by_grid[size] = by_grid[size] + layer.float() if size in by_grid else layer.float()
    for size, layer in by_grid.items():
        total = total + (
            layer if size == grid else F.interpolate(layer, size=grid, mode="bilinear", align_corners=False)
        )
    mean = total / len(maps)
    if not torch.isfinite(mean).all():
        raise ValueError("an attention map holds a value that is not finite; the model's numerics have broken down")
    return mean


def _keep_largest(values: Tensor, scope: Tensor) -> Tensor:
    """The max(1, int(scope * N)) largest cells of each map, the others zero; equal ones by lower index; scope 0: none."""
    flat = values.flatten(2)  # (B, U, N)
    cells = flat.shape[-1]
    count = (scope * cells).long().clamp(min=1, max=cells) * (scope > 0)  # (B, U)
    order = torch.sort(flat, dim=-1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(cells, device=order.device).expand_as(order))
    return (flat * (rank < count.to(rank.device)[..., None])).unflatten(-1, values.shape[-2:])


def _normalise(kept: Tensor, settings: MaskSettings) -> Tensor:
    if settings.binary:
        return (kept > 0).float()
    if settings.norm is MaskNorm.NONE:
        return kept
    largest = kept.amax((-2, -1), keepdim=True)
    return torch.where(largest > 0, kept / largest.clamp(min=torch.finfo(torch.float32).tiny), 0.0)


def warn_if_empty(mask: Tensor, scope: Tensor) -> None:
    """Warn where a mask is zero everywhere although a scope was given: the word's maps hold nothing."""
    empty = (mask.amax((-2, -1)) == 0) & (scope.to(mask.device) > 0)
    if bool(empty.any()):
        warnings.warn("the target word's attention is zero everywhere: the subject has no influence", stacklevel=2)
