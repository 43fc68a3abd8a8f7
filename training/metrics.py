"""Metrics of a run: metrics.jsonl, log lines, and the sinks that are asked for."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence

from realcustom import storage
from realcustom.store import Store
from realcustom.training.background import Background
from realcustom.training.loop import StepResult
from realcustom.training.metrics_file import MetricsFile, Row, note_start
from realcustom.training.sinks import Sink

logger = logging.getLogger(__name__)

WRITE_SECONDS = 5.0  # between writes to a disk
STORE_SECONDS = 60.0  # to an object store, where each write is a file


def validation_row(step: int, losses: Sequence[float]) -> Row:
    """The row of a validation from its losses by timestep, from the least noise to the most."""
    return {"step": step, "val_loss": sum(losses) / len(losses), "val_losses": list(losses)}


def _rate(value: float) -> str:
    """With two digits at least: `0.17`, `1.7`, `17`, `170`."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


class Metrics:
    """Averages steps into rows. Only the first worker has one."""

    def __init__(
        self,
        output: str,
        store: Store,
        background: Background,
        sinks: Sequence[Sink],
        steps: int,
        step: int,
        progress: dict[str, float],
    ) -> None:
        """Continue the metrics of `output` after `step` of `steps` steps.

        Args:
            background: writes the rows.
            sinks: get them too.
            progress: the checkpoint's.
        """
        self._file, self._background = MetricsFile(output, store), background
        known = self._file.cut(step)
        # steps after the checkpoint that are done again; None: the run begins
        self._repeated = max(0, known - step) if known or progress else None
        note_start(output, step, self._repeated or 0, store)
        self._rows: list[Row] = []  # not written yet
        self._interval = STORE_SECONDS if storage.is_remote(output) else WRITE_SECONDS
        self.steps, self.started_at_step = steps, step
        self.loss_sum = progress.get("loss_sum", 0.0)
        self.count = int(progress.get("count", 0))
        self.skipped = int(progress.get("skipped", 0))
        self.loss_before = progress.get("loss_before")  # the first validation loss
        self.loss_after = progress.get("loss_after")  # the latest one
        self.validated_at = -1  # step of the latest validation of this start
        self.owes = False  # a validation or a sheet of the latest step, as the run was asked to end
        self._images, self._steps = 0.0, 0
        self._since = self._started = self._written = time.monotonic()
        self._said = 0.0
        self._sinks = sinks

    def progress(self) -> dict[str, float]:
        """The sums of the current row and the validation losses, for the checkpoint."""
        assert self.loss_before is not None and self.loss_after is not None  # one comes before the first step
        losses = {"loss_before": self.loss_before, "loss_after": self.loss_after}
        owed = {"owes": 1.0} if self.owes else {}
        return {"loss_sum": self.loss_sum, "count": self.count, "skipped": self.skipped} | losses | owed

    def add_step(self, result: StepResult, images: float) -> None:
        """One step: its result, and the records of its batch."""
        self.count += not result.skipped
        self.skipped += result.skipped
        self.loss_sum += 0.0 if result.skipped else result.loss
        self._images += images
        self._steps += 1

    def close_row(self, step: int, result: StepResult, seconds: Mapping[str, float], more: Mapping[str, float]) -> None:
        """Write the mean over the steps since the last row.

        Args:
            seconds: that the parts of these steps took together; "data" is waiting for batches.
            more: further numbers of the row.
        """
        passed = max(1e-9, time.monotonic() - self._since)
        row: Row = {
            "step": step,
            "loss": self.loss_sum / self.count if self.count else None,
            "lr": result.lr,
            "grad_norm": result.grad_norm if not result.skipped else None,
            "grad_norms": result.grad_norms if not result.skipped else {},
            "skipped": self.skipped,
            "images_per_second": float(f"{self._images / passed:.4g}"),
            "data_wait": round(seconds.get("data", 0.0) / passed, 4),
            "seconds": {name: round(value / max(1, self._steps), 6) for name, value in seconds.items()},
            **({} if self._repeated is None else {"repeated": self._repeated}),
            **more,
        }
        self._repeated = None
        self.loss_sum, self.count, self.skipped, self._images, self._steps = 0.0, 0, 0, 0.0, 0
        self._since = time.monotonic()
        self._add(row)
        if time.monotonic() - self._said > WRITE_SECONDS or step == self.steps:
            self._said = time.monotonic()
            pace = (time.monotonic() - self._started) / max(1, step - self.started_at_step)
            loss = "none" if row["loss"] is None else f"{row['loss']:.4f}"
            logger.info(
                f"step {step}/{self.steps}  loss {loss}  {_rate(row['images_per_second'])} images/s  "
                f"data wait {row['data_wait']:.0%}  {pace * (self.steps - step):.0f} s left"
            )

    def add_validation(self, step: int, losses: list[float]) -> None:
        """Add the validation losses by timestep, from the least noise to the most."""
        row = validation_row(step, losses)
        loss = row["val_loss"]
        self.loss_before = loss if self.loss_before is None else self.loss_before
        self.loss_after, self.validated_at = loss, step
        self._add(row)
        logger.info("step %d/%d  validation loss %.5f", step, self.steps, loss)

    def tell(self, row: Row) -> None:
        """Give the sinks a row that is kept elsewhere, of a step that may be long past."""
        for sink in self._sinks:
            sink.add(row)

    @property
    def seconds(self) -> float:
        """Since the current row began."""
        return max(1e-9, time.monotonic() - self._since)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """A context whose time is not that of steps: no row counts it."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - start

    def flush(self) -> None:
        """Write the rows that are not written, in the background."""
        rows, self._rows, self._written = self._rows, [], time.monotonic()
        if rows:
            self._background.put(lambda: self._file.add(rows))
        for sink in self._sinks:
            slow = sink.flush()
            if slow is not None:
                self._background.put(slow)

    def finish(self) -> None:
        """Write the remaining rows, and all of them into one file."""
        self.flush()
        self._background.wait()
        self._file.cut(self.steps)

    def close(self) -> None:
        """End the sinks, also after an error."""
        for sink in self._sinks:
            sink.close()

    def _add(self, row: Row) -> None:
        self._rows.append(row)
        for sink in self._sinks:
            sink.add(row)
        if time.monotonic() - self._written > self._interval:
            self.flush()
