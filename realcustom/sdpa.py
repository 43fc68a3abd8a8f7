"""Scaled-dot-product attention that also returns its softmax's normaliser, from the kernel that torch would take anyway."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

# torch's own names of its kernels; each returns the output and the normaliser first
_FLASH_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention
_EFFICIENT = torch.ops.aten._scaled_dot_product_efficient_attention


def attention_with_normaliser(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T / sqrt(d)) V, bitwise as `F.scaled_dot_product_attention`, and the softmax's log-sum-exp.

    Args:
        query: (B, H, N, d).
        key, value: (B, H, T, d).
    Returns:
        (B, H, N, d), and (B, H, N) fp32: log of the sum over T of exp(q k / sqrt(d)). Where the kernel that torch chooses
        does not give it, it is computed beside, which takes a tensor (B, H, N, T).
    """
    if not (torch.is_grad_enabled() and query.requires_grad):
        choice = torch.ops.aten._fused_sdp_choice(query, key, value)
        if choice == SDPBackend.FLASH_ATTENTION.value and query.device.type == "cpu":
            output, normaliser = _FLASH_CPU(query, key, value)
            return output, normaliser
        if query.device.type == "cuda" and query.shape[-1] % 8 == 0:  # else torch pads the heads before it calls these
            if choice == SDPBackend.FLASH_ATTENTION.value:
                output, normaliser = _FLASH(query, key, value)[:2]
                return output, normaliser
            if choice == SDPBackend.EFFICIENT_ATTENTION.value:
                output, normaliser = _EFFICIENT(query, key, value, None, True)[:2]
                return output, normaliser[..., : query.shape[2]]  # padded to the kernel's blocks
    return F.scaled_dot_product_attention(query, key, value), log_sum_exp(query, key)


def log_sum_exp(query: Tensor, key: Tensor) -> Tensor:
    """(B, H, N) fp32: log of the sum over T of exp(q k / sqrt(d)), of (B, H, N, d) and (B, H, T, d)."""
    with torch.autocast(query.device.type, enabled=False):
        scores = query.float() @ (key.float() * query.shape[-1] ** -0.5).mT  # scales the (fewer) keys
        return torch.logsumexp(scores, -1)
