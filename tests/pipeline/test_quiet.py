"""What a command shows is its own: no line, bar or colour of a library."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from realcustom.pipeline.cluster import _without_harmless
from realcustom.preprocessing.engine.progress import PictureProgress

PHOTO = "tests/data/photos/duck_toy.jpg"


def test_generate_says_nothing_but_the_paths_of_its_images(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "realcustom", "generate", "--image", PHOTO, "--word", "star", "--steps", "2"]
    command += ["--prompt", "a star on grass", "--enlarge", "3", "--output", str(tmp_path / "out")]
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("TQDM", "TRANSFORMERS", "DIFFUSERS"))
    }
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'out' / 'image-0.png'}\n"


def test_harmless_lines_of_ray_are_kept_back_and_others_are_not(capfd: pytest.CaptureFixture[str]) -> None:
    with _without_harmless():
        os.write(2, b"[2026] logging.cc:303: Set ray log level from environment variable X to 3\na real problem\n")
    assert capfd.readouterr().err == "a real problem\n"


def test_a_long_unit_says_how_many_of_its_pictures_are_done(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(logging.getLogger("realcustom"), "propagate", True)
    progress = PictureProgress("part-0", 22)
    with caplog.at_level(logging.INFO, "realcustom"):
        for done in range(0, 23, 2):
            progress.reached(done)
            now[0] += 10.0
    assert caplog.messages[0] == "unit part-0: 4/22 pictures · 1:30 left"
    assert len(caplog.messages) == 5  # at most one in 15 seconds, and none of the finished unit
