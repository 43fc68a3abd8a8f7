"""A call's knobs are spelled once: the library's call, the command line and the HTTP schema agree with the fields."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import typing
from typing import Any

import pytest

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.errors import UsageError
from realcustom.inference.schema import GenerationRequest
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.cli.options import FLAGS, NOT_OPTIONS
from realcustom.sampling import KNOBS, MAX_SEED, SamplingParams
from realcustom.settings import MethodSettings

CALL = {"n": "num_images_per_prompt", "seed": "generator"}  # as diffusers calls them


def test_the_call_takes_every_knob() -> None:
    hints = typing.get_type_hints(RealCustomPipeline.__call__)
    fields = typing.get_type_hints(SamplingParams)
    parameters = inspect.signature(RealCustomPipeline.__call__).parameters
    for knob in KNOBS:
        parameter = parameters[CALL.get(knob.name, knob.name)]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default == knob.default
        assert knob.name == "seed" or hints[parameter.name] == fields[knob.name]


def test_a_knob_of_a_section_is_a_setting_there() -> None:
    settings = MethodSettings()
    for knob in KNOBS:
        if knob.section is not None:
            assert hasattr(getattr(settings, knob.section), knob.name)


def test_http_takes_every_knob_with_its_range() -> None:
    properties = GenerationRequest.model_json_schema()["properties"]
    assert {knob.name for knob in KNOBS} - properties.keys() == {"width", "height"}  # together they are `size`
    for knob in KNOBS:
        if knob.name in properties:
            shown = properties[knob.name]
            numbers = shown.get("anyOf", [shown])[0]
            assert (numbers.get("minimum"), numbers.get("maximum")) == (knob.ge, knob.le)
            assert shown["description"] == knob.help and shown["default"] == knob.default


def test_the_command_line_takes_every_knob_with_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "--help"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    for knob in KNOBS:
        if knob.name in NOT_OPTIONS:
            continue
        flag = FLAGS.get(knob.name, "--" + knob.name.replace("_", "-"))
        described = page[page.index(f" {flag} ") :].partition(" --")[2].partition(" --")[0]
        assert knob.help.removeprefix("false: ")[1:] in described
        assert knob.ge is None or f"{knob.ge}<=x<={knob.le}" in described or f"x>={knob.ge}" in described


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"seed": MAX_SEED + 1}, "seed must lie in 0 to"),
        ({"guidance_scale": -1.0}, "guidance_scale must lie in 0 to 1000, got -1"),
        ({"subject_guidance_scale": float("nan")}, "subject_guidance_scale must lie in 0 to 1000, got nan"),
        ({"influence_quantity": 1.5}, "influence_quantity must lie in 0 to 1, got 1.5"),
        ({"mask_reuse_after": -1}, "mask_reuse_after must be at least 0, got -1"),
        ({"clip_skip": -1}, "clip_skip must be at least 0, got -1"),
    ],
)
def test_what_is_out_of_range_is_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingParams(**knobs).check()


def test_zero_is_the_least_quantity_everywhere() -> None:
    """One feature acts at least (section 3.2), so nothing is out of range down to 0."""
    SamplingParams(influence_quantity=0.0, influence_scope=0.0).check()
    GenerationRequest.model_validate_json('{"prompt": "a", "influence_quantity": 0.0}')


def test_the_knobs_are_light_and_frozen() -> None:
    code = "import sys, realcustom.sampling; assert not {'torch', 'ray', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().n = 2  # type: ignore[misc]
