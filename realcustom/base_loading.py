"""Load the frozen base model: from a folder, the hub or a single file, or take a stock pipeline that is there already."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import infer_diffusers_model_type, load_single_file_checkpoint
from torch import nn
from transformers import PreTrainedModel

from realcustom.base import MODELS, Base
from realcustom.errors import MissingFile, UsageError
from realcustom.identity import check_base, model_identity, split_revision
from realcustom.loading import LoadOptions, load_refusals
from realcustom.warning import warn

SINGLE_FILES = (".safetensors", ".ckpt")
FAMILIES = {"v1": StableDiffusionPipeline, "v2": StableDiffusionPipeline, "xl_base": StableDiffusionXLPipeline}

IN_MEMORY = "a pipeline made in this program"  # identity of a loaded pipeline that was made of parts

Stock: TypeAlias = StableDiffusionPipeline | StableDiffusionXLPipeline


def load_base(
    base: str | Path | DiffusionPipeline,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    options: LoadOptions | None = None,
    *,
    inpainting: bool = False,
    only: Collection[str] | None = None,
) -> Base:
    """Load a base model, or take a loaded one.

    Args:
        base: diffusers folder, hub id (`owner/name` or `owner/name@revision`), a single `.safetensors` or `.ckpt` file, or a
            StableDiffusionPipeline or StableDiffusionXLPipeline, which is used as it is: its models are frozen.
        device: None = the CPU; of a loaded pipeline: where it is.
        dtype: None = float32; of a loaded pipeline it must be None.
        inpainting: take a UNet that also reads a mask and the picture around it, too.
        only: of a folder or hub id: names of `base.MODELS` whose weights are read; the others have their shapes alone, on
            the meta device. None = all.
    Raises:
        UsageError: it is not there, lacks a part or a weight, or has another shape than SD 1.x or SDXL.
    """
    options = options or LoadOptions()
    if isinstance(base, DiffusionPipeline):
        name = str(getattr(base, "name_or_path", "") or IN_MEMORY)
        pipeline, identity = _given(base, dtype, options), model_identity(name)
    elif not isinstance(base, (str, Path)):
        raise UsageError(
            f"the base is a folder, a hub id, a single file or a loaded pipeline of diffusers, got a {type(base).__name__}"
        )
    else:
        name = str(base)
        wanted = MODELS if only is None else only
        pipeline, identity = _load(name, dtype or torch.float32, options, wanted), model_identity(name)
    loaded = Base(pipeline=pipeline, identity=identity)
    _check_shape(name, loaded, inpainting)
    for model in _models(pipeline).values():
        model.requires_grad_(False).eval()
        if device is not None and not any(parameter.is_meta for parameter in model.parameters()):
            model.to(device)
    return loaded


def _models(pipeline: Stock) -> dict[str, nn.Module]:
    models = {part: getattr(pipeline, part, None) for part in MODELS}
    return {part: model for part, model in models.items() if model is not None}


def _given(pipeline: DiffusionPipeline, dtype: torch.dtype | None, options: LoadOptions) -> Stock:
    """A pipeline that the caller has loaded."""
    if type(pipeline) not in (StableDiffusionPipeline, StableDiffusionXLPipeline):
        raise UsageError(
            f"the base is a {type(pipeline).__name__}: give a StableDiffusionPipeline or a StableDiffusionXLPipeline, which "
            "may be made of its parts (StableDiffusionPipeline.from_pipe(pipeline))"
        )
    given = [*options.given(), *(["dtype"] if dtype is not None else [])]
    if given:
        raise UsageError(
            f"{', '.join(given)}: the base is loaded already; set this where you load it, or use pipe.to(...)"
        )
    if any(parameter.is_meta for model in _models(pipeline).values() for parameter in model.parameters()):
        raise UsageError(
            "the base's weights are offloaded layer by layer: load it without enable_sequential_cpu_offload, and call that on "
            "the RealCustomPipeline"
        )
    for part in ("safety_checker", "watermark"):
        if getattr(pipeline, part, None) is not None:
            warn(f"the base's {part} is not run here: apply it to output.images")
    return pipeline


def _load(base: str, dtype: torch.dtype, options: LoadOptions, wanted: Collection[str]) -> Stock:
    if base.endswith(SINGLE_FILES):
        return _load_single_file(base, dtype, options)
    if options.config is not None:
        raise UsageError(f"config={options.config} is for a single file; {base} has its own configuration")
    check_base(base)
    with load_refusals("base model", base):
        return _load_folder(base, dtype, options, wanted)


def _load_folder(base: str, dtype: torch.dtype, options: LoadOptions, wanted: Collection[str]) -> Stock:
    name, revision = split_revision(base)
    if revision and options.revision:
        raise UsageError(f"{base} names a revision and so does revision={options.revision}: give one")
    source = {"revision": revision or options.revision, **options.hub()}
    index = DiffusionPipeline.load_config(name, **source)
    if "_class_name" not in index:
        raise UsageError(f"{base}: its model_index.json names no class of pipeline, as diffusers' does")
    files = {**source, "variant": options.variant, "use_safetensors": options.use_safetensors, "dtype": dtype}
    parts = {
        part: _load_model(base, part, kind, files) if part in wanted else _shape_of(name, part, kind, source)
        for part, kind in _classes(index).items()
    }
    if "text_encoder_2" in index:
        return StableDiffusionXLPipeline.from_pretrained(name, **files, **parts, add_watermarker=False)
    return StableDiffusionPipeline.from_pretrained(
        name, **files, **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _classes(index: dict[str, Any]) -> dict[str, Any]:
    """The models' classes as the index names them; what the libraries do not have is left to diffusers, which says so."""
    named = {part: index[part] for part in MODELS if isinstance(index.get(part), (list, tuple))}
    found = {
        part: getattr(importlib.import_module(library), name, None)
        for part, (library, name) in named.items()
        if library in ("diffusers", "transformers")
    }
    return {part: kind for part, kind in found.items() if kind is not None}


def _load_model(base: str, part: str, kind: Any, files: dict[str, Any]) -> nn.Module:
    """One model with all its weights: diffusers and transformers draw those that a file lacks, and go on."""
    name, _ = split_revision(base)
    # transformers names the weights of another shape in its report only if it may ignore them
    ignore: dict[str, Any] = {"ignore_mismatched_sizes": True} if issubclass(kind, PreTrainedModel) else {}
    try:
        loaded: Any = kind.from_pretrained(name, subfolder=part, output_loading_info=True, **files, **ignore)
    except ValueError as error:
        found = str(error).partition(" because ")[2].partition(". If you want")[0]
        if "expected shape" not in found:
            raise
        raise UsageError(f"{base}: its {part} has weights of another shape: {found}") from error
    report = loaded[1]
    mismatched = [key for key, *_ in report["mismatched_keys"]]
    for problem, keys in (("lacks weights", report["missing_keys"]), ("has weights of another shape", mismatched)):
        if keys:
            raise UsageError(f"{base}: its {part} {problem}: {', '.join(sorted(keys)[:4])}")
    model: nn.Module = loaded[0]
    return model


def _shape_of(base: str, part: str, kind: Any, source: dict[str, Any]) -> nn.Module:
    """One model without weights, as its configuration says."""
    with torch.device("meta"):
        if issubclass(kind, PreTrainedModel):
            config: Any = kind.config_class
            made: nn.Module = kind(config.from_pretrained(base, subfolder=part, **source))
        else:
            made = kind.from_config(kind.load_config(base, subfolder=part, **source))
    return made


def _load_single_file(base: str, dtype: torch.dtype, options: LoadOptions) -> Stock:
    """A checkpoint in one file, of the family that its weights' names show."""
    idle = [name for name in options.given() if name in ("variant", "use_safetensors")]
    if idle:
        raise UsageError(f"{', '.join(idle)}: the base {base} is a single file, which has no variants")
    if not base.startswith("http") and not Path(base).is_file():
        raise MissingFile(f"no base model at {base}: there is no such file")
    with load_refusals("base model", base):
        family = infer_diffusers_model_type(
            load_single_file_checkpoint(base, **options.hub(), revision=options.revision)
        )
        if family not in FAMILIES:
            raise UsageError(f"{base} is a '{family}' checkpoint: a base is of Stable Diffusion 1.x's or SDXL's shape")
        extra = (
            {"add_watermarker": False} if family == "xl_base" else {"safety_checker": None, "feature_extractor": None}
        )
        pipeline: Stock = FAMILIES[family].from_single_file(
            base, dtype=dtype, config=options.config, revision=options.revision, **options.hub(), **extra
        )
    for part, model in _models(pipeline).items():
        missing = [name for name, value in [*model.named_parameters(), *model.named_buffers()] if value.is_meta]
        if missing:
            raise UsageError(f"{base}: its {part} lacks weights: {', '.join(sorted(missing)[:4])}")
    return pipeline


def _check_shape(base: str, loaded: Base, inpainting: bool) -> None:
    pipeline = loaded.pipeline
    for suffix in ("", "_2"):
        tokenizer, encoder = (getattr(pipeline, name + suffix, None) for name in ("tokenizer", "text_encoder"))
        if tokenizer is None or encoder is None:
            continue
        known = encoder.get_input_embeddings().weight.shape[0]
        if not 2 < len(tokenizer) <= known:
            raise UsageError(
                f"{base}: tokenizer{suffix} has {len(tokenizer)} tokens, text_encoder{suffix} knows {known}: they are not "
                "of one model, or the tokenizer's files are missing"
            )
    unet = pipeline.unet.config
    if unet.in_channels != loaded.latent_channels and not (inpainting and loaded.takes_mask):
        raise UsageError(f"{base}: the UNet takes {unet.in_channels} channels, the VAE has {loaded.latent_channels}")
    wanted = "text_time" if loaded.is_sdxl else None
    other = {
        name: unet[name]
        for name in (
            "addition_embed_type",
            "class_embed_type",
            "num_class_embeds",
            "encoder_hid_dim_type",
            "time_cond_proj_dim",
        )
        if unet.get(name) != (wanted if name == "addition_embed_type" else None)
    }
    if other:
        said = ", ".join(f"{name} {value!r}" for name, value in other.items())
        raise UsageError(f"{base}: its UNet is conditioned on more than Stable Diffusion 1.x's or SDXL's ({said})")
