"""RealCustom++'s encoder against its models called by hand; the views it makes; what it refuses."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
)

from realcustom.encoders import ClipEncoder, SiglipDinoEncoder, high_resolution, make_views
from realcustom.identity import model_identity, resolve_model, same_content
from realcustom.image_encoder import count_local_views, load_image_encoder
from realcustom.settings import EncoderKind, ImageEncoderSettings, SiglipGelu
from tests.support import tiny

IMAGENET = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
HALVES = np.full((2, 3), 0.5, np.float32)


def pp(
    layers: tuple[int, ...] = (-2,), dino_layers: tuple[int, ...] = (-2,), high_res: int = 64
) -> ImageEncoderSettings:
    return ImageEncoderSettings(kind=EncoderKind.SIGLIP_DINO, layers=layers, dino_layers=dino_layers, high_res=high_res)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.tiny_siglip_dino(tmp_path_factory.mktemp("siglip_dino"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.tiny_image_encoder(tmp_path_factory.mktemp("clip"))


def noise(seed: int = 0, side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def by_hand(models: str, view: np.ndarray, siglip_layer: int, dino_layer: int) -> Tensor:
    """(S, D) of one 8-bit view (R, R, 3): each model called alone, its prefix tokens cut off."""
    siglip, dino = models.split(",")
    features = []
    for model, statistics, layer, prefix in (
        (SiglipVisionModel.from_pretrained(siglip), HALVES, siglip_layer, 0),
        (Dinov2WithRegistersModel.from_pretrained(dino), IMAGENET, dino_layer, 5),  # class token, 4 registers
    ):
        pixels = torch.from_numpy((view / np.float32(255) - statistics[0]) / statistics[1]).permute(2, 0, 1)
        with torch.no_grad():
            features.append(model(pixels[None], output_hidden_states=True).hidden_states[layer][0, prefix:])
    return torch.cat(features, -1)


def test_local_views_are_interleaved_and_the_global_one_has_aligned_corners() -> None:
    ramp = torch.arange(16.0).reshape(1, 1, 4, 4).expand(-1, 3, -1, -1) / 255
    views = make_views(ramp + 1e-4, 2)[0, :, 0].flatten(1)  # rounded down: a hair above keeps whole numbers whole
    assert views.tolist() == [[0, 3, 12, 15], [0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]
    thirds = make_views(torch.arange(36.0).reshape(1, 1, 6, 6).expand(-1, 3, -1, -1) / 255 + 4e-7, 2)[0, :, 0]
    assert thirds.shape == (10, 2, 2) and thirds[1 + 3 * 1 + 2].flatten().tolist() == [8, 11, 26, 29]


def test_views_are_eight_bit_rounded_down_and_keep_every_level() -> None:
    levels = torch.arange(256.0).reshape(1, 1, 16, 16).expand(-1, 3, -1, -1) / 255
    assert torch.equal(make_views(levels, 16)[0, 1, 0].flatten(), torch.arange(256, dtype=torch.uint8))
    assert int(make_views(torch.full((1, 3, 4, 4), 0.9999), 2).max()) == 254


def test_the_high_resolution_is_plain_bilinear() -> None:
    picture = noise(side=8)
    assert torch.equal(
        high_resolution(picture, 8), torch.from_numpy(np.asarray(picture) / np.float32(255)).permute(2, 0, 1)
    )
    halved = high_resolution(picture, 4)  # without antialias, half the size is the mean of 2 x 2
    mean = np.asarray(picture, np.float32).reshape(4, 2, 4, 2, 3).mean((1, 3)) / 255
    torch.testing.assert_close(halved, torch.from_numpy(mean).permute(2, 0, 1))
    assert not torch.allclose(
        high_resolution(noise(side=16), 4),
        torch.from_numpy(np.asarray(noise(side=16), np.float32).reshape(4, 4, 4, 4, 3).mean((1, 3)) / 255).permute(
            2, 0, 1
        ),
    )


@pytest.mark.parametrize(("layers", "dino_layers"), [((-2,), (-2,)), ((0, 1, -1), (1, 2, -2))])
def test_tokens_are_raw_hidden_states_in_the_documented_order(
    models: str, layers: tuple[int, ...], dino_layers: tuple[int, ...]
) -> None:
    encoder = load_image_encoder(models, pp(layers, dino_layers))
    assert encoder.embed_dim == 64 and encoder.local_views == 4
    picture = noise()
    tokens = encoder.encode(encoder.prepare(picture)[None])
    assert tokens.shape == (1, (1 + len(layers) - 1 + 4) * 16, 64)
    array = np.asarray(picture)
    whole = make_views(encoder.prepare(picture)[None], 32)[0, 0].permute(1, 2, 0).numpy()
    expected = [by_hand(models, whole, layers[-1], dino_layers[-1])]
    expected += [by_hand(models, whole, *pair) for pair in zip(layers[:-1], dino_layers[:-1], strict=True)]
    local = [by_hand(models, array[a::2, b::2], layers[-1], dino_layers[-1]) for a in (0, 1) for b in (0, 1)]
    expected += [local[view][patch][None] for patch in range(16) for view in range(4)]
    torch.testing.assert_close(tokens[0], torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_the_last_hidden_state_has_no_final_norm(models: str) -> None:
    encoder = load_image_encoder(models, pp((-1,), (-1,)))
    assert isinstance(encoder, SiglipDinoEncoder)
    picture = encoder.prepare(noise())[None]
    before = encoder.encode(picture)
    for norm in (encoder.siglip.post_layernorm, encoder.dino.layernorm):
        torch.nn.init.constant_(norm.weight, 7.0)
    assert torch.equal(encoder.encode(picture), before)


def test_a_batch_is_its_pictures(models: str) -> None:
    """inv. 7, of the encoder."""
    encoder = load_image_encoder(models, pp())
    pictures = torch.stack([encoder.prepare(noise(seed)) for seed in range(3)])
    alone = torch.cat([encoder.encode(picture[None]) for picture in pictures])
    torch.testing.assert_close(encoder.encode(pictures), alone, atol=1e-5, rtol=1e-5)


def test_weights_are_frozen_and_dtypes_followed(models: str) -> None:
    encoder = load_image_encoder(models, pp(), "cpu", torch.bfloat16)
    tokens = encoder.encode(encoder.prepare(noise())[None])
    assert tokens.dtype is torch.bfloat16 and not tokens.requires_grad
    exact = load_image_encoder(models, pp())
    assert (
        torch.nn.functional.cosine_similarity(tokens.float(), exact.encode(exact.prepare(noise())[None]), dim=-1).min()
        > 0.99
    )


def test_black_goes_the_same_way(models: str, clip: str) -> None:
    for encoder in (load_image_encoder(models, pp()), load_image_encoder(clip, ImageEncoderSettings())):
        black = encoder.encode(encoder.prepare(Image.new("RGB", (50, 50)))[None])
        assert torch.equal(encoder.encode_black(), black) and bool((black != 0).any())


def test_transparency_lies_on_white(models: str) -> None:
    encoder = load_image_encoder(models, pp())
    assert float(encoder.prepare(Image.new("RGBA", (64, 64), (255, 0, 0, 0))).min()) == 1.0


def test_dinov2_without_registers(models: str, tmp_path: Path) -> None:
    siglip, dino = models.split(",")
    torch.manual_seed(0)
    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, patch_size=8, image_size=32, mlp_ratio=1)
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text((Path(dino) / "preprocessor_config.json").read_text())
    encoder = load_image_encoder(f"{siglip},{tmp_path}", pp())
    assert encoder.encode(encoder.prepare(noise())[None]).shape == (1, 5 * 16, 32 + 24)


def test_siglip_with_its_text_half(models: str, tmp_path: Path) -> None:
    """As the hub has it."""
    siglip, dino = models.split(",")
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
    text, vision = dict(vocab_size=9, max_position_embeddings=8), dict(image_size=32, patch_size=8)
    whole = SiglipModel(SiglipConfig(text_config=sizes | text, vision_config=sizes | vision))
    whole.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text((Path(siglip) / "preprocessor_config.json").read_text())
    encoder = load_image_encoder(f"{tmp_path},{dino}", pp())
    assert isinstance(encoder, SiglipDinoEncoder) and count_local_views(f"{tmp_path},{dino}", pp()) == 4
    own = encoder.siglip.state_dict()
    assert own and all(torch.equal(value, own[name]) for name, value in whole.vision_model.state_dict().items())


def test_weights_that_lack_are_named(models: str, tmp_path: Path) -> None:
    siglip, dino = models.split(",")
    shutil.copytree(dino, tmp_path / "dino")
    weights = safetensors.torch.load_file(tmp_path / "dino" / "model.safetensors")
    del weights["embeddings.cls_token"]
    safetensors.torch.save_file(weights, tmp_path / "dino" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights: embeddings\.cls_token"):
        load_image_encoder(f"{siglip},{tmp_path / 'dino'}", pp())


def test_identities_and_views_are_known_without_loading(models: str, clip: str) -> None:
    siglip, dino = models.split(",")
    identity = f"{model_identity(siglip)},{model_identity(dino)}"
    assert load_image_encoder(models, pp()).identity == model_identity(models) == identity
    assert resolve_model(f" {siglip}, {dino}") == models
    assert same_content(identity, identity.replace("siglip@", "elsewhere@"))
    assert not same_content(
        identity, f"{model_identity(clip)},{model_identity(dino)}"
    )  # the second one alone is not enough
    assert count_local_views(models, pp()) == 4 and count_local_views(models, pp(high_res=96)) == 9
    assert count_local_views(clip, ImageEncoderSettings()) == 0
    assert isinstance(load_image_encoder(clip, ImageEncoderSettings()), ClipEncoder)


def test_what_does_not_fit_is_refused(models: str, clip: str, tmp_path: Path) -> None:
    siglip, dino = models.split(",")
    torch.manual_seed(0)
    coarse = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, patch_size=16, image_size=32)
    Dinov2Model(coarse).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text((Path(dino) / "preprocessor_config.json").read_text())
    for model, settings, message in (
        (siglip, pp(), r'two models, "SIGLIP,DINOV2", got 1'),
        (f"{models},{dino}", pp(), "got 3"),
        (f"{siglip},", pp(), "leaves a model's name empty"),
        (f"{dino},{siglip}", pp(), "'dinov2_with_registers' model; .* SigLIP vision model first"),
        (f"{siglip},{clip}", pp(), "'clip_vision_model' model; .* DINOv2 second"),
        (f"{siglip},/nowhere", pp(), "no image encoder at /nowhere"),
        (models, ImageEncoderSettings(), "kind clip takes one model, got 2"),
        (siglip, ImageEncoderSettings(), "'siglip_vision_model' model; .*kind clip"),
        (models, pp(high_res=80), "high_res 80 is not a multiple of the encoder's 32 px"),
        (models, pp(high_res=16), "high_res 16 is not a multiple"),
        (models, pp(layers=(4,)), r"layers is \[4\], the encoder has 3 layers"),
        (models, pp(dino_layers=(-5,)), r"dino_layers is \[-5\], the encoder has 3 layers"),
        (f"{siglip},{tmp_path}", pp(), "SigLIP has 16 patch tokens and DINOv2 4"),
    ):
        with pytest.raises(ValueError, match=message):
            load_image_encoder(model, settings)


def test_siglip_with_the_exact_gelu(models: str) -> None:
    """The released encoder's activation in every block; by default the model's own, an approximation by tanh."""
    picture = noise()
    tokens = {}
    for gelu in SiglipGelu:
        encoder = load_image_encoder(models, dataclasses.replace(pp(), siglip_gelu=gelu))
        tokens[gelu] = encoder.encode(encoder.prepare(picture)[None])
    exact = SiglipVisionModel.from_pretrained(models.split(",")[0], hidden_act="gelu").eval()
    encoder = load_image_encoder(models, pp())
    assert isinstance(encoder, SiglipDinoEncoder)
    encoder.siglip = exact
    assert torch.equal(tokens[SiglipGelu.EXACT], encoder.encode(encoder.prepare(picture)[None]))
    difference = (tokens[SiglipGelu.EXACT] - tokens[SiglipGelu.MODEL])[..., :32].abs().max()
    assert 0 < difference < 1e-2


def test_features_of_another_activation_are_others() -> None:
    """Tables made before the setting say nothing of it: they hold the model's own, under the kind's plain name."""
    model, exact = (dataclasses.replace(pp(), siglip_gelu=gelu).of_features() for gelu in SiglipGelu)
    assert model["kind"] == "siglip_dino" and exact["kind"] == "siglip_dino with exact GELU"
    assert {name: value for name, value in model.items() if name != "kind"} == {
        name: value for name, value in exact.items() if name != "kind"
    }
