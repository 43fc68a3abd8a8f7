"""Random instances, a few thousand weights each, of the model classes that the stages run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    SamConfig,
    SamImageProcessorPil,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

WORDS = ["a", "toy", "car", "on", "grass", "red", "blue", "ball", "the", "left", "right"]
_LAYERS = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def clip(folder: Path) -> str:
    """A CLIPModel folder with tokenizer and image processor."""
    torch.manual_seed(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    symbols = [*letters, *[letter + "</w>" for letter in letters], "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={name: i for i, name in enumerate(symbols)}, merges=[], model_max_length=16)
    text = {**_LAYERS, "vocab_size": len(symbols), "max_position_embeddings": 16, "projection_dim": 16}
    text |= {"bos_token_id": len(symbols) - 2, "eos_token_id": len(symbols) - 1, "pad_token_id": len(symbols) - 1}
    vision = {**_LAYERS, "image_size": 32, "patch_size": 16, "projection_dim": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return str(folder)


def classifier(folder: Path, *labels: str) -> str:
    """An image classification model with these labels."""
    config = ViTConfig(**_LAYERS, image_size=32, patch_size=16, id2label=dict(enumerate(labels)))
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def heads(folder: Path) -> str:
    """Score heads on the embedding of `clip`."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name in ("aesthetic", "nsfw", "watermark"):
        tensors[f"{name}.weight"] = rng.normal(size=(1, 16)).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(size=(1,)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "heads.safetensors")
    return str(folder)


def _bert(folder: Path, extra: list[str]) -> int:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    symbols = [*special, *extra, ".", *letters, *["##" + letter for letter in letters], *WORDS[1:]]
    names = {name: i for i, name in enumerate(dict.fromkeys(symbols))}
    special_names = {"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]} if extra else {}
    BertTokenizer(vocab=names, do_lower_case=True, **special_names).save_pretrained(folder)
    return len(names)


def blip(folder: Path) -> str:
    """A BLIP captioner folder."""
    torch.manual_seed(0)
    size = _bert(folder, ["[DEC]", "[ENC]"])
    text = {**_LAYERS, "vocab_size": size, "encoder_hidden_size": 32, "max_position_embeddings": 32}
    text |= {"bos_token_id": 5, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    vision = {**_LAYERS, "image_size": 32, "patch_size": 16}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def grounding_dino(folder: Path) -> str:
    """A Grounding DINO folder."""
    torch.manual_seed(0)
    size = _bert(folder, [])
    backbone = SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config={"model_type": "bert", "vocab_size": size, **_LAYERS, "max_position_embeddings": 32},
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=6,
        num_feature_levels=4,
        max_text_len=16,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(folder)
    return str(folder)


def sam(folder: Path) -> str:
    """A SAM folder."""
    torch.manual_seed(0)
    vision = SamVisionConfig(
        hidden_size=16,
        output_channels=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        mlp_dim=16,
        num_pos_feats=8,
        window_size=4,
        global_attn_indexes=[0],
    )
    prompt = SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_depth=2, iou_head_hidden_dim=16
    )
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    SamModel(config).save_pretrained(folder)
    SamImageProcessorPil(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    ).save_pretrained(folder)
    return str(folder)
