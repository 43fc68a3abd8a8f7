"""What stands before the verb: the version, the level of the lines on stderr; and what a command without a verb says."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import realcustom
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.cli.options import DEFAULT_RECIPE


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"realcustom {importlib.metadata.version('realcustom')}\n"
    assert realcustom.__version__ == importlib.metadata.version("realcustom")


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "realcustom", "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"realcustom {realcustom.__version__}\n" and done.returncode == 0


def test_a_shell_completes_verbs_and_options() -> None:
    command = str(Path(sys.executable).with_name("realcustom"))
    for words, expected in (("realcustom gen", "generate"), ("realcustom train --init", "--initial-adapter")):
        asked = {"_REALCUSTOM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run([command], env={**os.environ, **asked}, capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == [expected], done.stderr


@pytest.mark.parametrize("verb", [["train"], ["generate"], ["serve"], ["preprocess", "all"], ["preprocess", "select"]])
def test_settings_are_printed_without_any_other_option(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*verb, "--print-config", "--set", "train.lr=0.5"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["lr"] == 0.5
    assert run([*verb, "--help"]) == 0
    assert ("[required]" in capsys.readouterr().out) == (verb != ["serve"])


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_level_of_the_log(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--input", "nowhere", "--output", "nowhere", "--set", "serve.port=1"]
    assert run(["--log-level", level, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("error: ")
    assert ("pipeline warning: --set serve.port has no effect" in err) == (level != "error")
    assert logging.getLogger("realcustom").level == getattr(logging, level.upper())


@pytest.mark.parametrize("arguments", [[], ["preprocess"], ["cluster"], ["jobs"]])
def test_a_command_without_its_verb_shows_the_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Usage: ") and "Commands:" in err


def test_an_option_of_a_group_has_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--help"]) == 0
    assert f"[default: {DEFAULT_RECIPE}]" in " ".join(capsys.readouterr().out.split())
