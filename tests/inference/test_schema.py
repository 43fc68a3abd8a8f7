"""The request's schema: what is refused, and that the message helps."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from realcustom.inference.errors import RequestError
from realcustom.inference.schema import parse_request
from realcustom.inference.settings import ServeSettings

SETTINGS = ServeSettings(max_n=2, max_steps=10, max_subjects=1, max_pixels=64 * 64, max_prompt_characters=20)


def _parse(**fields: Any) -> Any:
    return parse_request(json.dumps({"prompt": "a cat"} | fields).encode(), SETTINGS)


def test_defaults_and_a_full_request() -> None:
    plain = _parse()
    assert plain.n == 1 and plain.size is None and plain.subjects == [] and plain.width_height() is None
    subject = {"image": "QUJD", "word": "cat", "occurrence": 1, "scope": 0.2, "mask": None}
    full = _parse(size="48x32", subjects=[subject], mask_reuse_after=4, guidance_scale=3, return_masks=True)
    assert full.width_height() == (48, 32)
    assert full.subjects[0].occurrence == 1 and full.guidance_scale == 3.0


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"num_steps": 3}, "num_steps", "unknown field 'num_steps'; did you mean 'num_inference_steps'?"),
        ({"zzz": 3}, "zzz", "there are prompt, n, size"),
        (
            {"subjects": [{"image": "QUJD", "wrod": "cat"}]},
            "subjects[0].wrod",
            "unknown field 'subjects[0].wrod'; did you mean 'word'? (and 1 more field with problems)",
        ),
        ({"subjects": [{"image": "QUJD"}]}, "subjects[0].word", "field 'subjects[0].word' is missing"),
        ({"subjects": [{"image": "QUJD", "word": "c", "occurrence": "x"}]}, "subjects[0].occurrence", "'first'"),
        ({"n": 0}, "n", "greater than or equal to 1, got 0"),
        ({"n": "2"}, "n", "valid integer, got '2'"),
        ({"n": True}, "n", "valid integer, got True"),
        ({"n": 3}, "n", "limit of 2"),
        ({"size": "64"}, "size", "got '64'"),
        ({"size": "65x64"}, "size", "limit of 4096 pixels"),
        ({"num_inference_steps": 11}, "num_inference_steps", "limit of 10"),
        ({"subjects": [{"image": "", "word": "a"}] * 2}, "subjects", "limit of 1"),
        ({"prompt": "x" * 21}, "prompt", "limit of 20"),
        ({"seed": 2**53}, "seed", "less than or equal to"),
        ({"influence_scope": 1.5}, "influence_scope", "got 1.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "finite number"),
        ({"response_format": "url"}, "response_format", "'b64_json'"),
    ],
)
def test_refused_with_the_field_and_the_way_out(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        _parse(**fields)
    assert caught.value.param == param and message in caught.value.message
    assert caught.value.body()["error"].keys() == {"type", "message", "param"}


@pytest.mark.parametrize(
    ("body", "message"), [(b"{", "not JSON"), (b"[]", "body"), (b'{"n": 1}', "'prompt' is missing")]
)
def test_bodies_that_are_no_request(body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_request(body, SETTINGS)


def test_settings_are_light_and_checked() -> None:
    code = (
        "import sys, realcustom.inference.settings, realcustom.evaluation.settings;"
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ValueError, match="port"):
        ServeSettings(port=0)
    with pytest.raises(ValueError, match="max_n"):
        ServeSettings(max_n=0)
