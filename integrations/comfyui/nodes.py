"""Three nodes: load a base and an adapter, show a subject, sample. The package realcustom does the work.

Pictures are as ComfyUI has them: IMAGE (B, H, W, 3) and MASK (B, H, W), floats from 0 to 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from realcustom import RealCustomPipeline, SamplingParams, Subject
from realcustom.sampling import KNOBS, MAX_SEED

CATEGORY = "RealCustom"
PIPELINE, SUBJECTS = "REALCUSTOM_PIPELINE", "REALCUSTOM_SUBJECTS"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_SIDE = 16384  # also of what has no largest value
ADAPTERS = "as the adapter says"
Inputs = dict[str, dict[str, Any]]


class Load:
    """A base model with an adapter on it."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = (PIPELINE,), ("pipeline",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """Folders, files and hub ids as text."""
        return {
            "required": {
                "base": ("STRING", {"tooltip": "diffusers folder or hub id of a model of SD 1.x's or SDXL's shape"}),
                "adapter": ("STRING", {"tooltip": "adapter checkpoint, adapter.safetensors"}),
                "dtype": (list(DTYPES), {"default": "float16" if torch.cuda.is_available() else "float32"}),
            },
            "optional": {
                "image_encoder": ("STRING", {"default": "", "tooltip": "empty: the one that the adapter names"}),
            },
        }

    def load(self, base: str, adapter: str, dtype: str, image_encoder: str = "") -> tuple[RealCustomPipeline]:
        """The pipeline, on a GPU where there is one."""
        pipeline = RealCustomPipeline.from_pretrained(
            base, adapter=adapter, image_encoder=image_encoder or None, torch_dtype=DTYPES[dtype]
        )
        pipeline.set_progress_bar_config(disable=True)  # ComfyUI shows its own
        return (pipeline,)


class ShowSubject:
    """A picture and the word of the prompt that means it; connect several one after the other."""

    CATEGORY, FUNCTION = CATEGORY, "show"
    RETURN_TYPES, RETURN_NAMES = (SUBJECTS,), ("subjects",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """A picture, its word, and further subjects."""
        return {
            "required": {"image": ("IMAGE",), "word": ("STRING", {"default": "dog"})},
            "optional": {"mask": ("MASK", {"tooltip": "where the subject is"}), "others": (SUBJECTS,)},
        }

    def show(
        self, image: Tensor, word: str, mask: Tensor | None = None, others: tuple[Subject, ...] = ()
    ) -> tuple[tuple[Subject, ...]]:
        """The other subjects and this one, of the batch's first picture."""
        picture = image[0, ..., :3].cpu().clamp(0, 1)
        area = None if mask is None else mask[0].cpu().clamp(0, 1).numpy()
        return ((*others, Subject(image=picture.numpy(), word=word, mask=area)),)


def _knob(name: str, kind: str, otherwise: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """A number of a call as an input, with its range and help; the default, below the range, is `otherwise`."""
    (knob,) = (knob for knob in KNOBS if knob.name == name)
    unset = 0 if kind == "INT" else -1.0
    largest = MAX_SIDE if knob.le is None else knob.le
    return kind, {
        "default": unset,
        "min": unset,
        "max": largest,
        "tooltip": f"{knob.help}; {unset}: {otherwise}",
        **more,
    }


def _given(value: float) -> Any:
    """A number of a call; None for the default of an input, which leaves it to the adapter."""
    return None if value < 0 or (value == 0 and isinstance(value, int)) else value


class Sample:
    """Images of a prompt, and where the subjects acted in them at the last step."""

    CATEGORY, FUNCTION = CATEGORY, "sample"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "MASK"), ("images", "masks")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """A call's knobs, with the ranges that they have everywhere."""
        return {
            "required": {
                "pipeline": (PIPELINE,),
                "prompt": ("STRING", {"multiline": True, "default": "a dog in the snow"}),
                "seed": ("INT", {"default": 0, "min": 0, "max": MAX_SEED}),
                "images": ("INT", {"default": 1, "min": 1, "max": 64, "tooltip": "image i is that of seed + i alone"}),
                "width": _knob("width", "INT", "the base's own", step=8),
                "height": _knob("height", "INT", "the base's own", step=8),
                "steps": _knob("num_inference_steps", "INT", ADAPTERS),
                "guidance_scale": _knob("guidance_scale", "FLOAT", ADAPTERS, step=0.1),
                "subject_guidance_scale": _knob("subject_guidance_scale", "FLOAT", ADAPTERS, step=0.1),
                "influence_scope": _knob("influence_scope", "FLOAT", ADAPTERS, step=0.01),
            },
            "optional": {
                "subjects": (SUBJECTS,),
                "negative_prompt": ("STRING", {"multiline": True, "default": ""}),
            },
        }

    def sample(
        self,
        pipeline: RealCustomPipeline,
        prompt: str,
        seed: int,
        images: int = 1,
        width: int = 0,
        height: int = 0,
        steps: int = 0,
        guidance_scale: float = -1.0,
        subject_guidance_scale: float = -1.0,
        influence_scope: float = -1.0,
        subjects: tuple[Subject, ...] = (),
        negative_prompt: str = "",
    ) -> tuple[Tensor, Tensor]:
        """Images (images, H, W, 3) and masks (images, H*, W*); image i is that of seed + i alone."""
        sampling = SamplingParams(
            n=images,
            seed=seed,
            width=_given(width),
            height=_given(height),
            num_inference_steps=_given(steps),
            guidance_scale=_given(guidance_scale),
            subject_guidance_scale=_given(subject_guidance_scale),
            influence_scope=_given(influence_scope),
            negative_prompt=negative_prompt or None,
            return_masks=bool(subjects),
        )
        told = _tell(steps or pipeline.settings.sampler.num_inference_steps)
        output = pipeline.draw(prompt, subjects, sampling, callback_on_step_end=told)
        pixels = torch.stack([_pixels(image) for image in output.images])
        if output.masks:
            return pixels, torch.cat(output.masks[-1], 1).amax(1).float().cpu()  # of all subjects
        return pixels, torch.zeros(pixels.shape[:3])


def _pixels(image: Any) -> Tensor:
    width, height = image.size
    return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(height, width, 3) / 255


def _tell(steps: int) -> Callable[..., dict[str, Any]] | None:
    """A callback that shows each step in ComfyUI and stops when its user does; None where ComfyUI does not run."""
    if "comfy" not in sys.modules:
        return None
    from comfy.model_management import throw_exception_if_processing_interrupted
    from comfy.utils import ProgressBar

    bar = ProgressBar(steps)

    def told(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        throw_exception_if_processing_interrupted()
        bar.update_absolute(step + 1)
        return {}

    return told
