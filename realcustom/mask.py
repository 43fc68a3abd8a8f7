"""From the word's attention maps to the influence mask: where the subject may act (paper, section 3.3, eq. 11).

Letters: B rows, U subjects, h x w a layer's grid, H* x W* the mask's grid (the largest one), N = H* W*.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from realcustom.errors import UsageError
from realcustom.settings import MaskNorm, MaskSelect, MaskSettings, Overlap
from realcustom.warning import warn


def influence_mask(
    maps: Sequence[Tensor],
    influence_scope: Tensor | float,
    settings: MaskSettings,
    *,
    grid: tuple[int, int] | None = None,
    self_attention: Tensor | None = None,
) -> Tensor:
    """Aggregate maps over layers, normalise, keep the largest cells.

    Args:
        maps: per layer (B, U, h, w): the attention paid to each subject's word, heads averaged, summed over its tokens.
        influence_scope: gamma_scope in [0, 1], one number or (B, U). 0 gives an all-zero mask, 1 keeps every cell.
        settings: norm, selection, binary, overlap.
        grid: (H*, W*); None = the largest of the maps.
        self_attention: (B, N, N), rows = queries: `settings.self_refine` spreads the map along it.
    Returns:
        (B, U, H*, W*) fp32 in [0, 1]; with norm `max` and no eps the largest kept value is exactly 1.
    Raises:
        UsageError: no maps, a value that is not finite, or no self-attention where the settings ask for it.
    Warns where a mask is zero everywhere although its scope is not.
    """
    if not maps:
        raise UsageError("no attention maps were recorded, so there is nothing to make a mask of")
    combined = _aggregate(maps, grid or max((_size(layer) for layer in maps), key=lambda s: s[0] * s[1]), settings)
    if settings.self_refine:
        if self_attention is None:
            raise UsageError(
                "mask.self_refine needs self-attention maps on the mask's grid, and this UNet has none there"
            )
        combined = refine(combined, self_attention)
    if not torch.isfinite(combined).all():
        raise UsageError("an attention map holds a value that is not finite; the model's numerics have broken down")
    scope = torch.as_tensor(influence_scope, dtype=torch.float64).expand(combined.shape[:2])
    mask = _select(combined, scope, settings)
    _warn_if_empty(mask, combined, scope, settings)
    return _exclusive(mask) if settings.overlap is Overlap.ARGMAX and mask.shape[1] > 1 else mask


def refine(combined: Tensor, self_attention: Tensor) -> Tensor:
    """A M (RealCustom++, figure): each cell takes the mean of the map over the cells that it attends to.

    Args:
        combined: (B, U, H*, W*).
        self_attention: A, (B, N, N) fp32; its rows are normalised to the sum 1.
    """
    rows = self_attention / self_attention.sum(-1, keepdim=True)
    with torch.autocast(rows.device.type, enabled=False):
        return torch.einsum("bij,buj->bui", rows, combined.flatten(2)).view_as(combined)


def _size(layer: Tensor) -> tuple[int, int]:
    return int(layer.shape[-2]), int(layer.shape[-1])


def _aggregate(maps: Sequence[Tensor], grid: tuple[int, int], settings: MaskSettings) -> Tensor:
    """The layers' mean (B, U, H*, W*) in fp32: bilinear, align_corners=False, no antialias."""
    if settings.norm is MaskNorm.MINMAX_PER_LAYER:
        layers = [_minmax(_to_grid(layer.float(), grid), settings.eps) for layer in maps]
        return torch.stack(layers).mean(0)
    by_size: dict[tuple[int, int], Tensor] = {}
    for layer in maps:  # one resize per size: resizing is linear
        size = _size(layer)
        by_size[size] = by_size[size] + layer.float() if size in by_size else layer.float()
    return torch.stack([_to_grid(layer, grid) for layer in by_size.values()]).sum(0) / len(maps)


def _to_grid(layer: Tensor, grid: tuple[int, int]) -> Tensor:
    return layer if _size(layer) == grid else F.interpolate(layer, size=grid, mode="bilinear", align_corners=False)


def _select(combined: Tensor, scope: Tensor, settings: MaskSettings) -> Tensor:
    """The normalised values of the kept cells, zero elsewhere; none are kept for scope 0 or for a map of zeros."""
    values = _normalise(combined, settings)
    if settings.select is MaskSelect.THRESHOLD:
        level = (1 - scope).to(values.device, torch.float32)[..., None, None]
        kept = (values >= level) & (scope > 0).to(values.device)[..., None, None]
        return torch.where((values > level) & kept, 1.0, values * kept) if settings.binary else values * kept
    kept = _largest(combined, scope)
    # an all-zero map keeps no cell, although top-k selects some
    return (kept & (values.amax((-2, -1), keepdim=True) > 0)).float() if settings.binary else values * kept


def _normalise(combined: Tensor, settings: MaskSettings) -> Tensor:
    if settings.norm is MaskNorm.NONE:
        return combined
    if settings.norm is MaskNorm.MAX:
        return _ratio(combined, combined.amax((-2, -1), keepdim=True), settings.eps)
    return _minmax(combined, settings.eps)


def _minmax(values: Tensor, eps: float) -> Tensor:
    """Each map from 0 to 1; a constant one is 0."""
    least, largest = values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)
    return _ratio(values - least, largest - least, eps)


def _ratio(values: Tensor, divisor: Tensor, eps: float) -> Tensor:
    """values / (divisor + eps), 0 where the divisor is 0."""
    return torch.where(divisor > 0, values / (divisor + eps).clamp(min=torch.finfo(torch.float32).tiny), 0.0)


def _largest(values: Tensor, scope: Tensor) -> Tensor:
    """The max(1, int(scope * N)) largest cells of each map, (B, U, H*, W*) bool; equal ones by lower index; scope 0: none."""
    flat = values.flatten(2)  # (B, U, N)
    cells = flat.shape[-1]
    count = (scope * cells).long().clamp(min=1, max=cells) * (scope > 0)  # (B, U)
    order = torch.sort(flat, dim=-1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(cells, device=order.device).expand_as(order))
    return (rank < count.to(rank.device)[..., None]).view_as(values)


def _exclusive(mask: Tensor) -> Tensor:
    """Where masks of subjects overlap, only the larger value is kept; of equal values the first subject's."""
    winner = mask.argmax(1, keepdim=True)
    subjects = torch.arange(mask.shape[1], device=mask.device)[None, :, None, None]
    return torch.where(subjects == winner, mask, 0.0)


def _warn_if_empty(mask: Tensor, combined: Tensor, scope: Tensor, settings: MaskSettings) -> None:
    """Warn where a mask is zero everywhere although a scope was given; absent subjects have none."""
    empty = (mask.amax((-2, -1)) == 0) & (scope > 0).to(mask.device)  # (B, U)
    if not bool(empty.any()):
        return
    if bool((combined.amax((-2, -1)) > combined.amin((-2, -1)))[empty].any()):
        said = f"no cell reaches the threshold 1 - influence_scope of select {settings.select.value}"
    else:
        said = "the target word's attention is zero everywhere, or the same everywhere"
    warn(f"{said}: the subject has no influence")
