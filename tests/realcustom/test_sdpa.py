"""Attention with its normaliser: the output is torch's own, bitwise, and no tensor of all scores is made for it."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F

from realcustom.maps import MapRecorder, WordTokens
from realcustom.sdpa import attention_with_normaliser, log_sum_exp


def heads(dtype: torch.dtype, queries: int, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as layers make them: (2, 4, n, width), views of (2, n, 4, width)."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, n, 4, width, generator=generator).to(dtype) for n in (queries, 77, 77)]
    query, key, value = (tensor.transpose(1, 2) for tensor in made)
    return query, key, value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("queries", "width"), [(256, 8), (16, 12), (63, 40)])
def test_output_is_torchs_own(dtype: torch.dtype, queries: int, width: int) -> None:
    query, key, value = heads(dtype, queries, width)
    output, normaliser = attention_with_normaliser(query, key, value)
    assert torch.equal(output, F.scaled_dot_product_attention(query, key, value))
    expected = torch.logsumexp(query.double() @ key.double().mT / width**0.5, -1)
    assert normaliser.shape == (2, 4, queries) and normaliser.dtype == torch.float32
    assert (normaliser - expected).abs().max() <= (2e-6 if dtype is torch.float32 else 1e-4)


def test_a_kernel_without_normaliser_falls_back() -> None:
    """torch's plain kernel, and gradients: the normaliser is computed beside."""
    query, key, value = heads(torch.float32, 64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        output, normaliser = attention_with_normaliser(query, key, value)
        assert torch.equal(output, F.scaled_dot_product_attention(query, key, value))
    assert torch.equal(normaliser, log_sum_exp(query, key))
    query.requires_grad_()
    output, _ = attention_with_normaliser(query, key, value)
    output.sum().backward()
    assert query.grad is not None and query.grad.abs().sum() > 0


def test_words_columns_are_those_of_the_softmax() -> None:
    """Rows with different words, several subjects, several tokens a word; the rows of a launch that are recorded alone."""
    query, key, value = heads(torch.float32, 20)
    words = torch.zeros(2, 2, 77)
    words[0, 0, 3], words[0, 1, 5:8], words[1, 0, 3:5] = 1, 1, 1  # row 1 has one subject
    _, normaliser = attention_with_normaliser(query, key, value)
    softmax = torch.softmax(query.double() @ key.double().mT / 8**0.5, -1).mean(1)  # (B, N, T)
    expected = (words.double() @ softmax.mT).unflatten(2, (4, 5))
    for given in (normaliser, None):
        recorder = MapRecorder(words=WordTokens.of(words))
        recorder.record(Attention(query_dim=32), query, key, (4, 5), given)
        assert (recorder.maps[0] - expected).abs().max() <= 1e-6
        assert (recorder.maps[0][1, 1] == 0).all()
        second = MapRecorder(words=WordTokens.of(words[1:]), rows=slice(1, 2))
        second.record(Attention(query_dim=32), query, key, (4, 5), given)
        assert (second.maps[0] - expected[1:]).abs().max() <= 1e-6


def test_no_tensor_of_all_scores_is_made() -> None:
    """(2, 4, 4096, 77) fp32 would be 10 MB; what is made for one word stays below an eighth of it."""
    query, key, value = heads(torch.float32, 4096)
    words = torch.zeros(2, 1, 77)
    words[:, :, 3] = 1
    recorder = MapRecorder(words=WordTokens.of(words))
    _, normaliser = attention_with_normaliser(query, key, value)
    layer = Attention(query_dim=32)
    with torch.profiler.profile(profile_memory=True) as profile:
        recorder.record(layer, query, key, (64, 64), normaliser)
        assert len(recorder.maps) == 1
    largest = max(event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    assert largest <= 2 * 4 * 4096 * 77 * 4 / 8
