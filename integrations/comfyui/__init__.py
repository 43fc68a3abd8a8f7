"""Nodes of ComfyUI for RealCustom: copy or link this folder into ComfyUI's `custom_nodes`."""

from __future__ import annotations

from .nodes import Load, Sample, ShowSubject

NODE_CLASS_MAPPINGS = {"RealCustomLoad": Load, "RealCustomSubject": ShowSubject, "RealCustomSample": Sample}
NODE_DISPLAY_NAME_MAPPINGS = {
    "RealCustomLoad": "RealCustom: base and adapter",
    "RealCustomSubject": "RealCustom: subject",
    "RealCustomSample": "RealCustom: sample",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
