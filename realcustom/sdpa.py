"""Scaled-dot-product attention that also returns its softmax's normaliser, from the kernel that torch would take anyway."""

from __future__ import annotations

import contextlib
from typing import Any

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
    kernel = None if torch.is_grad_enabled() and query.requires_grad else _kernel(query, key, value)
    if kernel is SDPBackend.FLASH_ATTENTION:
        flash = _FLASH_CPU if query.device.type == "cpu" else _FLASH
        output, normaliser = flash(query, key, value)[:2]
    elif kernel is SDPBackend.EFFICIENT_ATTENTION:
        output, normaliser = _EFFICIENT(query, key, value, None, True)[:2]
        normaliser = normaliser[..., : query.shape[2]]  # padded to the kernel's blocks
    else:
        output, normaliser = F.scaled_dot_product_attention(query, key, value), log_sum_exp(query, key)
    return output, normaliser


def _kernel(query: Tensor, key: Tensor, value: Tensor) -> SDPBackend | None:
    """The kernel that torch chooses for these inputs, if it is one that gives the normaliser as it stands."""
    on_cpu = query.device.type == "cpu"
    if not on_cpu and (query.device.type != "cuda" or query.shape[-1] % 8 != 0):
        return None  # torch pads such heads before the call
    if torch.compiler.is_compiling():  # the choice is not a tensor, and would end the graph
        return SDPBackend.FLASH_ATTENTION if on_cpu else SDPBackend.EFFICIENT_ATTENTION
    choice = torch.ops.aten._fused_sdp_choice(query, key, value)
    kernels = (SDPBackend.FLASH_ATTENTION,) if on_cpu else (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    return next((kernel for kernel in kernels if kernel.value == choice), None)


def log_sum_exp(query: Tensor, key: Tensor) -> Tensor:
    """(B, H, N) fp32: log of the sum over T of exp(q k / sqrt(d)), of (B, H, N, d) and (B, H, T, d)."""
    with full_precision(query.device.type):
        scores = query.float() @ (key.float() * query.shape[-1] ** -0.5).mT  # scales the (fewer) keys
        return torch.logsumexp(scores, -1)


def full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast switched off where it is on; to enter the context in each layer would cost as much as its map."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()
