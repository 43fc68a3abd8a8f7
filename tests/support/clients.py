"""Clients of stages in processes of their own, which say each unit that they commit."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.settings import PreprocessSettings

PROGRAM = """
import pickle, sys, time
from realcustom.preprocessing.catalogue import CATALOGUE
from realcustom.preprocessing.engine import worker
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.settings import MethodSettings
commit = worker.commit_unit
def say(job, unit, sealed):
    time.sleep(0.15)  # so that two clients meet
    commit(job, unit, sealed)
    print("unit", f"{job.directory}/{unit.name}", flush=True)  # steps of one stage have units of the same name
worker.commit_unit = say
print("ready", flush=True)
for order in sys.stdin:
    name, source, output, settings = pickle.loads(bytes.fromhex(order))
    result = run_stage(CATALOGUE[name], source, output, settings, method=MethodSettings(), executor=InProcess())
    print("done", result.report["units"], result.report["in"], flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client that waits for stages to run."""

    process: subprocess.Popen[str]

    def begin(self, stage: Stage, source: str, output: str, settings: PreprocessSettings) -> None:
        """Have it run a stage."""
        assert self.process.stdin is not None
        self.process.stdin.write(pickle.dumps((stage.name, source, output, settings)).hex() + "\n")
        self.process.stdin.flush()

    def done(self) -> tuple[list[str], tuple[int, int]]:
        """The units that it committed, and units and rows of the stage, once that is done."""
        units: list[str] = []
        for word, *rest in self._said():
            if word == "done":
                return units, (int(rest[0]), int(rest[1]))
            units += rest
        raise AssertionError("the client ended")

    def kill_after_a_unit(self) -> list[str]:
        """kill -9 once it has committed a unit, or has none left to do; the units that it said."""
        said = self._said()
        lines = [next(said)]
        self.process.send_signal(signal.SIGKILL)
        return [rest[0] for word, *rest in (*lines, *said) if word == "unit"]

    def _said(self) -> Iterator[list[str]]:
        assert self.process.stdout is not None
        return (line.split() for line in self.process.stdout)


@contextmanager
def clients(number: int) -> Iterator[list[Client]]:
    """Clients that are ready; they are ended after the block."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "client.py"
        program.write_text(PROGRAM)
        started = [
            subprocess.Popen(
                [sys.executable, str(program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
            for _ in range(number)
        ]
        try:
            for process in started:
                assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield [Client(process=process) for process in started]
        finally:
            for process in started:
                process.kill()
                process.communicate()
