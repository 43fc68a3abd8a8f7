"""Where the curves of a run go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.store import Store
from realcustom.training.metrics_file import Row
from realcustom.training.settings import Logger

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
        """End it: all that was taken is kept."""


def check_loggers(loggers: Sequence[Logger]) -> None:
    """Raise UsageError where the package of a logger is not installed."""
    for logger in loggers:
        package, extra = _PACKAGES[logger]
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"train.loggers names {logger.value}, not installed: pip install 'PATH_OF_THE_CLONE[{extra}]', or leave it out"
            )


def make_sinks(
    loggers: Sequence[Logger], output: str, store: Store, step: int, name: str, settings: Mapping[str, Any]
) -> list[Sink]:
    """The sinks of a run that begins, or goes on, after `step`.

    Args:
        name: of the run, the same at each of its starts.
        settings: shown beside the curves.
    """
    made: dict[Logger, Callable[[], Sink]] = {
        Logger.TENSORBOARD: lambda: TensorBoard(storage.join(output, "tensorboard"), store, step),
        Logger.WANDB: lambda: WandB(name, settings),
        Logger.MLFLOW: lambda: MLflow(name, settings),
    }
    return [made[logger]() for logger in dict.fromkeys(loggers)]


class TensorBoard:
    """Event files in the run's folder. On an object store, which cannot append, each flush writes one more file."""

    def __init__(self, folder: str, store: Store, step: int) -> None:
        self._folder, self._store, self._step = folder, store, step
        self._remote, self._parts = storage.is_remote(folder), 0
        self._writer: Any = None
        self._local = folder.removeprefix("file://")

    def add(self, row: Row) -> None:
        """Add a row's numbers."""
        if self._writer is None:
            self._open()
        for name, value in scalars(row):
            self._writer.add_scalar(name, value, row["step"])

    def flush(self) -> Callable[[], None] | None:
        """Write to the disk; to a store, in the other thread."""
        if self._writer is None:
            return None
        if not self._remote:
            self._writer.flush()
            return None
        writer, local, self._writer = self._writer, self._local, None
        return lambda: self._send(writer, local)

    def close(self) -> None:
        """Close the file."""
        send = self.flush()
        if send is not None:
            send()
        elif self._writer is not None:
            self._writer.close()

    def _open(self) -> None:
        from tensorboardX import SummaryWriter

        if self._remote:
            self._local = tempfile.mkdtemp(prefix="realcustom-tensorboard-")
        # later rows of a start that was killed are forgotten: those from the first step on that is not done
        purge = None if self._parts else self._step + 1 if self._step else 0
        suffix = f".{self._step:08d}.{self._parts:06d}"  # the name tells times to the second: two starts may share one
        self._parts += 1
        self._writer = SummaryWriter(self._local, purge_step=purge, filename_suffix=suffix)

    def _send(self, writer: Any, local: str) -> None:
        writer.close()
        for path in sorted(Path(local).iterdir()):
            self._store.write(storage.join(self._folder, path.name), path.read_bytes())
        shutil.rmtree(local)


class WandB:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(project=PROJECT, id=name, name=name, resume="allow", config=dict(settings))

    def add(self, row: Row) -> None:
        """Log a row's numbers."""
        self._run.log(dict(scalars(row)), step=row["step"])

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
        experiment = mlflow.set_experiment(PROJECT)
        found = mlflow.search_runs(
            [experiment.experiment_id], f"tags.`mlflow.runName` = '{name}'", output_format="list", max_results=1
        )
        self._run = mlflow.start_run(run_id=found[0].info.run_id) if found else mlflow.start_run(run_name=name)
        if not found:
            mlflow.log_dict(dict(settings), "settings.json")

    def add(self, row: Row) -> None:
        """Log a row's numbers."""
        self._mlflow.log_metrics(dict(scalars(row)), step=row["step"])

    def flush(self) -> None:
        """Nothing: it sends by itself."""

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
