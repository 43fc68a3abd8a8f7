"""From photographs and a prompt to images, mask strips and the settings that made them. torch is imported last."""

from __future__ import annotations

import io
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.pipeline.configure import to_yaml
from realcustom.pipeline.inputs import image_encoder_for, require_base, require_path

if TYPE_CHECKING:
    import torch

    from realcustom.diffusion_pipeline import RealCustomPipeline

SETTINGS_FILE = "settings.yaml"
MASK_CELL = 64  # pixels a side of one mask on a strip
_OURS = re.compile(r"(image|masks)-\d+\.png|settings\.yaml")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to draw. None = as the adapter's settings (sizes: the base model's) say."""

    prompt: str
    images: tuple[str, ...] = ()  # photographs, one per subject
    words: tuple[str, ...] = ()  # the prompt's word of each subject
    base: str
    adapter: str | None
    image_encoder: str | None = None
    recipes_image_encoder: str = ""  # used for an adapter that was trained with it
    count: int = 1
    seed: int = 0  # image i is drawn from seed + i
    width: int | None = None  # pixels
    height: int | None = None  # pixels
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    subject_guidance_scale: float | None = None
    influence_scope: float | None = None
    influence_quantity: float | None = None
    use_mask: bool = True
    negative_prompt: str | None = None
    device: str | None = None


def check(request: Request, output: Path) -> list[Image.Image]:
    """Find in a fraction of a second what would fail after minutes of loading.

    Returns:
        The photographs, decoded.
    Raises:
        ValueError: the photo or word of a subject is missing or wrong, no such model, or `output` holds other files.
    """
    if len(request.images) != len(request.words):
        raise UsageError(
            f"{len(request.images)} --image and {len(request.words)} --word given; each subject needs both"
        )
    for word in request.words:
        # the exact rule is the pipeline's; only a word that is nowhere in the prompt is refused here
        letters, text = (" ".join(string.lower().split()) for string in (word, request.prompt))
        if not letters or letters not in text:
            words = ", ".join(dict.fromkeys(re.findall(r"[\w'-]+", request.prompt))) or "none"
            raise UsageError(f"--word: '{word}' is not in the prompt; its words are: {words}")
    photographs = [_open(path) for path in request.images]
    check_output(output)
    require_base(request.base)
    if request.adapter is not None:
        require_path(request.adapter, "--adapter", "adapter checkpoint")
    elif request.images:
        raise UsageError(f"--adapter: none given, and a subject needs one made for {request.base} (realcustom train)")
    return photographs


def check_output(output: Path) -> None:
    """Raise ValueError unless `output` is a folder to be, an empty one, or one that holds an earlier result only."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output: {output} is a file; name a folder")
    foreign = [path.name for path in output.iterdir() if not _OURS.fullmatch(path.name)] if output.exists() else []
    if foreign:
        raise UsageError(f"--output: {output} holds other files ({foreign[0]} ...); name a new folder")


def draw(request: Request, photographs: list[Image.Image], output: Path) -> list[Path]:
    """Load the models, draw, and write `image-I.png`, `masks-I.png` (with subjects) and settings.yaml below `output`.

    Everything is drawn before the first file is written; an earlier result in `output` is replaced.

    Returns:
        The images' paths.
    """
    import torch

    from realcustom.diffusion_pipeline import RealCustomPipeline, Subject

    encoder = image_encoder_for(request.adapter, request.image_encoder, request.recipes_image_encoder)
    pipe = RealCustomPipeline.from_pretrained(
        request.base, adapter=request.adapter, image_encoder=encoder, device=request.device
    )
    subjects = [Subject(image=image, word=word) for image, word in zip(photographs, request.words, strict=True)]
    generators = [torch.Generator().manual_seed(request.seed + i) for i in range(request.count)]
    result = pipe(
        prompt=request.prompt,
        subjects=subjects,
        height=request.height,
        width=request.width,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        subject_guidance_scale=request.subject_guidance_scale,
        influence_scope=request.influence_scope,
        influence_quantity=request.influence_quantity,
        negative_prompt=request.negative_prompt,
        generator=generators,
        num_images_per_prompt=request.count,
        return_masks=bool(subjects),
        use_mask=request.use_mask,
        callback_on_step_end=_Progress(request.num_inference_steps or pipe.settings.sampler.num_inference_steps),
    )
    files = {f"image-{i}.png": _png(image) for i, image in enumerate(result.images)}
    if result.masks:
        for i in range(request.count):
            files[f"masks-{i}.png"] = _png(mask_strip([torch.cat(step, 1)[i] for step in result.masks]))
    files[SETTINGS_FILE] = _settings(request, pipe).encode()
    return _write(files, output)


def mask_strip(masks: list[torch.Tensor]) -> Image.Image:
    """One image's masks, (subjects, h, w) in [0, 1] per step, as a picture: steps to the right, subjects downwards."""
    height, width = masks[0].shape[-2:]
    scale = max(1, MASK_CELL // max(height, width))
    pixels = np.stack([(step.float().cpu().numpy() * 255).round().astype(np.uint8) for step in masks])
    pixels = pixels.repeat(scale, axis=2).repeat(scale, axis=3)  # (steps, subjects, H, W)
    framed = np.pad(pixels, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=128)
    steps, subjects, high, wide = framed.shape
    return Image.fromarray(framed.transpose(1, 2, 0, 3).reshape(subjects * high, steps * wide))


def _settings(request: Request, pipe: RealCustomPipeline) -> str:
    return to_yaml({"request": request, "method": pipe.settings})


class _Progress:
    """Says on stderr, every few seconds, which step is done."""

    def __init__(self, steps: int, every: float = 3.0) -> None:
        self._steps, self._every, self._said = steps, every, time.monotonic()

    def __call__(self, pipe: RealCustomPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if time.monotonic() - self._said > self._every:
            self._said = time.monotonic()
            print(f"step {step + 1} of {self._steps}", file=sys.stderr, flush=True)
        return {}


def _open(path: str) -> Image.Image:
    require_path(path, "--image", "picture")
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"--image: {path} cannot be read as a picture ({error})") from error
    return image


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _write(files: dict[str, bytes], output: Path) -> list[Path]:
    check_output(output)  # it may have been filled while the models drew
    for path in output.iterdir() if output.exists() else ():
        if path.name not in files:
            path.unlink()
    for name, data in files.items():
        storage.write_bytes(output / name, data)
    return [output / name for name in files if name.startswith("image-")]
