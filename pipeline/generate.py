"""Images, mask strips and settings from photographs and a prompt. torch is imported last."""

from __future__ import annotations

import dataclasses
import io
import itertools
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from realcustom import config
from realcustom.errors import UsageError, require_all
from realcustom.pipeline import output_folder
from realcustom.pipeline.configure import to_yaml
from realcustom.pipeline.devices import check_device
from realcustom.pipeline.inputs import (
    image_encoder_for,
    require_base,
    require_model,
    require_path,
    require_sides,
)
from realcustom.sampling import KNOBS, SamplingParams
from realcustom.store import Store

if TYPE_CHECKING:
    import torch

    from realcustom.diffusion_pipeline import RealCustomPipeline

logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.yaml"
MASK_CELL = 64  # side of one mask on a strip, pixels
_OURS = re.compile(r"(image|masks)-\d+\.png|settings\.yaml")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The inputs of a generation."""

    prompt: str
    images: tuple[str, ...] = ()  # photographs, one per subject
    words: tuple[str, ...] = ()  # the prompt's word of each subject
    base: str
    adapter: str | None
    image_encoder: str | None = None
    recipes_image_encoder: str = ""  # used if the adapter was trained with it
    device: str | None = None
    enlarge: int = 1  # times each pixel is repeated in the images that are written, each way
    sampling: SamplingParams  # with a seed


def earlier_request(files: Sequence[str]) -> dict[str, Any]:
    """What the settings.yaml of earlier generations among `files` asked for: fields of `Request`, and knobs of a call."""
    found: dict[str, Any] = {}
    for file in files:
        found |= config.load_file(file).get("request") or {}
    return found


def make_request(plain: Mapping[str, Any]) -> Request:
    """The request of plain data, in which the knobs of a call stand beside the other fields, as in settings.yaml.

    Raises UsageError for an unknown name, a missing one, or a value that is not allowed.
    """
    knobs = {knob.name: plain[knob.name] for knob in KNOBS if knob.name in plain}
    sampling = SamplingParams(**knobs)
    sampling.check()
    others = {name: value for name, value in plain.items() if name not in knobs}
    return dataclasses.replace(config.build(Request, {**others, "sampling": {}}, "request"), sampling=sampling)


def free_folder(folder: Path) -> Path:
    """`folder`, or the first of FOLDER-2, FOLDER-3 ... that is not there."""
    names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return folder if not folder.exists() else next(name for name in names if not name.exists())


def check(request: Request, output: str, overwrite: bool = False) -> list[Image.Image]:
    """Check in a fraction of a second what would fail after minutes of loading.

    Args:
        overwrite: whether an earlier result in `output` may be replaced.
    Returns:
        The photographs, decoded.
    Raises:
        UsageError: the photo or word of a subject is missing or wrong, no such model, or `output` holds files.
    """
    if len(request.images) != len(request.words):
        raise UsageError(
            f"{len(request.images)} --image and {len(request.words)} --word given; each subject needs both"
        )
    for word in request.words:
        # the pipeline has the exact rule; only a word that is nowhere in the prompt is refused here
        letters, text = (" ".join(string.lower().split()) for string in (word, request.prompt))
        if not letters or letters not in text:
            words = ", ".join(dict.fromkeys(re.findall(r"[\w'-]+", request.prompt))) or "none"
            raise UsageError(f"--word: '{word}' is not in the prompt; its words are: {words}")
    photographs = [_open(path) for path in request.images]
    output_folder.check(output, overwrite, _OURS)
    require_all(
        partial(require_base, request.base),
        partial(_require_adapter, request),
        *(
            [partial(require_model, request.image_encoder, "--image-encoder")]
            if request.image_encoder is not None
            else []
        ),
    )
    require_sides(request.base, request.sampling.width, request.sampling.height)
    return photographs


def _require_adapter(request: Request) -> None:
    if request.adapter is not None:
        require_path(request.adapter, "--adapter", "adapter checkpoint")
    elif request.images:
        raise UsageError(f"--adapter: none given, and a subject needs one made for {request.base} (realcustom train)")


def draw(request: Request, photographs: list[Image.Image], output: str, overwrite: bool = False) -> list[str]:
    """Load the models, draw, and write `image-I.png`, `masks-I.png` (with subjects) and settings.yaml below `output`.

    All images are made before the first file is written; with `overwrite` an earlier result in `output` is replaced.

    Returns:
        The images' paths or URIs.
    """
    import torch

    from realcustom.diffusion_pipeline import RealCustomPipeline, Subject

    if request.device is not None:
        check_device(request.device, "--device")
    encoder = image_encoder_for(request.adapter, request.image_encoder, request.recipes_image_encoder)
    pipe = RealCustomPipeline.from_pretrained(
        request.base, adapter=request.adapter, image_encoder=encoder, device=request.device
    )
    pipe.set_progress_bar_config(disable=True)  # a command's progress is log lines
    subjects = [Subject(image=image, word=word) for image, word in zip(photographs, request.words, strict=True)]
    steps = request.sampling.num_inference_steps or pipe.settings.sampler.num_inference_steps
    result = pipe.draw(request.prompt, subjects, request.sampling, callback_on_step_end=_Progress(steps))
    files = {f"image-{i}.png": _png(enlarged(image, request.enlarge)) for i, image in enumerate(result.images)}
    if result.masks:
        for i in range(request.sampling.n):
            files[f"masks-{i}.png"] = _png(mask_strip([torch.cat(step, 1)[i] for step in result.masks]))
    files[SETTINGS_FILE] = _settings(request, pipe).encode()
    written = output_folder.write(files, output, overwrite, _OURS)
    return [place for name, place in zip(files, written, strict=True) if name.startswith("image-")]


def enlarged(image: Image.Image, times: int) -> Image.Image:
    """The image with each pixel as a square of `times` pixels a side: a picture of 32 pixels is too small to look at."""
    return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)


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
    plain = config.to_dict(request)
    sampling = plain.pop("sampling")  # its knobs stand beside the request's own fields
    return to_yaml({"request": {**plain, **sampling}, "method": pipe.settings})


class _Progress:
    """Logs the current step every few seconds."""

    def __init__(self, steps: int, every: float = 3.0) -> None:
        self._steps, self._every, self._said = steps, every, time.monotonic()

    def __call__(self, pipe: RealCustomPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if time.monotonic() - self._said > self._every:
            self._said = time.monotonic()
            logger.info("step %d of %d", step + 1, self._steps)
        return {}


def _open(path: str) -> Image.Image:
    require_path(path, "--image", "picture")
    store = Store()
    if store.is_dir(path):
        raise UsageError(f"--image: {path} is a folder; name one picture in it")
    data = store.read(path)
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"--image: {path} cannot be read as a picture ({error})") from error
    return image


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
