"""What a RealCustomPipeline takes over from diffusers' stock pipeline: a list, so that nothing is accepted and ignored.

A name of the stock pipeline is forwarded to it (the base of the call, so it takes effect), refused with the way out, or
refused because this call does not read it.
"""

from __future__ import annotations

from typing import Any

from realcustom.errors import UsageError

FORWARDED = frozenset(
    {
        # what it is made of
        *("components", "config", "device", "dtype", "hf_device_map", "name_or_path", "image_processor"),
        *("_execution_device", "unet_name", "text_encoder_name"),
        # LoRA
        *("load_lora_weights", "unload_lora_weights", "fuse_lora", "unfuse_lora", "enable_lora", "disable_lora"),
        *("set_adapters", "delete_adapters", "get_active_adapters", "get_list_adapters", "set_lora_device"),
        *("enable_lora_hotswap", "lora_state_dict", "load_lora_into_unet", "load_lora_into_text_encoder", "lora_scale"),
        *("fused_loras", "num_fused_loras", "save_lora_weights"),
        # text
        *("load_textual_inversion", "unload_textual_inversion", "maybe_convert_prompt", "encode_prompt"),
        # the UNet's skip connections, the VAE, the bar
        *("enable_freeu", "disable_freeu", "upcast_vae", "numpy_to_pil", "progress_bar", "set_progress_bar_config"),
        # hooks of offload
        *("maybe_free_model_hooks", "remove_all_hooks", "reset_device_map"),
    }
)

_SLICING = (
    "attention slicing replaces the attention processors, and with them the subject's attention: leave it off "
    "(scaled-dot-product attention needs no more memory); VAE slicing and tiling, and offload, work"
)
_XFORMERS = (
    "xformers replaces the attention processors, and with them the subject's attention: leave it off (torch's "
    "scaled-dot-product attention is as fast and needs no more memory)"
)
_FUSED = "fused projections replace the attention processors, and with them the subject's attention: leave them apart"
_IP_ADAPTER = (
    "an IP-Adapter replaces the attention processors, and with them the subject's attention: show the picture as "
    "subjects=[Subject(image=..., word=...)]"
)
REFUSED = {
    "enable_attention_slicing": _SLICING,
    "disable_attention_slicing": "attention slicing is off already, and cannot be on here: leave this call out",
    "set_attention_slice": _SLICING,
    "enable_xformers_memory_efficient_attention": _XFORMERS,
    "disable_xformers_memory_efficient_attention": "xformers is off already, and cannot be on here: leave this call out",
    "set_use_memory_efficient_attention_xformers": _XFORMERS,
    "fuse_qkv_projections": _FUSED,
    "unfuse_qkv_projections": "the projections are apart already, and cannot be fused here: leave this call out",
    "load_ip_adapter": _IP_ADAPTER,
    "unload_ip_adapter": "no IP-Adapter can be loaded here: leave this call out",
    "set_ip_adapter_scale": _IP_ADAPTER,
    "encode_image": "a subject's picture is encoded by pipe.encode_subject(image)",
    "prepare_ip_adapter_image_embeds": _IP_ADAPTER,
    "enable_group_offload": "group offload does not know the adapter's modules: use enable_model_cpu_offload()",
    "push_to_hub": "save with pipe.save_pretrained(folder) and upload the folder (hf upload OWNER/NAME FOLDER)",
    "run_safety_checker": "no safety checker is run here: apply your own to output.images",
}
# parts and settings of the stock call that ours has not; setting them to None or False is what ours does anyway
UNUSED = ("safety_checker", "feature_extractor", "requires_safety_checker", "watermark")


class NotOffered(UsageError, AttributeError):
    """An attribute of diffusers' pipelines that this one refuses; `hasattr` is False."""


def stock_attribute(pipeline: Any, name: str) -> Any:
    """An attribute of the stock pipeline that takes effect here. Raises NotOffered, or AttributeError if nobody has it."""
    if name in FORWARDED or name in pipeline.components or name in UNUSED:
        return getattr(pipeline, name)
    if name in REFUSED:
        raise NotOffered(REFUSED[name])
    if hasattr(type(pipeline), name) or hasattr(pipeline, name):  # some are there after a call alone
        raise NotOffered(f"{name} is not read by a RealCustomPipeline; the stock pipeline's is pipe.diffusers.{name}")
    raise AttributeError(f"'RealCustomPipeline' object has no attribute '{name}'")


def assign_to_stock(pipeline: Any, name: str, value: Any) -> bool:
    """Replace a part of the stock pipeline; False if it has no such attribute.

    Raises NotOffered for what the call does not read.
    """
    if name == "unet":
        raise NotOffered(
            "the UNet holds the adapter and cannot be replaced: load the pipeline again with another base; to compile it, "
            "pipe.compile()"
        )
    if name in UNUSED and value:
        raise NotOffered(f"{name} is not used here: apply it to output.images")
    if name not in pipeline.components and name not in UNUSED:
        if hasattr(type(pipeline), name) or hasattr(pipeline, name):
            raise NotOffered(f"{name} is not read by a RealCustomPipeline; setting it would change nothing")
        return False
    setattr(pipeline, name, value)
    return True
