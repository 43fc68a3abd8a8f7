"""What stands before the verb: the version, the level of the lines on stderr; and what a command without a verb says."""

from __future__ import annotations

import importlib.metadata
import logging

import pytest

from realcustom.pipeline.cli.main import run
from realcustom.pipeline.cli.options import DEFAULT_RECIPE


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"realcustom {importlib.metadata.version('realcustom')}\n"


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_level_of_the_log(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--input", "nowhere", "--output", "nowhere", "--set", "serve.port=1"]
    assert run(["--log-level", level, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("error: ")
    assert ("pipeline warning: --set serve.port has no effect" in err) == (level != "error")
    assert logging.getLogger("realcustom").level == getattr(logging, level.upper())


@pytest.mark.parametrize("arguments", [[], ["preprocess"]])
def test_a_command_without_its_verb_shows_the_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Usage: ") and "Commands:" in err


def test_an_option_of_a_group_has_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--help"]) == 0
    assert f"[default: {DEFAULT_RECIPE}]" in " ".join(capsys.readouterr().out.split())
