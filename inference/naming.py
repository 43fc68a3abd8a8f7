"""The word of an edit that names none: the only noun of its prompt, or the only one of them that its picture shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from PIL import Image

from realcustom.inference.errors import DeadlineExceeded, RequestError
from realcustom.inference.images import ImageLimits, read_picture
from realcustom.inference.settings import ServeSettings
from realcustom.phrases import words_of


class Naming(Protocol):
    """What knows nouns, and may look at pictures."""

    def nouns(self, prompt: str) -> list[str]:
        """The words of a prompt that can name a subject. Several threads may call."""
        ...

    async def shown(self, picture: Image.Image, words: Sequence[str]) -> list[str] | None:
        """Those of some words that a picture shows; None = it looks at no pictures."""
        ...


MakeNaming = Callable[[], Naming]  # called in each process of the API


async def name_subject(prompt: str, pictures: Sequence[str], settings: ServeSettings, naming: Naming | None) -> str:
    """The word of an edit's picture.

    Args:
        pictures: base64 of each; a prompt's words are not shared out among several.
        naming: None = an edit must have its word.
    Raises:
        RequestError: there is not exactly one; the message lists the prompt's words. NotAnImage, TooLarge. DeadlineExceeded
            where others' pictures are looked at for too long.
    """
    nouns = [] if naming is None or len(pictures) != 1 else await asyncio.to_thread(naming.nouns, prompt)
    if len(nouns) == 1:
        return nouns[0]
    if naming is not None and nouns:
        picture = await asyncio.to_thread(_decoded, pictures[0], settings)
        try:
            async with asyncio.timeout(settings.deadline_seconds):
                shown = await naming.shown(picture, nouns)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the picture was not looked at in time; say its word: {', '.join(nouns)}"
            ) from error
        if shown is not None and len(shown) == 1:
            return shown[0]
        if shown is not None:
            found = f"shows several of the prompt's words ({', '.join(shown)})" if shown else "shows none that is found"
            raise RequestError(f"word: say which word is meant: {', '.join(nouns)}; the picture {found}", "word")
    choice = ", ".join(nouns or words_of(prompt[:1000])) or "none"
    raise RequestError(f"word: say which word of the prompt the picture shows; there are: {choice}", "word")


def _decoded(picture: str, settings: ServeSettings) -> Image.Image:
    limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    return read_picture(picture, limits, "image").decode()
