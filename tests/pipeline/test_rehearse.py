"""`realcustom rehearse`: public configurations against published sizes, and a whole rehearsal of a tiny recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from realcustom.errors import UsageError
from realcustom.pipeline.recipes import RECIPES, RunSettings, paper_sd15, released_sdxl
from realcustom.pipeline.rehearse.folders import make_tokenizer
from realcustom.pipeline.rehearse.plan import model_names
from realcustom.pipeline.rehearse.public import DATA, Published, public_model
from realcustom.pipeline.rehearse.run import count_model, rehearse
from realcustom.preprocessing.settings import EncodeSettings

PUBLIC: dict[str, Any] = json.loads(DATA.read_text())


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_configuration_has_the_published_number_of_parameters(name: str) -> None:
    counted = list(count_model(public_model(name)))
    assert counted and [problem for one in counted for problem in one.problems] == []


def test_the_unets_have_the_published_cross_attentions() -> None:
    bases = [recipe().base for recipe in (paper_sd15, released_sdxl)]
    unets = [next(iter(count_model(public_model(base)))) for base in bases]
    assert [unet.cross_attentions for unet in unets] == [16, 70]
    assert [unet.parameters for unet in unets] == [859_520_964, 2_567_463_684]


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "sprites"])
def test_every_model_of_a_recipe_of_the_hub_is_known(recipe: str) -> None:
    names = model_names(RECIPES[recipe]())
    assert len(names) >= 7 and all(public_model(f"{name}@main").name == name for name in names)


def test_a_model_whose_configuration_is_not_known_is_refused() -> None:
    settings = paper_sd15()
    caption = replace(settings.preprocess.caption, model="someone/captioner")
    wrong = replace(settings, preprocess=replace(settings.preprocess, caption=caption))
    with pytest.raises(UsageError, match="no public configuration of someone/captioner is known"):
        next(rehearse(wrong))


def test_rounded_numbers_agree_as_far_as_they_are_written_out() -> None:
    def agrees(parameters: int | str, counted: int) -> bool:
        return Published(parameters=parameters, source="").agrees(counted)

    assert agrees("304M", 303_966_208) and not agrees("303M", 303_966_208)
    assert agrees("92.9M", 92_885_762) and not agrees("92.8M", 92_885_762)
    assert agrees(5, 5) and not agrees(5, 6)


def test_tokenizers_have_the_public_size_and_special_tokens() -> None:
    clip, bert, blip = make_tokenizer("clip"), make_tokenizer("bert"), make_tokenizer("bert", 2)
    assert (len(clip), len(bert), len(blip)) == (49408, 30522, 30524)
    assert (clip.bos_token_id, clip.eos_token_id) == (49406, 49407) and blip.bos_token_id == 30522
    ids = bert("a dog.").input_ids
    assert (ids[0], ids[-2:]) == (101, [1012, 102])


TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TEXT, "image_size": 32, "patch_size": 16}
SMALL: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 16,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
    "sdxl": {"cross_attention_dim": 64, "transformer_layers_per_block": [1, 1], "attention_head_dim": [4, 8]}
    | {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 32},
    "vae": {
        "block_out_channels": [16, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 8,
        "sample_size": 32,
    },
}


def shrunk(name: str) -> dict[str, Any]:
    """A public model with the same classes and files, a few layers and small pictures."""
    entry: dict[str, Any] = json.loads(json.dumps(PUBLIC[name]))
    if "parts" in entry:
        for part, values in entry["parts"].items():
            values.pop("published", None)
            values.pop("cross_attentions", None)
            if part.startswith("text_encoder"):
                values["config"] |= {**TEXT, "projection_dim": 32}
            if part in SMALL:
                values["config"] |= SMALL[part] | (
                    SMALL["sdxl"] if "XL" in entry["pipeline"] and part == "unet" else {}
                )
        return entry
    entry["published"] = []
    config, size = entry["config"], {"height": 32, "width": 32}
    if "vision_config" in config:
        config["vision_config"] |= VISION | {"projection_dim": 32}
    if entry["class"] in ("SiglipVisionModel", "Dinov2WithRegistersModel", "ViTForImageClassification", "Dinov2Model"):
        config |= VISION | {"mlp_ratio": 1}
    if entry["class"] == "CLIPModel":
        config["text_config"] |= {**TEXT, "projection_dim": 32}
        config["projection_dim"] = 32
        entry["processor"]["config"] = {"size": {"shortest_edge": 32}, "crop_size": size}
    elif entry["class"] == "BlipForConditionalGeneration":
        config["text_config"] |= {**TEXT, "encoder_hidden_size": 32}
        entry["processor"]["config"] = {"size": size}
    elif entry["class"] == "GroundingDinoForObjectDetection":
        config["backbone_config"] = {"model_type": "swin", "image_size": 32, "embed_dim": 8, "depths": [1] * 4}
        config["backbone_config"] |= {"num_heads": [1, 1, 2, 2], "window_size": 2, "out_indices": [2, 3, 4]}
        config["text_config"] |= TEXT
        config |= {"d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 6}
        config |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        config |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
        entry["processor"]["config"] = {"size": {"shortest_edge": 48, "longest_edge": 64}}
    elif entry["class"] == "SamModel":
        config["vision_config"] |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 16}
        config["vision_config"] |= {"global_attn_indexes": [0], "image_size": 64, "patch_size": 8, "window_size": 4}
        config["prompt_encoder_config"] = {"image_size": 64, "patch_size": 8}
        entry["processor"]["config"] = {
            "size": {"longest_edge": 64},
            "pad_size": {"height": 64, "width": 64},
            "mask_size": {"longest_edge": 16},
            "mask_pad_size": {"height": 16, "width": 16},
        }
    else:
        entry["processor"]["config"]["size"] = size
    return entry


def tiny(recipe: str, folder: Path) -> tuple[RunSettings, Path]:
    """A recipe whose models are small ones of the same names, and their configurations."""
    data = folder / "models.json"
    data.write_text(json.dumps({name: shrunk(name) for name in PUBLIC}))
    settings = RECIPES[recipe]()
    encoder = replace(settings.method.image_encoder, high_res=64)
    preprocess = replace(settings.preprocess, encode=EncodeSettings(resolution=32))
    return replace(settings, preprocess=preprocess, method=replace(settings.method, image_encoder=encoder)), data


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "side"), [("photos_sd15", None), ("released_sdxl", 16)])
def test_a_tiny_recipe_is_rehearsed_from_models_to_image(recipe: str, side: int | None, tmp_path: Path) -> None:
    settings, data = tiny(recipe, tmp_path)
    lines = list(rehearse(settings, side=side, data=data))
    table = "\n".join(lines)
    parts = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    for part in ("score", "caption", "subjects", "encode", "training, 1 step(s)", "denoising, 1 step(s)"):
        assert part in parts, table
    pixels, cells = side or 32, (side or 32) // 2
    for made in (f"latents 4 x {cells} x {cells}", f"image {pixels} x {pixels}", f"mask {cells} x {cells}"):
        assert made in table, table
    assert ("pooled_text 32" in table) == (recipe == "released_sdxl") and "validation loss" in table, table


@pytest.mark.slow
def test_a_difference_from_what_is_published_ends_with_its_name(tmp_path: Path) -> None:
    settings, data = tiny("paper_sd15", tmp_path)
    entries = json.loads(data.read_text())
    entries["facebook/sam-vit-huge"]["published"] = [{"of": [], "parameters": 641, "source": "nowhere"}]
    data.write_text(json.dumps(entries))
    with pytest.raises(UsageError, match=r"facebook/sam-vit-huge has .* parameters, published are 641"):
        list(rehearse(settings, data=data))
