"""A training command that is killed -9 again and again, at random moments, and started anew until it ends."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.training_runs import SETTINGS

COMMAND = (sys.executable, "-c", "from realcustom.pipeline.cli.main import main; main()", "train")
PATIENCE = 300.0  # seconds for a start, or for the rest
VARIED = replace(  # with other views, accumulation and an average of the weights
    SETTINGS, p_multiview=0.5, gradient_accumulation=2, log_every=1, val_every=100, checkpoint_every=7, lr=1e-3
)


@dataclass(frozen=True, kw_only=True)
class Kills:
    """What was survived."""

    all: int
    while_writing: int  # of these, with a checkpoint or adapter half written


def train_with_kills(arguments: Sequence[str], output: Path, kills: int, while_writing: int, seed: int) -> Kills:
    """Run `realcustom train ARGUMENTS` to its end over that many kills.

    A kill is due up to 2 s after a start's first new row of metrics, uniformly; `while_writing` of them at the next moment
    after it at which a file is half written. Raises RuntimeError if the run ends before.
    """
    draw = random.Random(seed)
    chosen = set(draw.sample(range(kills), while_writing))
    hit = 0
    for number in range(kills):
        before = _size(output)
        process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and _size(output) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 2))
        while number in chosen and process.poll() is None and not _half_written(output):
            pass
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with {process.returncode} before kill {number + 1} of {kills}")
        process.send_signal(signal.SIGKILL)
        process.wait()
        hit += _half_written(output)
    subprocess.run([*COMMAND, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE)
    return Kills(all=kills, while_writing=hit)


def _size(output: Path) -> int:
    path = output / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def _half_written(output: Path) -> bool:
    return any(
        folder.is_dir() and any(folder.glob(".tmp-*")) for folder in (output / "checkpoints", output / "adapters")
    )
