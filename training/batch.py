"""A worker's rows of one step, as tensors.

Legend: B rows, C latent channels, h w latent size, T text tokens, D text width, P width of the pooled text, S visual
tokens, Di their width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One worker's rows. Features are in their caches' dtype until the batch is on its device."""

    latents: torch.Tensor  # (B, C, h, w)
    noise: torch.Tensor  # (B, C, h, w)
    timesteps: torch.Tensor  # (B,)
    encoder_hidden_states: torch.Tensor  # (B, T, D)
    image_embeds: torch.Tensor  # (B, S, Di); where the reference is dropped all zero, or those of a black picture
    weights: torch.Tensor  # (B,); 0 for padding
    total_weight: float  # over all workers
    pooled_text: torch.Tensor | None = None  # (B, P), SDXL alone
    time_ids: torch.Tensor | None = None  # (B, 6), SDXL alone
    error_weights: torch.Tensor | None = None  # (B, 1, h, w), of the parts of a row's error; None: all alike
    numbers: tuple[int, ...] = ()  # of the records
    counted: tuple[int, ...] = ()  # of those with a weight

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by the names of the fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    @property
    def added_conditions(self) -> dict[str, torch.Tensor] | None:
        """What an SDXL-shaped UNet is conditioned on besides, by diffusers' names; None for another."""
        if self.pooled_text is None or self.time_ids is None:
            return None
        return {"text_embeds": self.pooled_text, "time_ids": self.time_ids}

    def pinned(self) -> Batch:
        """In host memory from which a GPU copies while it computes."""
        return self._with({name: tensor.pin_memory() for name, tensor in self.tensors().items()})

    def to(self, device: torch.device) -> Batch:
        """On a device, the features in fp32."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        names = ("latents", "encoder_hidden_states", "image_embeds", "pooled_text", "time_ids")
        features = {name: moved[name].float() for name in names if name in moved}
        return self._with(moved | features)

    def _with(self, tensors: dict[str, torch.Tensor]) -> Batch:
        return Batch(**tensors, total_weight=self.total_weight, numbers=self.numbers, counted=self.counted)

    def chunks(self, count: int) -> Iterable[Batch]:
        """At most `count` batches of consecutive rows that make up this one."""
        size = -(-len(self.weights) // count)
        for start in range(0, len(self.weights), size):
            rows = slice(start, start + size)
            yield self._with({name: tensor[rows] for name, tensor in self.tensors().items()})
