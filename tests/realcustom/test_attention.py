"""Visual cross-attention held against stock diffusers, with our processors installed and maps being recorded."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, IPAdapterAttnProcessor2_0
from torch import Tensor

from realcustom import attention, maps
from realcustom.attention import Conditioning, DecoupledAttentionProcessor, SubjectTokens
from realcustom.config import build
from realcustom.maps import MapRecorder, WordTokens
from realcustom.mask import influence_mask
from realcustom.model import RealCustomModel
from realcustom.settings import (
    AttentionSettings,
    KVInit,
    MaskLayers,
    MaskNorm,
    MaskResize,
    MaskSettings,
    MethodSettings,
)
from tests.support import tiny


@pytest.fixture(scope="module")
def stock() -> UNet2DConditionModel:
    return tiny.tiny_unet()


@pytest.fixture(scope="module")
def model() -> RealCustomModel:
    return RealCustomModel(
        tiny.tiny_unet(), tiny.tiny_settings(), tiny.IMAGE_WIDTH, generator=torch.Generator().manual_seed(1)
    )


def inputs(batch: int = 2, height: int = 16, width: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, timesteps, text and image tokens."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, 4, height, width, generator=generator),
        torch.randint(0, 1000, (batch,), generator=generator),
        torch.randn(batch, 77, tiny.TEXT_WIDTH, generator=generator),
        torch.randn(batch, tiny.IMAGE_TOKENS, tiny.IMAGE_WIDTH, generator=generator),
    )


@torch.no_grad()
def run(
    model: RealCustomModel,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    subjects: list[SubjectTokens],
    record: bool = True,
) -> Tensor:
    words = torch.zeros(len(latents), 1, text.shape[1])
    words[:, :, 2] = 1
    conditioning = Conditioning(
        grids=maps.by_queries(maps.level_grids(latents.shape[2], latents.shape[3], model.levels)),
        subjects=subjects,
        recorders=[MapRecorder(words=WordTokens.of(words))] if record else [],
    )
    output: Tensor = model.unet(latents, timesteps, text, cross_attention_kwargs={"conditioning": conditioning}).sample
    if record:
        assert len(conditioning.recorders[0].maps) == 4
    return output


@pytest.mark.parametrize("size", [(16, 16), (16, 20), (17, 13)])
def test_without_a_subject_nothing_changes(
    stock: UNet2DConditionModel, model: RealCustomModel, size: tuple[int, int]
) -> None:
    """inv. 1, inv. 2, inv. 3, inv. 5 (W_V = 0), inv. 31 (sizes): bitwise."""
    latents, timesteps, text, image = inputs(2, *size)
    with torch.no_grad():
        expected = stock(latents, timesteps, text).sample
    for record in (False, True):
        assert torch.equal(run(model, latents, timesteps, text, [], record), expected)  # inv. 1
    zero_mask = SubjectTokens(embeds=image, mask=torch.zeros(2, 1, *size))
    assert torch.equal(run(model, latents, timesteps, text, [zero_mask]), expected)  # inv. 2
    assert torch.equal(
        run(model, latents, timesteps, text, [SubjectTokens(embeds=torch.zeros_like(image))]), expected
    )  # inv. 3
    assert not torch.equal(run(model, latents, timesteps, text, [SubjectTokens(embeds=image)]), expected)


def test_zero_values_are_the_base_model(stock: UNet2DConditionModel) -> None:
    """inv. 5 (W_V = 0)."""
    settings = MethodSettings(attn=AttentionSettings(kv_init=KVInit.ZERO_V))
    model = RealCustomModel(tiny.tiny_unet(), settings, tiny.IMAGE_WIDTH)
    latents, timesteps, text, image = inputs()
    with torch.no_grad():
        expected = stock(latents, timesteps, text).sample
    assert torch.equal(run(model, latents, timesteps, text, [SubjectTokens(embeds=image)]), expected)


class PassImages(torch.nn.Module):
    """Stands where diffusers projects image embeddings: ours are tokens already."""

    def forward(self, image_embeds: list[Tensor]) -> list[Tensor]:
        return image_embeds


def test_a_mask_of_ones_is_diffusers_ip_adapter(model: RealCustomModel) -> None:
    """inv. 4: the whole UNet, maps being recorded, equals one with IPAdapterAttnProcessor2_0 and the same weights."""
    theirs = tiny.tiny_unet()
    processors = {}
    for name in theirs.attn_processors:
        path = name.removesuffix(".processor")
        attn = model.unet.get_submodule(path)
        if not path.endswith("attn2"):
            processors[name] = AttnProcessor2_0()
            continue
        width = attn.to_q.in_features
        processor = IPAdapterAttnProcessor2_0(width, tiny.TEXT_WIDTH, num_tokens=(tiny.IMAGE_TOKENS,), scale=1.0)
        processor.to_k_ip[0], processor.to_v_ip[0] = _widened(attn.to_k_vision), _widened(attn.to_v_vision)
        processors[name] = processor
    theirs.set_attn_processor(processors)
    theirs.encoder_hid_proj = PassImages()
    theirs.register_to_config(encoder_hid_dim_type="ip_image_proj")
    latents, timesteps, text, image = inputs(2)
    with torch.no_grad():
        expected = theirs(latents, timesteps, text, added_cond_kwargs={"image_embeds": [image]}).sample
    plain = run(model, latents, timesteps, text, [])
    for mask in (None, torch.ones(2, 1, 16, 16)):
        got = run(model, latents, timesteps, text, [SubjectTokens(embeds=image, mask=mask)])
        assert (got - expected).abs().max() <= 1e-6 and (got - plain).abs().max() > 1e-2


def _widened(layer: torch.nn.Linear) -> torch.nn.Linear:
    copy = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
    copy.weight = layer.weight
    return copy


def test_order_of_tokens_subjects_and_rows_does_not_matter(model: RealCustomModel) -> None:
    """inv. 6, inv. 7, inv. 8."""
    latents, timesteps, text, image = inputs(3)
    other = inputs(3, seed=5)[3]
    masks = torch.rand(2, 3, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    a, b = SubjectTokens(embeds=image, mask=masks[0]), SubjectTokens(embeds=other, mask=masks[1])
    both = run(model, latents, timesteps, text, [a, b])
    permuted = SubjectTokens(embeds=image[:, torch.randperm(image.shape[1])], mask=masks[0])
    assert (run(model, latents, timesteps, text, [permuted, b]) - both).abs().max() <= 1e-5  # inv. 6
    assert (run(model, latents, timesteps, text, [b, a]) - both).abs().max() <= 1e-5  # inv. 8
    absent = SubjectTokens(embeds=other, mask=torch.zeros_like(masks[1]))
    alone = run(model, latents, timesteps, text, [a])
    assert torch.equal(run(model, latents, timesteps, text, [a, absent]), alone)  # inv. 8
    for row in range(3):  # inv. 7
        one = slice(row, row + 1)
        single = SubjectTokens(embeds=image[one], mask=masks[0][one])
        got = run(model, latents[one], timesteps[one], text[one], [single])
        assert (got - alone[one]).abs().max() <= 1e-5


def test_one_layer_is_linear_in_the_mask_and_local(model: RealCustomModel) -> None:
    """inv. 5 (constant mask), inv. 28."""
    attn = next(iter(maps.text_cross_attentions(model.unet).values()))
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, 64, attn.to_q.in_features, generator=generator)
    text = torch.randn(1, 77, tiny.TEXT_WIDTH, generator=generator)
    image = torch.randn(1, tiny.IMAGE_TOKENS, tiny.IMAGE_WIDTH, generator=generator)

    @torch.no_grad()
    def layer(mask: Tensor | None) -> Tensor:
        subjects = [] if mask is None else [SubjectTokens(embeds=image, mask=mask)]
        conditioning = Conditioning(grids={64: (8, 8)}, subjects=subjects)
        return DecoupledAttentionProcessor()(attn, hidden, text, conditioning=conditioning)

    plain, full, half = layer(None), layer(torch.ones(1, 1, 8, 8)), layer(torch.full((1, 1, 8, 8), 0.5))
    assert ((half - plain) - (full - plain) / 2).abs().max() <= 1e-6
    mask = (torch.arange(64) < 20).float().view(1, 1, 8, 8)
    local = layer(mask)
    assert torch.equal(local[:, 20:], plain[:, 20:]) and not torch.equal(local[:, :20], plain[:, :20])


def test_resizing_a_mask() -> None:
    """inv. 15."""
    mask = torch.rand(1, 1, 16, 12)
    for how in MaskResize:
        assert torch.equal(attention.resize_mask(mask, (16, 12), how), mask)
        for grid in ((5, 7), (8, 6)):
            constant = attention.resize_mask(torch.full_like(mask, 0.3), grid, how)
            assert constant.shape[-2:] == grid and (constant - 0.3).abs().max() <= 1e-7
        halved = attention.resize_mask(mask, (8, 6), how)
        assert torch.allclose(halved, torch.nn.functional.avg_pool2d(mask, 2), atol=1e-7)


@pytest.mark.parametrize("side", [768, 1024, 1536])
def test_the_released_resize_is_bilinear_where_it_works(side: int) -> None:
    """It takes the heights' ratio for both sides: equal on multiples of 32 pixels; 1040 gives 32 of 33 cells."""
    for width in range(512, 2049, 32):
        mask = torch.rand(1, 1, side // 16, width // 16)
        grid = (side // 32, width // 32)
        released = torch.nn.functional.interpolate(mask, scale_factor=grid[0] / mask.shape[2], mode="bilinear")
        assert torch.equal(attention.resize_mask(mask, grid, MaskResize.BILINEAR), released)
    wide = torch.rand(1, 1, 64, 65)
    assert torch.nn.functional.interpolate(wide, scale_factor=0.5, mode="bilinear").shape[-2:] == (32, 32)
    assert attention.resize_mask(wide, (32, 33), MaskResize.BILINEAR).shape[-2:] == (32, 33)


def test_settings_of_before_that_name_the_released_resize_are_bilinear() -> None:
    assert build(MaskSettings, {"mask_resize": "release_compat"}).mask_resize is MaskResize.BILINEAR
    with pytest.raises(ValueError, match=r"'release' is not allowed.* bilinear, area"):
        build(MaskSettings, {"mask_resize": "release"})


def test_map_rows_sum_to_one(model: RealCustomModel) -> None:
    """inv. 9: with every text token marked, each map is one everywhere."""
    latents, timesteps, text, _ = inputs(2, 16, 20)
    recorder = MapRecorder(words=WordTokens.of(torch.ones(2, 1, 77)))
    conditioning = Conditioning(grids=maps.by_queries(maps.level_grids(16, 20, model.levels)), recorders=[recorder])
    with torch.no_grad():
        model.unet(latents, timesteps, text, cross_attention_kwargs={"conditioning": conditioning})
    assert {tuple(layer.shape[-2:]) for layer in recorder.maps} == {(16, 20), (8, 10)}
    for layer in recorder.maps:
        assert (layer - 1).abs().max() <= 1e-6
    raw = influence_mask(recorder.maps, 1.0, MaskSettings(norm=MaskNorm.NONE))
    assert (raw - 1).abs().max() <= 1e-6  # M = 1 before the selection


def test_projections_initialise_as_the_settings_say() -> None:
    square = tiny.tiny_unet()
    attention.add_visual_projections(square, tiny.TEXT_WIDTH, AttentionSettings(kv_init=KVInit.COPY_TEXT))
    for attn in maps.text_cross_attentions(square).values():
        assert torch.equal(attn.to_k_vision.weight, attn.to_k.weight)
    normal = tiny.tiny_unet()
    attention.add_visual_projections(normal, 999, AttentionSettings(kv_init=KVInit.NORMAL))
    layer = next(iter(maps.text_cross_attentions(normal).values())).to_v_vision
    assert layer.bias is None and abs(float(layer.weight.detach().std()) - 0.02) < 0.002


def test_a_unet_without_text_attention_is_refused() -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        norm_num_groups=8,
    )
    with pytest.raises(ValueError, match="cross_attention"):
        maps.text_cross_attentions(unet)


def test_heads_may_be_permuted(model: RealCustomModel) -> None:
    """inv. 11 (heads): the map is their mean."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 4, n, 8, generator=generator) for n in (20, 77))
    words = torch.zeros(2, 1, 77)
    words[:, :, 2:4] = 1
    order = torch.tensor([2, 0, 3, 1])
    one, other = MapRecorder(words=WordTokens.of(words)), MapRecorder(words=WordTokens.of(words))
    one.record(Attention(query_dim=32), query, key, (4, 5))
    other.record(Attention(query_dim=32), query[:, order], key[:, order], (4, 5))
    assert (one.maps[0] - other.maps[0]).abs().max() <= 1e-6
    expected = torch.softmax(query.double() @ key.double().mT * 8**-0.5, -1)[..., 2:4].sum(-1).mean(1).view(2, 1, 4, 5)
    assert (one.maps[0] - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_are_fp32_whatever_the_model_is(dtype: torch.dtype) -> None:
    """The softmax of half-precision queries is taken in fp32: rows sum to one to fp32's precision."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 4, n, 8, generator=generator).to(dtype) for n in (20, 77))
    recorder = MapRecorder(words=WordTokens.of(torch.ones(1, 1, 77)))
    recorder.record(Attention(query_dim=32), query, key, (4, 5))
    assert recorder.maps[0].dtype == torch.float32 and (recorder.maps[0] - 1).abs().max() <= 1e-6


def test_which_layers_and_grids_have_maps(model: RealCustomModel) -> None:
    """Layers by their place or by their grid; self-attention on the mask's grid alone, its rows summing to the layers."""
    latents, timesteps, text, _ = inputs(1, 18, 13)
    grids = maps.level_grids(18, 13, model.levels)
    assert grids == [(18, 13), (9, 7)] and maps.mask_grid(model.unet, grids) == (18, 13)
    up = maps.mask_layers(model.unet, MaskLayers.UP, grids)
    coarse = maps.mask_layers(model.unet, (9,), grids)
    assert up is not None and coarse is not None and maps.mask_layers(model.unet, MaskLayers.ALL, grids) is None
    with pytest.raises(ValueError, match=r"mask.layers \[16\].*longer sides.*\[9, 18\]"):
        maps.mask_layers(model.unet, (16,), grids)
    for layers, expected in ((up, [(18, 13)] * 2), (coarse, [(9, 7)]), (None, [(18, 13), (9, 7), (18, 13), (18, 13)])):
        recorder = MapRecorder(words=WordTokens.of(torch.ones(1, 1, 77)), layers=layers, self_grid=(18, 13))
        conditioning = Conditioning(grids=maps.by_queries(grids), recorders=[recorder])
        with torch.no_grad():
            model.unet(latents, timesteps, text, cross_attention_kwargs={"conditioning": conditioning})
        assert [tuple(layer.shape[-2:]) for layer in recorder.maps] == expected
        assert recorder.self_maps is not None and recorder.self_maps.shape == (1, 234, 234)
        assert (recorder.self_maps.sum(-1) - 3).abs().max() <= 1e-5  # one block down, two up


def test_replaced_processors_are_refused() -> None:
    own = RealCustomModel(tiny.tiny_unet(), tiny.tiny_settings(), tiny.IMAGE_WIDTH)
    attention.check_unpatched(own.unet, has_adapter=True)
    own.unet.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(ValueError, match="AttnProcessor2_0"):
        attention.check_unpatched(own.unet, has_adapter=True)


def test_a_base_without_text_cross_attention_is_refused() -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    with pytest.raises(ValueError, match="no text cross-attention"):
        RealCustomModel(unet, tiny.tiny_settings(), tiny.IMAGE_WIDTH)
