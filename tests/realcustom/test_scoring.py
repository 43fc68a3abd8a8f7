"""The adaptive scoring module against its equations."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from realcustom.attention import Conditioning, SubjectTokens
from realcustom.maps import text_cross_attentions
from realcustom.model import RealCustomModel
from realcustom.scoring import AdaptiveScoring, select_tokens
from realcustom.settings import Fusion, TextMask, TokenSettings
from tests.support import tiny


def scoring(fusion: Fusion = Fusion.TIMESTEP, text_mask: TextMask = TextMask.MULTIPLY) -> AdaptiveScoring:
    torch.manual_seed(0)
    return AdaptiveScoring(24, 4, 32, TokenSettings(hidden=16, fusion=fusion, text_mask_mode=text_mask))


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    text, latents, image = ((2, 77, 24), (2, 4, 6, 5), (2, 9, 32))
    return tuple(torch.randn(shape, generator=generator) for shape in (text, latents, image))  # type: ignore[return-value]


def test_scores_and_selection(data: tuple[Tensor, Tensor, Tensor]) -> None:
    """inv. 16, inv. 17."""
    text, latents, image = data
    scores = scoring()(text, latents, image, torch.tensor([0.3, 0.9]))
    assert (scores.sum(1) - 1).abs().max() <= 1e-6 and (scores > 0).all()
    for quantity in (0.01, 0.3, 0.8, 1.0):
        index, gate = select_tokens(scores, quantity)
        assert index.shape[1] == max(1, int(quantity * 9))
        assert (index.diff(dim=1) > 0).all()
        for row in range(2):
            dropped = set(range(9)) - set(index[row].tolist())
            assert all(scores[row, kept] >= scores[row, out] for kept in index[row] for out in dropped)
        assert torch.equal(gate, 1 + scores.gather(1, index))
    _, gate = select_tokens(scores, 1.0)
    assert ((gate - 1).sum(1) - 1).abs().max() <= 1e-5  # inv. 17


def test_equal_scores_go_to_the_lower_index() -> None:
    index, _ = select_tokens(torch.tensor([[0.2, 0.3, 0.2, 0.2]]), 0.5)
    assert index.tolist() == [[0, 1]]


def test_order_of_tokens_and_pixels(data: tuple[Tensor, Tensor, Tensor]) -> None:
    """inv. 18."""
    text, latents, image = data
    module, alphas = scoring(), torch.tensor([0.3, 0.9])
    scores, order = module(text, latents, image, alphas), torch.randperm(9)
    assert (module(text, latents, image[:, order], alphas) - scores[:, order]).abs().max() <= 1e-6
    shuffled = latents.flatten(2)[:, :, torch.randperm(30)].view_as(latents)
    assert (module(text[:, torch.randperm(77)], shuffled, image, alphas) - scores).abs().max() <= 1e-6


def test_fusions(data: tuple[Tensor, Tensor, Tensor]) -> None:
    """inv. 19, inv. 20."""
    text, latents, image = data
    other_text, other_latents = torch.randn_like(text), torch.randn_like(latents)
    module = scoring()
    noise, clean = torch.zeros(2), torch.ones(2)
    assert torch.equal(module(text, latents, image, noise), module(text, other_latents, image, noise))
    assert torch.equal(module(text, latents, image, clean), module(other_text, latents, image, clean))
    alphas = torch.full((2,), 0.49)  # square root 0.7
    assert not torch.allclose(
        module(text, latents, image, alphas), module(other_text, latents, image, alphas), atol=1e-6
    )
    parts = {}
    for fusion in (Fusion.TEXT, Fusion.VISUAL):
        parts[fusion] = scoring(fusion)(text, latents, image, alphas).log()
    expected = torch.softmax(0.3 * parts[Fusion.TEXT] + 0.7 * parts[Fusion.VISUAL], -1)
    assert torch.allclose(module(text, latents, image, alphas), expected, atol=1e-6)
    for scorer in (module.text_scorer, module.latent_scorer):  # inv. 20: a constant beside every score changes nothing
        last, before = scorer[2], module(text, latents, image, alphas)
        last.register_forward_hook(lambda layer, given, output: output + 3.7)
        assert (module(text, latents, image, alphas) - before).abs().max() <= 1e-6
    mean = torch.softmax((parts[Fusion.TEXT] + parts[Fusion.VISUAL]) / 2, -1)
    assert torch.allclose(scoring(Fusion.MEAN)(text, latents, image, alphas), mean, atol=1e-6)


def test_the_word_mask_on_the_text(data: tuple[Tensor, Tensor, Tensor]) -> None:
    text, latents, image = data
    words = torch.zeros(2, 77)
    words[:, 3] = 1
    changed = text.clone()
    changed[:, 10:] = 0
    noise = torch.zeros(2)
    for mode in (TextMask.MULTIPLY, TextMask.EXCLUDE):
        module = scoring(text_mask=mode)
        assert torch.equal(module(text, latents, image, noise, words), module(changed, latents, image, noise, words))
    module = scoring(text_mask=TextMask.NONE)
    assert not torch.equal(module(text, latents, image, noise, words), module(changed, latents, image, noise, words))


def test_gathering_after_projection_equals_gating_before(data: tuple[Tensor, Tensor, Tensor]) -> None:
    """inv. 38."""
    model = RealCustomModel(tiny.tiny_unet(), tiny.tiny_settings(), 32, generator=torch.Generator().manual_seed(0))
    image = data[2]
    index, gate = select_tokens(torch.softmax(torch.randn(2, 9), -1), 0.6)
    gated = image.gather(1, index[..., None].expand(-1, -1, 32)) * gate[..., None]
    for attn in text_cross_attentions(model.unet).values():
        got = SubjectTokens(embeds=image, index=index, gate=gate, cache={}).keys_values(attn)
        expected = SubjectTokens(embeds=gated).keys_values(attn)
        for mine, theirs in zip(got, expected, strict=True):
            assert (mine - theirs).abs().max() <= 1e-6


def test_scoring_off_is_all_tokens_ungated() -> None:
    """inv. 21: keys and values are those of the features themselves, to the bit; so is the output."""
    settings = dataclasses.replace(tiny.tiny_settings(), tokens=TokenSettings(scoring=False))
    model = RealCustomModel(tiny.tiny_unet(), settings, 32, generator=torch.Generator().manual_seed(0))
    assert model.adaptive_scoring is None
    index, gate = model.score(*(torch.zeros(1),) * 4, 0.5)
    assert index is None and gate is None
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 16, 32, generator=generator)
    for attn in text_cross_attentions(model.unet).values():
        key, value = SubjectTokens(embeds=image, index=index, gate=gate).keys_values(attn)
        for found, layer in ((key, attn.to_k_vision), (value, attn.to_v_vision)):
            assert torch.equal(found.transpose(1, 2).flatten(2), layer(image))
    every = torch.arange(16).expand(2, -1)
    latents, text = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 24, generator=generator)
    outputs = []
    for subject in (
        SubjectTokens(embeds=image, index=index, gate=gate),
        SubjectTokens(embeds=image, index=every, gate=torch.ones(2, 16)),  # S = 0, gamma = 1
    ):
        conditioning = Conditioning(grids={256: (16, 16), 64: (8, 8)}, subjects=[subject])
        with torch.no_grad():
            outputs.append(model.unet(latents, 500, text, cross_attention_kwargs={"conditioning": conditioning}).sample)
    assert torch.equal(*outputs)
