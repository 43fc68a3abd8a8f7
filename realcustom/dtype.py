"""Number formats of stored tensors: a record's cached features, a served model's weights. Imports no torch."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Dtype(enum.Enum):
    """A number format, by its name in torch and numpy."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    def to_torch(self) -> torch.dtype:
        """The torch dtype."""
        import torch

        dtype: torch.dtype = getattr(torch, self.value)
        return dtype
