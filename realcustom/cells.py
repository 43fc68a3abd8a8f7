"""A training record's cells, encoded and decoded in one place: cached tensors and masks. Their types are in record.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco

from realcustom.dtype import Dtype
from realcustom.errors import UsageError

if TYPE_CHECKING:
    import torch


def encode_tensor(tensor: torch.Tensor, dtype: Dtype) -> dict[str, Any]:
    """A tensor on the CPU as a cell of type `record.TENSOR`, its values in `dtype`."""
    import torch

    values = tensor.to(dtype.to_torch()).contiguous()
    data = values.reshape(-1).view(torch.uint8)  # numpy has no bfloat16
    return {"data": data.numpy().tobytes(), "shape": list(values.shape), "dtype": dtype.value}


def decode_tensor(cell: Mapping[str, Any]) -> torch.Tensor:
    """The tensor of a cell, in the dtype that it was stored in. Raises UsageError where the cell's parts do not fit."""
    import torch

    names = [dtype.value for dtype in Dtype]
    if cell["dtype"] not in names:
        raise UsageError(f"dtype {cell['dtype']!r} is none of {', '.join(names)}")
    dtype, shape, data = Dtype(cell["dtype"]).to_torch(), tuple(cell["shape"]), cell["data"]
    if math.prod(shape) * dtype.itemsize != len(data):
        raise UsageError(f"{len(data)} bytes do not make a {cell['dtype']} tensor of shape {shape}")
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W), bool, as a cell of type `record.MASK`."""
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"]}


def decode_mask(cell: Mapping[str, Any]) -> np.ndarray:
    """The mask of a cell, bool (H, W)."""
    mask: np.ndarray = coco.decode(_run_lengths(cell)).astype(bool)
    return mask


def mask_area(cell: Mapping[str, Any]) -> int:
    """Pixels inside the mask of a cell."""
    return int(coco.area(_run_lengths(cell)))


def mask_iou(cell: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Intersection over union of a cell's mask with each of `others`, (N,), computed on the run lengths."""
    if not others:
        return np.zeros(0)
    overlaps = coco.iou([_run_lengths(cell)], [_run_lengths(other) for other in others], [0] * len(others))
    first: np.ndarray = np.asarray(overlaps)[0]
    return first


def _run_lengths(cell: Mapping[str, Any]) -> Any:  # pycocotools' type for it is private
    return {"size": list(cell["size"]), "counts": cell["counts"]}
