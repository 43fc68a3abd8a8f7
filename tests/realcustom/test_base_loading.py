"""A base from a folder with variants, from one file, or as a loaded pipeline; weights that do not fit are named."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPAGPipeline, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig

from realcustom import RealCustomPipeline, Subject
from realcustom.attention import DecoupledAttentionProcessor
from realcustom.base_loading import load_base
from realcustom.checkpoint import load_adapter, save_adapter
from realcustom.config import override
from realcustom.errors import MissingFile, UsageError
from realcustom.image_encoder import load_image_encoder
from realcustom.settings import ImageEncoderSettings
from tests.support import tiny
from tests.support.single_file import write_single_file

Picture = Callable[[int], Image.Image]
PROMPT = "a dog on grass"


def latents(pipe: Any, *subjects: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent"}
    images: Tensor = pipe(PROMPT, *subjects, generator=torch.Generator().manual_seed(3), **arguments).images
    return images


def adapted(tiny_models: tiny.TinyModels, base: Any, **options: Any) -> RealCustomPipeline:
    return RealCustomPipeline.from_pretrained(base, tiny_models.adapter, tiny_models.image_encoder, **options)


def test_a_loaded_pipeline_is_used_as_it_is(
    pipeline: RealCustomPipeline, tiny_models: tiny.TinyModels, picture: Picture
) -> None:
    """Its parts, scheduler, dtype and changes; with an adapter its UNet has our processors, and gives the same bits."""
    stock = StableDiffusionPipeline.from_pretrained(tiny_models.base, safety_checker=None)
    before, parts = latents(stock), dict(stock.components)
    ours = adapted(tiny_models, stock)
    assert ours.diffusers is stock and ours.components == parts and ours.base.identity == pipeline.base.identity
    assert not any(parameter.requires_grad for parameter in stock.unet.parameters())
    assert {type(one) for one in stock.unet.attn_processors.values()} == {DecoupledAttentionProcessor}
    assert torch.equal(latents(stock), before)
    dog = [Subject(image=picture(0), word="dog")]
    assert torch.equal(latents(ours, dog), latents(pipeline, dog))
    with pytest.raises(UsageError, match="holds the adapter of another RealCustomPipeline"):
        adapted(tiny_models, stock)


def test_a_loaded_pipeline_without_an_adapter_stays_stock(picture: Picture) -> None:
    stock = tiny.tiny_pipeline().to(torch.bfloat16)
    processors = stock.unet.attn_processors
    ours = RealCustomPipeline.from_pretrained(stock)
    assert ours.unet.attn_processors == processors and ours.dtype is torch.bfloat16


def state_of(pipe: Any) -> tuple[Any, ...]:
    """All of a pipeline's models that loading an adapter may touch."""
    models = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    modules = [(module, module.training, dict(module.named_children())) for one in models for module in one.modules()]
    parameters = [(id(one), one.requires_grad, one.device) for model in models for one in model.parameters()]
    return modules, parameters, pipe.unet.attn_processors


def without_a_tensor(adapter: str, folder: Path) -> str:
    """An adapter that does not fit."""
    found, path = load_adapter(adapter), folder / "wrong.safetensors"
    save_adapter(path, replace(found, tensors=dict(list(found.tensors.items())[1:])))
    return str(path)


@pytest.mark.parametrize("fault", ["adapter", "encoder", "device", "settings", "used"])
def test_a_failed_load_leaves_a_loaded_pipeline_as_it_was(
    tiny_models: tiny.TinyModels, tmp_path: Path, fault: str
) -> None:
    """Its layers, attention processors, modes and gradients; a right adapter loads afterwards."""
    stock = tiny.tiny_pipeline()
    stock.unet.train()
    stock.unet.conv_in.requires_grad_(False)
    if fault == "used":
        adapted(tiny_models, stock)
        stock.unet.train().requires_grad_(True)
    before, expected = state_of(stock), latents(stock)
    models: dict[str, Any] = {"adapter": tiny_models.adapter, "image_encoder": tiny_models.image_encoder}
    if fault == "adapter":
        models["adapter"] = without_a_tensor(tiny_models.adapter, tmp_path)
    if fault == "settings":  # the program makes a warning of them an error
        idle = override(tiny.tiny_settings(), {"guidance": {"rescale_by_mask": True}})
        path = tmp_path / "adapter.safetensors"
        models["adapter"] = tiny.tiny_adapter(path, tiny_models.base, tiny_models.image_encoder, idle)
    if fault == "encoder":
        models["image_encoder"] = str(tmp_path / "none")
    with pytest.raises((UsageError, UserWarning, RuntimeError)), warnings.catch_warnings():
        warnings.simplefilter("error")
        RealCustomPipeline.from_pretrained(stock, **models, device="none" if fault == "device" else None)
    assert state_of(stock) == before and torch.equal(latents(stock), expected)
    if fault != "used":
        assert torch.equal(latents(adapted(tiny_models, stock)), expected)


@pytest.mark.parametrize("first", [None, "adapter"])
def test_a_further_adapter_that_fails_leaves_the_base_as_it_was(
    tiny_models: tiny.TinyModels, tmp_path: Path, first: str | None
) -> None:
    stock = tiny.tiny_pipeline()
    pipe = adapted(tiny_models, stock) if first else RealCustomPipeline.from_pretrained(stock)
    before, expected = state_of(stock), latents(pipe)
    wrong = without_a_tensor(tiny_models.adapter, tmp_path)
    with pytest.raises(UsageError, match="the adapter does not fit"):
        pipe.with_adapter(wrong, tiny_models.image_encoder)
    assert state_of(stock) == before and torch.equal(latents(pipe), expected)


@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, StableDiffusionPAGPipeline])
def test_loaded_pipelines_of_another_class_are_refused(tiny_models: tiny.TinyModels, kind: Any) -> None:
    """Such as those of perturbed-attention guidance, which replaces attention processors."""
    others = {name: part for name, part in tiny.tiny_pipeline().components.items() if name != "image_encoder"}
    with pytest.raises(UsageError, match=rf"the base is a {kind.__name__}: give a StableDiffusionPipeline"):
        adapted(tiny_models, kind(**others, requires_safety_checker=False))


def test_loaded_pipelines_that_cannot_be_used(tiny_models: tiny.TinyModels) -> None:
    stock = tiny.tiny_pipeline()
    with pytest.raises(UsageError, match="variant, dtype: the base is loaded already"):
        adapted(tiny_models, stock, variant="fp16", torch_dtype=torch.float16)
    sides = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    stock.safety_checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=sides))
    with pytest.warns(UserWarning, match="the base's safety_checker is not run here"):
        adapted(tiny_models, stock)


def test_the_dtype_under_both_of_diffusers_names(tiny_models: tiny.TinyModels) -> None:
    for name in ("dtype", "torch_dtype"):
        named: dict[str, Any] = {name: torch.float16}
        assert RealCustomPipeline.from_pretrained(tiny_models.base, **named).dtype is torch.float16
    for said, named in (
        ("give dtype or torch_dtype, not both", {"dtype": torch.float16, "torch_dtype": torch.float16}),
        (r"dtype is a torch\.dtype, such as torch\.float16, got 'float16'", {"torch_dtype": "float16"}),
    ):
        with pytest.raises(UsageError, match=said):
            RealCustomPipeline.from_pretrained(tiny_models.base, **named)


def test_models_are_named_by_texts_and_paths(tiny_models: tiny.TinyModels) -> None:
    base, adapter, encoder = map(Path, (tiny_models.base, tiny_models.adapter, tiny_models.image_encoder))
    assert RealCustomPipeline.from_pretrained(base, adapter, encoder).model is not None
    wrong: Any
    for wrong in (tiny.tiny_unet(), None):
        with pytest.raises(UsageError, match=f"or a loaded pipeline of diffusers, got a {type(wrong).__name__}"):
            RealCustomPipeline.from_pretrained(wrong)
    wrong = object()
    with pytest.raises(UsageError, match="image_encoder is a folder or a hub id, got a object"):
        RealCustomPipeline.from_pretrained(base, adapter, wrong)


def test_a_variant_and_the_formats_of_weights(tiny_models: tiny.TinyModels, tmp_path: Path) -> None:
    stock = tiny.tiny_pipeline()
    stock.save_pretrained(tmp_path / "fp16", variant="fp16")
    expected = latents(stock)
    assert torch.equal(latents(RealCustomPipeline.from_pretrained(tmp_path / "fp16", variant="fp16")), expected)
    with pytest.raises(UsageError, match="cannot load the base model"):
        RealCustomPipeline.from_pretrained(tmp_path / "fp16")
    stock.save_pretrained(tmp_path / "pickles", safe_serialization=False)
    assert torch.equal(latents(RealCustomPipeline.from_pretrained(tmp_path / "pickles")), expected)
    with pytest.raises(UsageError, match="cannot load the base model"):
        RealCustomPipeline.from_pretrained(tmp_path / "pickles", use_safetensors=True)


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")  # diffusers' own, where it asks the hub
def test_options_of_the_hub_reach_it(tmp_path: Path) -> None:
    """Nothing is downloaded here: the cache of its own is asked, and has nothing."""
    with pytest.raises(UsageError, match="cannot load the base model owner/model"):
        RealCustomPipeline.from_pretrained(
            "owner/model", cache_dir=tmp_path, local_files_only=True, token="secret", revision="v2"
        )
    with pytest.raises(UsageError, match="names a revision and so does revision=v2"):
        RealCustomPipeline.from_pretrained("owner/model@v1", revision="v2")
    with pytest.raises(TypeError, match="custom_pipeline"):
        RealCustomPipeline.from_pretrained("owner/model", custom_pipeline="x")  # type: ignore[call-arg]


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file(tmp_path: Path, suffix: str) -> None:
    stock = tiny.tiny_pipeline(kl=True)
    stock.save_pretrained(tmp_path / "configuration")
    path = write_single_file(tmp_path / "model.safetensors", stock)
    if suffix == ".ckpt":
        weights = safetensors.torch.load_file(path)
        path = str(tmp_path / "model.ckpt")
        torch.save({"state_dict": weights}, path)
    ours = RealCustomPipeline.from_pretrained(path, config=str(tmp_path / "configuration"))
    assert torch.equal(latents(ours), latents(stock))
    assert ours.base.identity.startswith(f"model{suffix}@sha256-") and str(tmp_path) not in ours.base.identity


def test_single_files_that_cannot_be_used(tiny_models: tiny.TinyModels, tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="there is no such file"):
        RealCustomPipeline.from_pretrained(tmp_path / "none.safetensors")
    path = write_single_file(tmp_path / "model.safetensors", tiny.tiny_pipeline(kl=True))
    with pytest.raises(UsageError, match=r"variant: the base .* is a single file, which has no variants"):
        RealCustomPipeline.from_pretrained(path, variant="fp16")
    with pytest.raises(UsageError, match="config=x is for a single file"):
        RealCustomPipeline.from_pretrained(tiny_models.base, config="x")
    weights = safetensors.torch.load_file(path)
    refiner = "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"
    safetensors.torch.save_file({**weights, refiner: torch.zeros(4)}, path)
    with pytest.raises(UsageError, match="is a 'xl_refiner' checkpoint"):
        RealCustomPipeline.from_pretrained(path, config=tiny_models.base)


Change = Callable[[dict[str, Tensor]], None]


def _reshape(weights: dict[str, Tensor]) -> None:
    name = next(name for name, value in weights.items() if value.ndim == 2)
    weights[name] = torch.zeros(3, 5)


def _remove(weights: dict[str, Tensor]) -> None:
    del weights[next(name for name, value in weights.items() if value.ndim == 2)]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(("change", "said"), [(_reshape, "shape"), (_remove, "lacks weights")])
def test_weights_that_do_not_fit_their_configuration(tmp_path: Path, part: str, change: Change, said: str) -> None:
    """One sentence with the part and the weight; diffusers and transformers draw weights that are missing."""
    base = tiny.tiny_base(tmp_path / "base", kl=True)
    (file,) = (tmp_path / "base" / part).glob("*.safetensors")
    weights = safetensors.torch.load_file(file)
    change(weights)
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    with pytest.raises(UsageError, match=f"{part}.*{said}.*weight") as caught:
        load_base(base)
    assert "\n" not in str(caught.value)


def test_a_vae_of_an_old_diffusers_lacks_nothing(tmp_path: Path) -> None:
    """Its attention had other names, which diffusers translates."""
    base = tiny.tiny_base(tmp_path / "base", kl=True)
    (file,) = (tmp_path / "base" / "vae").glob("*.safetensors")
    weights = safetensors.torch.load_file(file)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        names = [name for name in weights if f"attentions.0.{new}" in name]
        weights |= {name.replace(new, old): weights.pop(name) for name in names}
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    parts = zip(load_base(base).vae.parameters(), tiny.tiny_vae(kl=True).parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in parts)


def test_a_tokenizer_of_another_format_is_named(tmp_path: Path) -> None:
    base = tiny.tiny_base(tmp_path / "base")
    (tmp_path / "base" / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match=r"cannot load the base model .*: its files lack 'added_tokens'"):
        load_base(base)


@pytest.mark.parametrize(("change", "said"), [(_reshape, "has weights of another shape"), (_remove, "lacks weights")])
def test_an_image_encoder_whose_weights_do_not_fit(
    tiny_models: tiny.TinyModels, tmp_path: Path, change: Change, said: str
) -> None:
    shutil.copytree(tiny_models.image_encoder, tmp_path / "encoder")
    file = tmp_path / "encoder" / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    change(weights)
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    with pytest.raises(UsageError, match=f"the image encoder .* {said}: .*weight"):
        load_image_encoder(str(tmp_path / "encoder"), ImageEncoderSettings())
