"""The number formats that tensors are kept in: a record's cached features, a served model's weights. Imports no torch."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Dtype(enum.Enum):
    """A number format, by the name that torch and numpy have for it."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    def to_torch(self) -> torch.dtype:
        """torch's own object for it."""
        import torch

        dtype: torch.dtype = getattr(torch, self.value)
        return dtype
