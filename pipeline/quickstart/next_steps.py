"""What was not done yet: commands that run as they are printed, with the subject that they draw."""

from __future__ import annotations

import io
import os
import shlex
import sys
from pathlib import Path

from realcustom.evaluation.table import Case
from realcustom.pipeline.quickstart.film import PHOTOGRAPH, PHOTOGRAPHS
from realcustom.pipeline.quickstart.results import Results

SUBJECT = "subject.png"  # beside the page: a subject to draw with
ENLARGED = 8  # times, a picture that a next step draws


def next_steps(results: Results) -> list[dict[str, str]]:
    """What was not done yet: `why`, and a `command` that runs as it is in a fresh shell in the working directory."""
    command = _from_here(Path(sys.executable).with_name("realcustom"))
    adapter = _from_here(Path(results.trained.result.adapter))
    case = results.request["case"]
    prompt = f"a {case.target_word} at the top on {_new_background(case)}"
    draw = f"{command} generate --adapter {adapter} --word"
    steps = {
        "Draw this subject in another scene, four times, enlarged": f"{draw} {case.target_word} "
        f"--image {_from_here(results.output / SUBJECT)} --prompt {shlex.quote(prompt)} --count 4 --enlarge {ENLARGED} "
        "--output outputs/mine"
    }
    if (PHOTOGRAPHS / PHOTOGRAPH).exists():
        photograph = _from_here(PHOTOGRAPHS / PHOTOGRAPH)
        steps["Take a photograph as the reference"] = (
            f"{draw} star --image {photograph} --prompt 'a star at the right on snow' --enlarge {ENLARGED} "
            "--output outputs/photograph"
        )
    steps["Keep the new adapter running, for your own programs"] = f"{command} serve --adapter {adapter}"
    steps["Train for longer"] = f"{command} quickstart --set train.steps=600 --output outputs/longer"
    return [{"why": why, "command": line} for why, line in steps.items()]


def subject_png(results: Results) -> bytes:
    """The request's subject, for the first of the next steps."""
    buffer = io.BytesIO()
    results.request["case"].reference.save(buffer, "PNG")
    return buffer.getvalue()


def _from_here(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    here, absolute = Path.cwd(), Path(os.path.abspath(path))
    return shlex.quote(str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute))


def _new_background(case: Case) -> str:
    """One that neither the case's prompt nor its reference has."""
    from realcustom.sprites.world import BACKGROUNDS

    return next(name for name in BACKGROUNDS if name not in (case.truth.background, case.truth.reference.background))
