"""What a run writes, by its first worker: checkpoints with their adapters, sheets, the page, the result."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import yaml

from realcustom import storage
from realcustom.checkpoint import Adapter, save_adapter
from realcustom.compiling import no_new_graphs
from realcustom.model import RealCustomModel
from realcustom.store import Store
from realcustom.training.background import Background
from realcustom.training.checkpoints import Checkpoint, Snapshot, file_name
from realcustom.training.encoders import FrozenEncoders
from realcustom.training.features import FeatureStore
from realcustom.training.job import TrainingJob
from realcustom.training.loop import Trainer
from realcustom.training.metrics import Metrics
from realcustom.training.metrics_file import Row, validation_losses
from realcustom.training.page import write_page
from realcustom.training.samples import draw_sample_sheet
from realcustom.training.validations import prune_all, read_results, skip_oldest

PAGE_SECONDS = 600.0  # between pages on an object store, where the rows are fetched for each
PROVENANCE = ("records", "initial_adapter", "train", "parent")  # of all that decides the result, where it is there


class Outputs:
    """The files of a run's folder, but for metrics and dropped records."""

    background: Background  # set before the first checkpoint

    def __init__(
        self,
        job: TrainingJob,
        store: Store,
        trainer: Trainer,
        model: RealCustomModel,
        encoders: FrozenEncoders,
        features: FeatureStore,
    ) -> None:
        self._job, self._store, self._trainer, self._model = job, store, trainer, model
        self._encoders, self._features, self._snapshot = encoders, features, Snapshot()
        self.losses: dict[str, float] = {}  # of validations, by the step of a checkpoint
        self._known: set[int] = set()  # steps whose validation beside the training has ended
        self._news: list[Row] = []  # of these, the rows that are not told yet
        self.saved = time.monotonic()  # the last checkpoint
        self._next_page = -math.inf

    def begin(self) -> None:
        """Write the settings, and remove what a start that was killed left half written."""
        for folder in ("checkpoints", "adapters", "samples"):
            storage.remove_partial_files(self._place(folder))
        resolved = yaml.safe_dump(dict(self._job.resolved), sort_keys=False)
        self._store.write(self._place("settings.yaml"), resolved.encode())

    def is_old(self) -> bool:
        """Whether the last checkpoint is older than `checkpoint_minutes`."""
        minutes = self._job.settings.checkpoint_minutes
        return minutes > 0 and time.monotonic() - self.saved > 60 * minutes

    def checkpoint(self, metrics: Metrics, tensors: Mapping[str, torch.Tensor], counters: dict[str, int]) -> None:
        """Copy all that a resume needs, the trainer's state; it is written in the background."""
        self.background.wait()  # one is under way at most
        self._tell_news(metrics)
        progress, identity = metrics.progress(), self._job.identity
        if metrics.validated_at == counters["step"]:
            self.losses[str(counters["step"])] = progress["loss_after"]
        checkpoint = Checkpoint(
            tensors=tensors, counters=counters, progress=progress, identity=identity, losses=self.losses
        )
        self.saved = time.monotonic()
        self._snapshot.take(checkpoint)
        metrics.flush()  # first: a checkpoint has all rows up to its step
        self.background.put(functools.partial(self._write, counters["step"], dict(self.losses)))

    def sample(self, validation: np.ndarray, stop: Callable[[], bool] = lambda: False) -> bool:
        """Draw the sheet of the first held-out records that keep their pictures, if there are any, with the model's weights.

        Returns False where `stop`, asked between denoising steps, left it out.
        """
        settings, method = self._job.settings, self._job.method
        numbers = [int(number) for number in validation[: settings.sample_records]]
        pictures = [picture for picture in map(self._features.picture, numbers) if picture.image is not None]
        if not pictures:
            return True
        with self._trainer.autocast(), no_new_graphs():  # a sheet's shapes are its own
            base = self._encoders.loaded()
            sheet = draw_sample_sheet(pictures, base, self._model, self._encoders, method, settings.sample_steps, stop)
        self._features.give_up_encoders()  # a sheet takes them from a GPU's memory
        if sheet is None:
            return False
        sheet.write(self._job.output, self._trainer.step_count, self._store)
        return True

    def finish(self, metrics: Metrics, tensors: Mapping[str, torch.Tensor], account: dict[str, Any]) -> None:
        """Write the adapter of the trainer's state, the account of the records, the result and the page."""
        self.background.wait()
        self._read_news()
        self._tell_news(metrics)
        sha256 = save_adapter(self._place("adapter.safetensors"), self._adapter(tensors), self._store)
        metrics.finish()
        self._store.write(self._place("report.json"), json.dumps(account, indent=1).encode())
        losses = {"loss_before": metrics.loss_before, "loss_after": metrics.loss_after}
        result: dict[str, Any] = {
            "sha256": sha256,
            **losses,
            "identity": self._job.identity,
            "steps": self._job.settings.steps,
        }
        if self._job.settings.async_validation:
            result["validated"] = sorted(self._known)
        self._store.write(self._place("result.json"), json.dumps(result, indent=1).encode())
        write_page(self._job.output, self._job.identity, self._store)

    def _write(self, step: int, losses: dict[str, float]) -> None:
        """In the background: the adapter before the checkpoint, so that none is without one."""
        adapter = self._adapter(self._snapshot.tensors)
        save_adapter(self._place("adapters", file_name(step)), adapter, self._store)
        self._snapshot.write(self._place("checkpoints"), self._store)
        if self._job.settings.async_validation:
            skip_oldest(self._job, self._store, {*self._known, *map(int, losses)})
        self._read_news()
        losses |= validation_losses(self._news)
        prune_all(self._job, losses, {*self._known, *map(int, losses)}, self._store)
        if time.monotonic() >= self._next_page:
            self._show()

    def _show(self) -> None:
        """The page. On an object store the next one waits, that its reading takes little of the thread that writes."""
        start = time.monotonic()
        write_page(self._job.output, self._job.identity, self._store)
        if storage.is_remote(self._job.output):
            now = time.monotonic()
            self._next_page = now + max(PAGE_SECONDS, 20 * (now - start))

    def _read_news(self) -> None:
        """What has come of the validations beside the training."""
        if self._job.settings.async_validation:
            rows = list(read_results(self._job.output, self._store, {*self._known, *map(int, self.losses)}))
            self._known |= {row["step"] for row in rows}
            self._news += rows

    def _tell_news(self, metrics: Metrics) -> None:
        """It, to the sinks and to the next checkpoint."""
        rows, self._news = self._news, []
        self.losses |= validation_losses(rows)
        for row in rows:
            if "val_loss" in row:
                metrics.tell(row)

    def _adapter(self, state: Mapping[str, torch.Tensor]) -> Adapter:
        """The adapter of a state: its averaged weights, if there are any."""
        kind = "ema" if self._trainer.ema else "weights"
        # the state lacks what is not trained with these settings, which does not change
        tensors = {name: state.get(f"{kind}.{name}", value) for name, value in self._model.trained_parameters().items()}
        return Adapter(
            tensors=tensors,
            settings=self._job.method,
            base=self._encoders.base.identity,
            image_encoder=self._encoders.image_encoder_identity,
            provenance={name: self._job.resolved[name] for name in PROVENANCE if name in self._job.resolved},
        )

    def _place(self, *parts: str) -> str:
        return storage.join(self._job.output, *parts)
