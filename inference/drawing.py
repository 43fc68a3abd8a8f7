"""A request whose pictures are decoded and checked: what goes from the API to an engine, in this process or another."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from realcustom.inference.errors import RequestError, TooLarge
from realcustom.inference.images import EncodedPicture, ImageLimits, read_picture
from realcustom.inference.schema import ImagesRequest, SubjectRequest
from realcustom.inference.settings import ServeSettings
from realcustom.sampling import MAX_SEED, SamplingParams


@dataclass(frozen=True, kw_only=True)
class SubjectPart:
    """A subject of a request: its picture, or the id under which an engine holds it."""

    image: Image.Image | None
    mask: Image.Image | None
    id: str | None
    chosen: dict[str, Any] = field(default_factory=dict)  # word, occurrence and scope


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A request, ready for an engine."""

    request: ImagesRequest  # without its subjects
    subjects: tuple[SubjectPart, ...]
    sampling: SamplingParams  # with a seed
    deadline_seconds: float | None  # from the engine's taking it to its last step; None = the engine's own
    max_pixels: int  # width x height of an image, of this server and of who asks
    max_steps: int  # the same for denoising steps
    owner: str = ""  # who asks: places in a step go round among owners
    edit: bool = False  # of `/v1/images/edits`
    words: list[str] | None = None  # of an edit's subjects, which the answer names

    def check(self, width: int, height: int, steps: int) -> None:
        """Refuse what is over a limit, also where the request leaves it to the model. Raises RequestError."""
        if width * height > self.max_pixels:
            raise RequestError(f"size: {width}x{height} is over the limit of {self.max_pixels} pixels", "size")
        if steps > self.max_steps:
            message = f"num_inference_steps: {steps} is more than the limit of {self.max_steps}"
            raise RequestError(message, "num_inference_steps")


def read_drawing(
    request: ImagesRequest,
    settings: ServeSettings,
    deadline_seconds: float | None,
    *,
    owner: str = "",
    edit: bool = False,
    words: list[str] | None = None,
) -> Drawing:
    """Decode the request's pictures, which takes a while. Raises RequestError of the kind that says what is wrong."""
    limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    headers = [_headers(subject, limits, f"subjects[{i}]") for i, subject in enumerate(request.subjects)]
    pixels = sum(picture.pixels for pair in headers for picture in pair if picture is not None)
    if pixels > settings.max_request_pixels:  # limits the memory of one place in the queue
        limit = settings.max_request_pixels
        raise TooLarge(f"subjects: {pixels} pixels in all pictures are over this server's limit of {limit}", "subjects")
    subjects = tuple(_subject(subject, *pair) for subject, pair in zip(request.subjects, headers, strict=True))
    sampling = request.sampling()
    if sampling.seed is None:
        seed = random.SystemRandom().randint(0, MAX_SEED - settings.max_n)
        sampling = dataclasses.replace(sampling, seed=seed)
    return Drawing(
        request=request.model_copy(update={"subjects": []}),
        subjects=subjects,
        sampling=sampling,
        deadline_seconds=deadline_seconds,
        max_pixels=settings.max_pixels,
        max_steps=settings.max_steps,
        owner=owner,
        edit=edit,
        words=words,
    )


def decode_mask(encoded: EncodedPicture | None, image: Image.Image) -> Image.Image | None:
    """A picture's mask, of its size. Raises RequestError."""
    if encoded is None:
        return None
    mask, param = encoded.decode().convert("L"), encoded.param
    if mask.size != image.size:
        sizes = f"{mask.width} x {mask.height}, the picture {image.width} x {image.height}"
        raise RequestError(f"{param}: the mask is {sizes}; they must be the same", param)
    return mask


def read_pair(
    image: str, mask: str | None, limits: ImageLimits, where: str = ""
) -> tuple[EncodedPicture, EncodedPicture | None]:
    """A subject's picture and mask, not decoded yet. `where` comes before their fields' names. Raises RequestError."""
    picture = read_picture(image, limits, f"{where}image")
    return picture, None if mask is None else read_picture(mask, limits, f"{where}mask")


def _headers(
    subject: SubjectRequest, limits: ImageLimits, where: str
) -> tuple[EncodedPicture | None, EncodedPicture | None]:
    return (None, None) if subject.image is None else read_pair(subject.image, subject.mask, limits, f"{where}.")


def _subject(subject: SubjectRequest, encoded: EncodedPicture | None, mask: EncodedPicture | None) -> SubjectPart:
    chosen = {"word": subject.word, "occurrence": subject.occurrence, "scope": subject.scope}
    if encoded is None:
        return SubjectPart(image=None, mask=None, id=subject.id, chosen=chosen)
    image = encoded.decode()
    return SubjectPart(image=image, mask=decode_mask(mask, image), id=None, chosen=chosen)
