"""A record's cells: what is written is what is read, and pycocotools agrees."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from pycocotools import mask as coco

from realcustom import record
from realcustom.cells import decode_mask, decode_tensor, encode_mask, encode_tensor, mask_area, mask_iou
from realcustom.dtype import Dtype
from realcustom.errors import UsageError


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("shape", [(2, 3, 4), (5,), ()])
def test_a_tensor_comes_back_in_the_dtype_it_was_kept_in(dtype: Dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    cell = pa.array([encode_tensor(tensor, dtype)], type=record.TENSOR)[0].as_py()
    assert cell["dtype"] == dtype.value and cell["shape"] == list(shape)
    back = decode_tensor(cell)
    assert back.dtype is getattr(torch, dtype.value) is dtype.to_torch()
    assert torch.equal(back, tensor.to(back.dtype))


def test_a_tensor_is_kept_row_major_and_little_endian() -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    assert encode_tensor(torch.from_numpy(values.T.copy()).T, Dtype.FLOAT32)["data"] == values.tobytes()


def test_a_tensor_whose_parts_do_not_fit_is_refused() -> None:
    cell = encode_tensor(torch.zeros(2, 3), Dtype.FLOAT16)
    for change, message in (
        ({"dtype": "float8"}, "dtype 'float8' is none of float32, float16, bfloat16"),
        ({"shape": [2, 4]}, r"12 bytes do not make a float16 tensor of shape \(2, 4\)"),
    ):
        with pytest.raises(UsageError, match=message):
            decode_tensor(cell | change)


def test_masks() -> None:
    masks = np.random.default_rng(0).random((3, 7, 5)) < 0.4
    cells = pa.array([encode_mask(mask) for mask in masks], type=record.MASK).to_pylist()
    for mask, cell in zip(masks, cells, strict=True):
        assert cell["size"] == [7, 5]
        assert np.array_equal(decode_mask(cell), mask) and decode_mask(cell).dtype == bool
        assert np.array_equal(coco.decode(cell).astype(bool), mask)
        assert mask_area(cell) == mask.sum()
    overlaps = [(masks[0] & other).sum() / (masks[0] | other).sum() for other in masks]
    assert np.allclose(mask_iou(cells[0], cells), overlaps)
    assert mask_iou(cells[0], []).shape == (0,)
