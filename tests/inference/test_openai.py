"""OpenAI's own client, unchanged, against the running service."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

PROMPT = "a cat in the snow"
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
FEW: dict[str, Any] = {"num_inference_steps": 2, "seed": 3}


class Naming:
    """Knows two nouns, and that a dark picture shows a dog, a dim one nothing, a bright one all; others it does not look at."""

    def nouns(self, prompt: str) -> list[str]:
        return [word for word in ("cat", "dog") if word in prompt.split()]

    async def shown(self, picture: Image.Image, words: Sequence[str]) -> list[str] | None:
        return {0: ["dog"], 1: [], 4: list(words)}.get(round(float(np.asarray(picture).mean()) / 64))


@pytest.fixture(scope="module")
def client(serve: Callable[..., Any]) -> openai.OpenAI:
    running = serve()
    running.service.naming = Naming()
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def _file(image: Image.Image = PICTURE) -> tuple[str, bytes, str]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return ("picture.png", buffer.getvalue(), "image/png")


def _decoded(text: str | None) -> Image.Image:
    assert text is not None
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_models(client: openai.OpenAI) -> None:
    adapter, base = client.models.list().data
    assert adapter.id == "realcustom:0123456789ab" and base.id.startswith("base@sha256-")
    assert client.models.retrieve(adapter.id) == adapter and base.object == "model"
    with pytest.raises(openai.NotFoundError, match="did you mean 'realcustom:0123456789ab'"):
        client.models.retrieve("realcustom:0123456789aa")


def test_generate_with_all_that_the_client_has(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        prompt=PROMPT,
        model="realcustom:0123456789ab",
        n=2,
        size="auto",
        quality="high",
        style="vivid",
        background="transparent",
        moderation="low",
        output_format="webp",
        output_compression=60,
        response_format="b64_json",
        user="somebody",
        safety_identifier="x",
        stream=False,
        extra_body=FEW,
    )
    assert answer.data is not None and [_decoded(image.b64_json).format for image in answer.data] == ["WEBP"] * 2
    assert (answer.size, answer.output_format, answer.background) == ("32x32", "webp", "opaque")
    extra = answer.model_extra or {}
    assert extra["ignored"] == ["background", "moderation", "quality", "safety_identifier", "style", "user"]
    assert extra["model"] == "realcustom:0123456789ab" and answer.usage is not None


def test_nulls_are_as_left_out(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        prompt=PROMPT, model=None, n=None, size=None, response_format=None, output_format=None, extra_body=FEW
    )
    assert answer.data is not None and _decoded(answer.data[0].b64_json).format == "PNG"


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_output_formats(client: openai.OpenAI, output_format: Any) -> None:
    def size(compression: int) -> int:
        answer = client.images.generate(
            prompt=PROMPT, output_format=output_format, output_compression=compression, size="64x32", extra_body=FEW
        )
        assert answer.data is not None and answer.data[0].b64_json is not None
        image = _decoded(answer.data[0].b64_json)
        assert (image.format, image.size) == (output_format.upper(), (64, 32))
        assert ("output_compression" in (answer.model_extra or {})["ignored"]) == (output_format == "png")
        return len(answer.data[0].b64_json)

    assert size(10) < size(100) or output_format == "png"


def test_an_edit_has_the_picture_as_its_subject(client: openai.OpenAI) -> None:
    edited = client.images.edit(image=_file(), prompt=PROMPT, extra_body={**FEW, "word": "cat"})
    encoded = base64.b64encode(_file()[1]).decode()
    subjects = [{"image": encoded, "word": "cat"}]
    generated = client.images.generate(prompt=PROMPT, extra_body={**FEW, "subjects": subjects})
    assert edited.data is not None and generated.data is not None
    assert edited.data[0].b64_json == generated.data[0].b64_json
    assert (edited.model_extra or {})["words"] == ["cat"]


def test_the_only_noun_is_the_word(client: openai.OpenAI) -> None:
    found = client.images.edit(image=_file(), prompt=PROMPT, mask=_file(), extra_body=FEW)
    assert (found.model_extra or {})["words"] == ["cat"] and (found.model_extra or {})["ignored"] == ["mask"]
    with pytest.raises(openai.UnprocessableEntityError, match=r"say which word .* there are: cat, dog"):
        client.images.edit(image=_file(), prompt="a cat and a dog", extra_body=FEW)
    with pytest.raises(openai.UnprocessableEntityError, match="there are: a, star"):
        client.images.edit(image=_file(), prompt="a star", extra_body=FEW)


@pytest.mark.parametrize(
    ("grey", "message"),
    [(255, r"shows several of the prompt's words \(cat, dog\)"), (64, "shows none that is found"), (150, "there are")],
    ids=["several", "none", "not looked at"],
)
def test_of_several_nouns_the_one_that_the_picture_shows_is_the_word(
    client: openai.OpenAI, grey: int, message: str
) -> None:
    prompt = "a cat and a dog"
    found = client.images.edit(image=_file(Image.new("L", (24, 24), 10)), prompt=prompt, extra_body=FEW)
    assert (found.model_extra or {})["words"] == ["dog"]
    with pytest.raises(openai.UnprocessableEntityError, match=message) as caught:
        client.images.edit(image=_file(Image.new("L", (24, 24), grey)), prompt=prompt, extra_body=FEW)
    assert caught.value.param == "word" and "cat, dog" in caught.value.message


def test_several_pictures(client: openai.OpenAI) -> None:
    two = client.images.edit(
        image=[_file(), _file(PICTURE.rotate(90))], prompt="a cat and a dog", extra_body={**FEW, "word": ["cat", "dog"]}
    )
    assert (two.model_extra or {})["words"] == ["cat", "dog"]
    with pytest.raises(openai.UnprocessableEntityError, match="1 words for 2 pictures"):
        client.images.edit(image=[_file(), _file()], prompt=PROMPT, extra_body={**FEW, "word": "cat"})


def test_streams(client: openai.OpenAI) -> None:
    kinds = []
    for event in client.images.generate(prompt=PROMPT, stream=True, partial_images=2, n=1, extra_body=FEW):
        kinds.append(str(event.type))
        if event.type == "image_generation.completed":
            assert _decoded(event.b64_json).size == (32, 32)
    assert kinds[-1] == "image_generation.completed" and "image_generation.partial_image" in kinds
    assert "realcustom.step" in kinds
    edits = client.images.edit(
        image=_file(), prompt=PROMPT, stream=True, partial_images=1, extra_body={**FEW, "step_events": False}
    )
    assert [event.type for event in edits] == ["image_edit.partial_image", "image_edit.completed"]


def test_errors_are_those_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="keeps no pictures"):
        client.images.generate(prompt=PROMPT, response_format="url")
    with pytest.raises(openai.NotFoundError, match="this server has no 'gpt-image-2'"):
        client.images.generate(prompt=PROMPT, model="gpt-image-2")
    with pytest.raises(openai.UnprocessableEntityError, match="did you mean 'quality'") as caught:
        client.images.generate(prompt=PROMPT, extra_body={"qualty": "high"})
    assert (caught.value.type, caught.value.param) == ("invalid_request", "qualty")
    with pytest.raises(openai.UnprocessableEntityError, match="did you mean 'prompt'"):
        client.images.edit(image=_file(), prompt=PROMPT, extra_body={"promt": "x"})
    with pytest.raises(openai.UnprocessableEntityError, match="not a PNG, JPEG or WEBP"):
        client.images.edit(image=("a.png", b"not a picture"), prompt=PROMPT, extra_body={"word": "cat"})
    base = client.models.list().data[-1].id
    with pytest.raises(openai.UnprocessableEntityError, match="base without an adapter"):
        client.images.edit(image=_file(), prompt=PROMPT, model=base, extra_body={"word": "cat"})
