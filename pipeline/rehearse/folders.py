"""Folders of models as the hub has them: the real classes and sizes, random weights, and tokenizers without their words.

A tokenizer has the public vocabulary's size and special tokens; its words are letters, the rest has no meaning.
"""

from __future__ import annotations

import importlib
import json
import string
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers.convert_slow_tokenizer import bytes_to_unicode

from realcustom.maps import text_cross_attentions
from realcustom.pipeline.rehearse.public import Part, PublicModel

_CLIP_SIZE, _BERT_SIZE = 49408, 30522
# BERT's own numbers: Grounding DINO's code looks for the full stop and the question mark by them.
_BERT = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
_BLIP = {30522: "[DEC]", 30523: "[ENC]"}


def make_model(part: Part) -> nn.Module:
    """The model of a part, with its class's own initial weights, in torch's default dtype and on its default device."""
    assert part.kind is not None
    library = _library(part.kind)
    cls = getattr(library, part.kind)
    if library is diffusers:
        made: nn.Module = cls.from_config(dict(part.config))
    else:
        made = cls(cls.config_class(**_with_labels(part.config)))
    return made.eval().requires_grad_(False)


def count(part: Part) -> tuple[nn.Module, int | None]:
    """The model without weights, and of a UNet the number of its text cross-attentions. Takes seconds."""
    with torch.device("meta"):
        model = make_model(part)
    return model, len(text_cross_attentions(model)) if part.cross_attentions is not None else None


def parameters(model: nn.Module, submodules: tuple[str, ...] = ()) -> int:
    """The number of parameters of a model, or of some of its submodules."""
    modules = [model.get_submodule(name) for name in submodules] or [model]
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def write_folder(model: PublicModel, folder: Path, dtype: torch.dtype) -> None:
    """Write a folder that the libraries load as if it were the hub's, part by part: one is in memory at a time."""
    for name, part in model.parts.items():
        _write_part(part, folder / name, dtype)
    if model.pipeline is None:
        return
    index: dict[str, Any] = {"_class_name": model.pipeline, "_diffusers_version": diffusers.__version__}
    for name, part in model.parts.items():
        kind = part.kind or "CLIPTokenizer"
        index[name] = [_library(kind).__name__, kind]
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))


def _write_part(part: Part, folder: Path, dtype: torch.dtype) -> None:
    if part.kind is not None and part.kind.endswith("Scheduler"):
        getattr(diffusers, part.kind).from_config(dict(part.config)).save_pretrained(folder)
    elif part.kind is not None:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # made in it: a cast would need both
        try:
            model: Any = make_model(part)
        finally:
            torch.set_default_dtype(before)
        model.save_pretrained(folder)
    if part.processor is not None:
        kind, settings = part.processor
        _processor(kind)(**settings).save_pretrained(folder)
    if part.tokenizer is not None:
        make_tokenizer(part.tokenizer, len(_BLIP) if "Blip" in (part.kind or "") else 0).save_pretrained(folder)


def make_tokenizer(rules: str, extra: int = 0) -> Any:
    """A tokenizer of the public size by CLIP's or BERT's rules; `extra`: BLIP's two further tokens."""
    if rules == "clip":
        symbols = list(bytes_to_unicode().values())
        named = {i: symbol for i, symbol in enumerate([*symbols, *(symbol + "</w>" for symbol in symbols)])}
        named |= {_CLIP_SIZE - 2: "<|startoftext|>", _CLIP_SIZE - 1: "<|endoftext|>"}
        return transformers.CLIPTokenizer(vocab=_filled(named, _CLIP_SIZE), merges=[], model_max_length=77)
    assert rules == "bert", rules
    named = dict(_BERT)
    letters = string.ascii_lowercase + string.digits
    named |= {2000 + i: piece for i, piece in enumerate([*letters, *("##" + letter for letter in letters)])}
    special: dict[str, Any] = {}
    if extra:
        named |= _BLIP
        special = {"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]}
    vocabulary = _filled(named, _BERT_SIZE + extra)
    return transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=512, **special)


def _filled(named: dict[int, str], size: int) -> dict[str, int]:
    return {named.get(i, f"[unused{i}]"): i for i in range(size)}


def _with_labels(config: Any) -> dict[str, Any]:
    """A configuration whose labels have numbers, which JSON cannot give them."""
    plain = dict(config)
    if "id2label" in plain:
        plain["id2label"] = {int(number): label for number, label in plain["id2label"].items()}
    return plain


def _library(kind: str) -> Any:
    return diffusers if hasattr(diffusers, kind) else transformers


def _processor(kind: str) -> Any:
    """An image processor's class: transformers does not show those without torchvision at its top."""
    if hasattr(transformers, kind):
        return getattr(transformers, kind)
    name = kind.removesuffix("ImageProcessorPil").lower()
    return getattr(importlib.import_module(f"transformers.models.{name}.image_processing_pil_{name}"), kind)


def write_heads(folder: Path, width: int) -> str:
    """Random heads on an image embedding of that width; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {"aesthetic.weight": torch.randn(1, width, generator=generator), "aesthetic.bias": torch.zeros(1)}
    save_file(tensors, folder / "heads.safetensors")
    return str(folder)
