"""A training command that is killed -9 again and again, at random moments, and started anew until it ends."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from realcustom.pipeline import owned
from realcustom.pipeline.local_cluster import LocalCluster, Node
from tests.support.training_runs import SETTINGS
from tests.support.waiting import wait_for

PATIENCE = 300.0  # seconds for a start, or for the rest
VARIED = replace(  # with other views, accumulation and an average of the weights
    SETTINGS, p_multiview=0.5, gradient_accumulation=2, log_every=1, val_every=100, checkpoint_every=7, lr=1e-3
)
WORKER = "TrainWorker"  # in the title of Ray Train's worker processes
_STEP = re.compile(rb"debug: step (\d+): (.*)\n")
# Starts are forks of a process that has imported everything: of a start's seconds imports are nine tenths, and a kill
# among them tells nothing.
_STARTS = multiprocessing.get_context("forkserver")
_STARTS.set_forkserver_preload(["realcustom.pipeline.cli.main", "realcustom.training.worker", "diffusers.pipelines"])


@dataclass(frozen=True, kw_only=True)
class Kills:
    """What was survived."""

    all: int
    while_writing: int  # of these, with a checkpoint or adapter half written


class StepLog:
    """Files in which workers log the uids of each step that they take."""

    def __init__(self, files: Callable[[], Iterable[Path]]) -> None:
        self._files, self._begin = files, dict[Path, int]()

    def forget(self) -> None:
        """What is logged from now on is of the next start."""
        self._begin = {path: path.stat().st_size for path in self._files()}

    def last(self) -> int:
        """The last step of this start; 0 before the first."""
        return max((step for step, _ in self._lines(self._files(), self._begin)), default=0)

    def workers(self) -> int:
        """How many took the last whole step of this start, each of which logs to a new file; 0 before it."""
        shares = Counter(step for step, _ in self._lines(set(self._files()) - set(self._begin)))
        later = [count for step, count in sorted(shares.items())[:-1]]
        return later[-1] if later else 0

    def uids(self) -> dict[int, set[tuple[str, ...]]]:
        """Of each step the shares of the workers. One that was taken several times, with other shares, has more of them."""
        found: dict[int, set[tuple[str, ...]]] = {}
        for step, uids in self._lines(self._files()):
            found.setdefault(step, set()).add(uids)
        return found

    @staticmethod
    def _lines(files: Iterable[Path], begin: Mapping[Path, int] = {}) -> Iterator[tuple[int, tuple[str, ...]]]:
        for path in files:
            with path.open("rb") as file:
                file.seek(begin.get(path, 0))
                for step, uids in _STEP.findall(file.read()):
                    yield int(step), tuple(uids.decode().split(", ")) if uids else ()


def train_with_kills(
    arguments: Sequence[str],
    log: Path,
    half_written: Callable[[], bool],
    steps: int,
    kills: int,
    while_writing: int,
    seed: int,
) -> Kills:
    """Run `realcustom train ARGUMENTS`, of so many steps, to its end over that many kills.

    The kills are due up to half a second after steps that are drawn from the whole run; `while_writing` of them at the next
    moment after it at which a file is `half_written`. What the command says goes to `log`.
    Raises RuntimeError if the run ends before, AssertionError if a process of it is left.
    """
    draw, taken = random.Random(seed), StepLog(lambda: [log])
    due, chosen = _due(draw, steps, kills), set(draw.sample(range(kills), while_writing))
    hit = 0
    for number, step in enumerate(due):
        with started(arguments, log) as process:
            taken.forget()
            _wait_for_step(taken, step, process)
            time.sleep(draw.uniform(0, 0.5))
            hit += _kill(process, number, half_written, number in chosen)
    with started(arguments, log) as process:
        _end_well(process)
    return Kills(all=kills, while_writing=hit)


def train_on_ray_with_kills(
    arguments: Sequence[str],
    log: Path,
    half_written: Callable[[], bool],
    steps: int,
    cluster: LocalCluster,
    victims: Sequence[str],
    seed: int,
) -> Kills:
    """The same on a cluster whose head does no work. A victim is a "worker", a "node" with all its processes, in whose place
    there is a new one, or the "driver", which is the command; "writing" before it: while a file is half written.

    Raises RuntimeError if the run ends before, AssertionError if a worker outlives its driver by a minute.
    """
    draw, taken, hit = random.Random(seed), StepLog(functools.partial(logs_of_workers, cluster)), 0
    environment = cluster.environment()
    with contextlib.ExitStack() as starts:
        process = starts.enter_context(started(arguments, log, environment))
        for number, (step, victim) in enumerate(zip(_due(draw, steps, len(victims)), victims, strict=True)):
            _wait_for_step(taken, step, process)
            time.sleep(draw.uniform(0, 0.5))
            writing = victim.startswith("writing")
            if victim.endswith("driver"):
                workers = _workers(cluster.nodes)
                hit += _kill(process, number, half_written, writing)
                wait_for(lambda: not owned.alive(workers), 60, lambda: str(owned.alive(workers)))  # noqa: B023
                process = starts.enter_context(started(arguments, log, environment))
            elif victim.endswith("node"):
                lost = draw.choice(cluster.nodes[1:])
                _until(half_written, writing, process)
                lost.kill()
                hit += half_written()
                cluster.nodes.remove(lost)
                cluster.add_node(1)
            else:
                one = draw.choice(sorted(_workers(cluster.nodes)))
                _until(half_written, writing, process)
                os.kill(one.pid, signal.SIGKILL)
                hit += half_written()
            taken.forget()
        _end_well(process)
    wait_for(lambda: not _workers(cluster.nodes), 60, lambda: str(_workers(cluster.nodes)))
    return Kills(all=len(victims), while_writing=hit)


def train_with_fewer_and_more(arguments: Sequence[str], log: Path, cluster: LocalCluster) -> list[int]:
    """Run the command on a cluster that loses a node, and then gets another one; the numbers of workers that it had.

    Ray looks once a minute for new nodes, so that the steps of a run until then are as many as the machine is fast: the command
    is ended by SIGTERM some steps after the last change.
    """
    taken, numbers = StepLog(functools.partial(logs_of_workers, cluster)), list[int]()
    with started(arguments, log, cluster.environment()) as process:
        for change in (lambda: cluster.nodes.pop().kill(), lambda: cluster.add_node(1), taken.forget):
            before = numbers[-1] if numbers else 0
            wait_for(lambda: taken.workers() not in (0, before), PATIENCE, log.read_text)  # noqa: B023
            numbers.append(taken.workers())
            change()
            taken.forget()
        _wait_for_step(taken, 1, process)
        _wait_for_step(taken, taken.last() + 20, process)
        process.terminate()
        process.join(PATIENCE)
        if process.exitcode != 128 + signal.SIGTERM:
            raise RuntimeError(f"after SIGTERM the run ended with {process.exitcode}: {log.read_text()}")
    return numbers


def announce_loss(node: Node, cluster: LocalCluster) -> None:
    """Tell the cluster that a node is about to be taken away."""
    raylet = next(one for one in owned.descendants([node.process.pid]) if "raylet/raylet" in _title(one))
    named = re.search(r"--node_id=([0-9a-f]+)", _title(raylet))
    assert named is not None, _title(raylet)
    given = {"address": cluster.address, "node-id": named[1], "reason": "DRAIN_NODE_REASON_PREEMPTION"}
    given |= {"reason-message": "a test", "deadline-remaining-seconds": "300"}
    options = [f"--{name}={value}" for name, value in given.items()]
    environment = {**os.environ, **cluster.environment()}
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *options], env=environment, check=True)


def logs_of_workers(cluster: LocalCluster) -> Iterator[Path]:
    """What the workers of all its nodes say, those that are gone too."""
    return cluster.folder.glob("n*/session_2*/logs/worker-*.err")


def half_written_below(output: Path) -> bool:
    """Whether a checkpoint or an adapter of a run on a disk is half written."""
    return any(
        folder.is_dir() and any(folder.glob(".tmp-*")) for folder in (output / "checkpoints", output / "adapters")
    )


@contextlib.contextmanager
def started(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[ForkServerProcess]:
    """The command, which is killed at the end of the block if it runs still."""
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    log.touch()
    process = _STARTS.Process(target=_command, args=(arguments, log, {**variables, **(environment or {})}))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _command(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """Runs in the start's process."""
    from realcustom.pipeline.cli.main import main

    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["realcustom", "--log-level", "debug", "train", *arguments]
    main(sys.argv[1:])


def train_workers(roots: Iterable[int]) -> set[owned.Process]:
    """The processes of Ray Train's workers below the processes `roots`."""
    return {one for one in owned.descendants(roots) if WORKER in _title(one)}


def _workers(nodes: Sequence[Node]) -> set[owned.Process]:
    return train_workers(node.process.pid for node in nodes)


def _title(process: owned.Process) -> str:
    with contextlib.suppress(OSError):  # it has ended
        return Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace")
    return ""


def _due(draw: random.Random, steps: int, kills: int) -> list[int]:
    """Steps after which there are kills: the end is left to the last start."""
    return sorted(draw.sample(range(1, steps * 9 // 10), kills))


def _wait_for_step(taken: StepLog, step: int, process: ForkServerProcess) -> None:
    """Wait until this start has taken that step or a later one, or for its end. Raises RuntimeError after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while process.is_alive() and taken.last() < step:
        if time.monotonic() > deadline:
            raise RuntimeError(f"step {step} was not seen within {PATIENCE:.0f} s")
        time.sleep(0.02)


def _until(half_written: Callable[[], bool], writing: bool, process: ForkServerProcess) -> None:
    """Wait for the next moment at which a file is half written, if it is to be `writing`."""
    while writing and process.is_alive() and not half_written():
        time.sleep(0.0005)


def _kill(process: ForkServerProcess, number: int, half_written: Callable[[], bool], writing: bool) -> bool:
    """Kill the command, perhaps while it is writing; whether a file was half written. No process of it is left."""
    assert process.pid is not None
    tree = owned.descendants([process.pid])
    _until(half_written, writing, process)
    if not process.is_alive():
        raise RuntimeError(f"the run ended with {process.exitcode} before kill {number + 1}")
    process.kill()
    hit = half_written()
    process.join()
    wait_for(lambda: not owned.alive(tree), 60, lambda: str(owned.alive(tree)))
    return hit


def _end_well(process: ForkServerProcess) -> None:
    process.join(PATIENCE)
    if process.exitcode != 0:
        raise RuntimeError(f"the last start ended with {process.exitcode}")
