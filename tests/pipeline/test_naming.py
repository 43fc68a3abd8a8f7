"""The word of an edit that names none, with the detector that ships with the repository."""

from __future__ import annotations

import asyncio
import base64
import io
import pickle
from functools import partial

import pytest
from PIL import Image

from realcustom.errors import UsageError
from realcustom.inference.edits import Edit, parse_edit
from realcustom.inference.errors import RequestError
from realcustom.inference.settings import ServeSettings
from realcustom.pipeline.naming import MAX_NOUNS, Naming
from realcustom.pipeline.recipes import sprites
from realcustom.sprites.world import NOUNS, Scene, Split, draw, scene

SETTINGS = sprites().serve


@pytest.fixture(scope="module")
def naming() -> Naming:
    return Naming(SETTINGS.detector)


def _picture(item: Scene) -> Image.Image:
    return Image.fromarray(draw(item).image)


def _edit(picture: Image.Image, prompt: str, naming: Naming, settings: ServeSettings = SETTINGS) -> Edit:
    """The form of an edit without a word, read."""
    png = io.BytesIO()
    picture.save(png, "PNG")
    parts = {"prompt": prompt, "image": base64.b64encode(png.getvalue()).decode()}
    body = "".join(f'--x\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in parts.items())
    return asyncio.run(parse_edit(f"{body}--x--\r\n".encode(), "multipart/form-data; boundary=x", settings, naming))


def test_the_noun_that_the_picture_shows_is_the_word(naming: Naming) -> None:
    right = 0
    for number in range(16):
        item = scene(Split.EVALUATION, 10**9 + number)
        own = item.subjects[0].identity.noun
        other = NOUNS[(NOUNS.index(own) + 1 + number % (len(NOUNS) - 1)) % len(NOUNS)]
        prompt = f"a {other} and a {own} at night" if number % 2 else f"a {own} beside a {other}"
        try:
            found = _edit(_picture(item), prompt, naming)
        except RequestError as error:
            assert error.param == "word" and own in error.message and other in error.message
            continue
        assert found.words is not None and [one.word for one in found.request.subjects] == found.words
        right += found.words == [own]
    assert right >= 14


def test_two_that_are_there_are_named(naming: Naming) -> None:
    item = scene(Split.EVALUATION, 10**9, second=1.0)
    names = [placed.identity.noun for placed in item.subjects]
    found = asyncio.run(naming.shown(_picture(item), [*names, "xylophone"]))
    assert found is not None and found[:2] == names
    with pytest.raises(RequestError, match=f"shows several of the prompt's words .{names[0]}, {names[1]}"):
        _edit(_picture(item), f"a {names[0]} and a {names[1]}", naming)


def test_without_a_detector_the_prompt_alone_decides() -> None:
    plain, picture = Naming(None), Image.new("RGB", (24, 24))
    assert _edit(picture, "a star on it", plain).words == ["star"]
    with pytest.raises(RequestError, match="say which word of the prompt the picture shows; there are: star, boot"):
        _edit(picture, "a star and a boot", plain)
    assert (
        asyncio.run(plain.shown(picture, ["star"])) is None
        and len(plain.nouns(" and ".join(f"a {n}" for n in NOUNS * 2))) <= MAX_NOUNS
    )


def test_it_is_made_where_it_is_used() -> None:
    make = pickle.loads(pickle.dumps(partial(Naming, "no/such/folder")))
    with pytest.raises((UsageError, OSError), match="no/such/folder"):
        make()
