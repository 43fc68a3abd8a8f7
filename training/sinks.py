"""Where the curves of a run go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib.util
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.store import Store
from realcustom.training.job import TrainingJob
from realcustom.training.metrics_file import Row, append
from realcustom.training.settings import Logger

T = TypeVar("T")
logger = logging.getLogger(__name__)

_PACKAGES = {
    Logger.TENSORBOARD: ("tensorboardX", "train"),
    Logger.WANDB: ("wandb", "wandb"),
    Logger.MLFLOW: ("mlflow", "mlflow"),
}
PROJECT = "realcustom"  # of Weights & Biases; the experiment of MLflow


class Sink(Protocol):
    """A place that takes rows."""

    def add(self, row: Row) -> None:
        """Take a row of metrics.jsonl."""

    def flush(self) -> Callable[[], None] | None:
        """Hand on what was taken; what is slow is returned, to be called in another thread."""

    def close(self) -> None:
        """End it: all that was handed on is kept."""


def check_loggers(loggers: Sequence[Logger]) -> None:
    """Raise UsageError where the package of a logger is not installed."""
    for one in loggers:
        package, extra = _PACKAGES[one]
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"train.loggers names {one.value}, not installed: pip install 'PATH_OF_THE_CLONE[{extra}]', or leave it out"
            )


def make_sinks(job: TrainingJob, store: Store, step: int) -> list[Sink]:
    """The sinks of a run that begins, or goes on, after `step`. Its name is the same at each of its starts."""
    name = f"realcustom-{job.identity}"
    made: dict[Logger, Callable[[], Sink]] = {
        Logger.TENSORBOARD: lambda: TensorBoard(storage.join(job.output, "tensorboard"), store, step),
        Logger.WANDB: lambda: Service(Logger.WANDB, lambda: WandB(name, job.resolved)),
        Logger.MLFLOW: lambda: Service(Logger.MLFLOW, lambda: MLflow(name, job.resolved)),
    }
    return [made[one]() for one in dict.fromkeys(job.settings.loggers)]


class Service:
    """A sink of a service that may be away: at its first error it is left out, with one warning, and the run goes on."""

    _sink: Sink | None

    def __init__(self, name: Logger, make: Callable[[], Sink]) -> None:
        self._name, self._sink = name, None
        self._sink = self._try(make)

    def add(self, row: Row) -> None:
        """Take a row."""
        self._of_sink(lambda sink: sink.add(row))

    def flush(self) -> Callable[[], None] | None:
        """What the sink's own returns."""
        slow = self._of_sink(lambda sink: sink.flush())
        return None if slow is None else lambda: self._of_sink(lambda _: slow())

    def close(self) -> None:
        """End it, if it is there."""
        self._of_sink(lambda sink: sink.close())

    def _of_sink(self, act: Callable[[Sink], T]) -> T | None:
        sink = self._sink
        return None if sink is None else self._try(lambda: act(sink))

    def _try(self, act: Callable[[], T]) -> T | None:
        try:
            return act()
        except Exception as error:  # each client has errors of its own
            self._sink = None
            said = "%s is left out from here on, the run goes on; metrics.jsonl has all rows: %s"
            logger.warning(said, self._name.value, error)
            return None


class TensorBoard:
    """Event files in the run's folder. On an object store, which cannot append, each flush writes one more file.

    Of tensorboardX only the messages are used: its own thread ends at an error of the disk, and then nothing takes what is
    added.
    """

    def __init__(self, folder: str, store: Store, step: int) -> None:
        self._folder, self._store, self._step = folder, store, step
        # the name tells times to the second: two starts may share one
        self._name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{step:08d}"
        self._events: list[Any] = []  # not written yet
        self._parts = 0  # written

    def add(self, row: Row) -> None:
        """Add a row's numbers."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        if not self._events and (not self._parts or storage.is_remote(self._folder)):  # a file begins
            self._events.append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if not self._events[1:] and not self._parts:
            # later rows of a start that was killed are forgotten: those from the first step on that is not done
            done = self._step + 1 if self._step else 0
            self._events.append(Event(step=done, session_log=SessionLog(status=SessionLog.START)))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars(row)]
        self._events.append(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))

    def flush(self) -> Callable[[], None] | None:
        """A write of all that was added."""
        if not self._events:
            return None
        data, self._events = b"".join(map(_framed, self._events)), []
        number, self._parts = self._parts, self._parts + 1
        return lambda: self._write(data, number)

    def close(self) -> None:
        """Nothing: each write is whole."""

    def _write(self, data: bytes, number: int) -> None:
        place = storage.join(self._folder, self._name)
        if storage.is_remote(place):
            self._store.write(f"{place}.{number:06d}", data)
        else:
            self._store.call(lambda uri: append(uri, data), place, "write")


def _framed(event: Any) -> bytes:
    """A message as event files have it: its length, a checksum, the message, a checksum."""
    from tensorboardX.record_writer import masked_crc32c

    message: bytes = event.SerializeToString()
    length = struct.pack("<Q", len(message))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, message)]
    return length + sums[0] + message + sums[1]


class WandB:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(project=PROJECT, id=name, name=name, resume="allow", config=dict(settings))
        # its own steps only rise: a validation beside the training comes late
        self._run.define_metric("val_*", step_metric="at_step")
        self._step = 0

    def add(self, row: Row) -> None:
        """Log a row's numbers."""
        self._step = max(self._step, row["step"])
        at = {"at_step": row["step"]} if "val_loss" in row else {}
        self._run.log({**dict(scalars(row)), **at}, step=self._step)

    def flush(self) -> None:
        """Nothing: it sends by itself."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MLflow:
    """A run of MLflow at MLFLOW_TRACKING_URI; a run of that name that is there is continued."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        self._rows: list[Row] = []  # not sent yet
        experiment = mlflow.set_experiment(PROJECT)
        found = mlflow.search_runs(
            [experiment.experiment_id], f"tags.`mlflow.runName` = '{name}'", output_format="list", max_results=1
        )
        self._run = mlflow.start_run(run_id=found[0].info.run_id) if found else mlflow.start_run(run_name=name)
        if not found:
            mlflow.log_dict(dict(settings), "settings.json")

    def add(self, row: Row) -> None:
        """Take a row."""
        self._rows.append(row)

    def flush(self) -> Callable[[], None] | None:
        """One request for each row that was added."""
        rows, self._rows = self._rows, []
        return (lambda: self._send(rows)) if rows else None

    def _send(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._mlflow.log_metrics(dict(scalars(row)), step=row["step"], run_id=self._run.info.run_id)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


def scalars(row: Row) -> Iterator[tuple[str, float]]:
    """The numbers of a row by name; parts of one have its name before theirs, as `val_losses/0`."""
    for name, value in row.items():
        parts = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else None
        if parts is not None:
            yield from ((f"{name}/{part}", number) for part, number in parts.items())
        elif name != "step" and value is not None:
            yield name, value
