"""A training command that is killed -9 again and again, at random moments, and started anew until it ends."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from realcustom.pipeline import owned
from realcustom.store import Store
from realcustom.training.metrics_file import read_rows
from tests.support.training_runs import SETTINGS
from tests.support.waiting import wait_for

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


def train_with_kills(
    arguments: Sequence[str], output: Path, steps: int, kills: int, while_writing: int, seed: int
) -> Kills:
    """Run `realcustom train ARGUMENTS`, of so many steps, to its end over that many kills.

    The kills are due up to half a second after steps that are drawn from the whole run; `while_writing` of them at the next
    moment after it at which a file is half written. Raises RuntimeError if the run ends before.
    """
    draw = random.Random(seed)
    due, chosen = _due(draw, steps, kills), set(draw.sample(range(kills), while_writing))
    hit = 0
    for number, step in enumerate(due):
        with _started(arguments) as process:
            _wait_for_step(output, step, process)
            time.sleep(draw.uniform(0, 0.5))
            while number in chosen and process.poll() is None and not _half_written(output):
                pass
            _kill(process, number)
        hit += _half_written(output)
    with _started(arguments) as process:
        _end_well(process)
    return Kills(all=kills, while_writing=hit)


def train_on_ray_with_kills(
    arguments: Sequence[str], output: Path, steps: int, victims: Sequence[str], seed: int
) -> None:
    """The same for a command with a Ray cluster of its own, of which "worker" is one that trains, and "driver" the command.

    Raises RuntimeError if the run ends before, AssertionError if a process outlives its driver by a minute.
    """
    draw = random.Random(seed)
    process = _started(arguments)
    try:
        for number, (step, victim) in enumerate(zip(_due(draw, steps, len(victims)), victims, strict=True)):
            _wait_for_step(output, step, process)
            time.sleep(draw.uniform(0, 0.5))
            tree = owned.descendants([process.pid])
            if victim == "worker":
                workers = sorted(one.pid for one in tree if "RayTrainWorker" in _name(one))
                os.kill(draw.choice(workers), signal.SIGKILL)
                continue
            _kill(process, number)
            wait_for(lambda: not owned.alive(tree), 60, lambda: str([*map(_name, owned.alive(tree))]))  # noqa: B023
            process = _started(arguments)
        _end_well(process)
    finally:
        process.kill()
        process.wait()


def _started(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    quiet = subprocess.DEVNULL
    return subprocess.Popen([*COMMAND, *arguments], stdout=quiet, stderr=quiet, env=environment)


def _due(draw: random.Random, steps: int, kills: int) -> list[int]:
    """Steps after which there are kills: the end is left to the last start."""
    return sorted(draw.sample(range(1, steps * 9 // 10), kills))


def _wait_for_step(output: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until metrics.jsonl has a row of that step or a later one, written or cut by what runs now; or for the run's end.

    Raises RuntimeError after PATIENCE; the run is killed then.
    """
    before = _changed(output)
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if (
            _changed(output) != before
            and max((row["step"] for row in read_rows(str(output), Store())), default=0) >= step
        ):
            return
        time.sleep(0.05)
    if process.poll() is None:
        process.kill()
        raise RuntimeError(f"step {step} was not seen within {PATIENCE:.0f} s")


def _changed(output: Path) -> int:
    path = output / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else 0


def _kill(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is not None:
        raise RuntimeError(f"the run ended with {process.returncode} before kill {number + 1}")
    process.kill()
    process.wait()


def _end_well(process: subprocess.Popen[bytes]) -> None:
    if status := process.wait(PATIENCE):
        raise RuntimeError(f"the last start ended with {status}")


def _name(process: owned.Process) -> str:
    with contextlib.suppress(OSError):  # it has ended
        return Path(f"/proc/{process.pid}/cmdline").read_text().replace("\0", " ")
    return ""


def _half_written(output: Path) -> bool:
    return any(
        folder.is_dir() and any(folder.glob(".tmp-*")) for folder in (output / "checkpoints", output / "adapters")
    )
