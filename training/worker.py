"""The work of one data-parallel worker, from loading the base model to the last step. No Ray: `run.py` and
`distributed.py` call it, in-process or in each of a cluster's workers.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import threading
import time

import torch
import yaml

from realcustom import storage
from realcustom.base import Base
from realcustom.base_loading import load_base
from realcustom.checkpoint import Adapter, load_adapter, save_adapter
from realcustom.errors import UsageError
from realcustom.model import PROJECTOR, RealCustomModel
from realcustom.settings import Fusion, Projector
from realcustom.store import Store
from realcustom.training.ahead import ReadAhead
from realcustom.training.background import Background
from realcustom.training.batch import Batch
from realcustom.training.batches import BatchMaker
from realcustom.training.checkpoints import (
    Checkpoint,
    Snapshot,
    file_name,
    list_checkpoints,
    load_checkpoint,
    prune,
)
from realcustom.training.data import DataOrder, Views, split
from realcustom.training.encoders import FrozenEncoders, check_caches
from realcustom.training.features import FeatureStore, Kind, Memory
from realcustom.training.indexing import open_index
from realcustom.training.job import TrainingJob
from realcustom.training.loop import StepResult, Trainer, TrainingDiverged, World
from realcustom.training.metrics import Metrics
from realcustom.training.objective import Objective
from realcustom.training.samples import draw_sample_sheet
from realcustom.training.settings import Precision
from realcustom.training.stopping import Stopped

logger = logging.getLogger(__name__)

# Parameters that a fusion or a projector leaves out of the forward: they get no gradient.
IDLE: dict[Fusion | Projector, tuple[str, ...]] = {
    Fusion.TEXT: ("adaptive_scoring.latent_",),
    Fusion.VISUAL: ("adaptive_scoring.text_",),
    Projector.SHALLOW_V1_COMPAT: (f"{PROJECTOR}.min_attention.", f"{PROJECTOR}.projector."),
}


class Worker:
    """One worker's models, data and place in the run."""

    def __init__(self, job: TrainingJob, world: World, stop: threading.Event | None = None) -> None:
        """Load everything and continue from the latest checkpoint, if there is one.

        Args:
            stop: is set when the run is asked to end after its step; None: it never is.
        Raises UsageError where a part of the job cannot be used.
        """
        settings = job.settings
        self.job, self.world, self.settings = job, world, settings
        self.store = Store(settings.retries)
        self.losses: dict[str, float] = {}  # of validations, by the step of a checkpoint
        self.stop, self.snapshot = stop or threading.Event(), Snapshot()
        self._say("loading the models and the index of the records")
        self.base: Base = load_base(job.base, dtype=torch.float32)  # on the CPU: only the UNet is always used
        if self.base.is_sdxl:
            raise UsageError(
                f"training on an SDXL-shaped base ({self.base.identity}) is not possible yet: records hold no pooled text. "
                "Train on a Stable Diffusion 1.x-shaped one, or convert released weights (realcustom convert)"
            )
        index = open_index(job.records, self.store)
        held_out, self.validation = split(index, settings.validation_fraction, settings.validation_records)
        self.encoders = FrozenEncoders(self.base, job.image_encoder, job.method, world.device)
        check_caches(index.schema, self.encoders)
        self.order = DataOrder(index, held_out, settings.batch_size, settings.seed, settings.open_parts)
        self.memory = Memory.of(settings.memory_gib)
        self.features = FeatureStore(index, self.encoders, self.memory.features, self.validation, self.store)
        if world.rank == 0:
            self._warn_of_little_memory()
        self.model = self._make_model(int(self.validation[0]))
        objective = Objective(self.base.scheduler, world.device)
        self.batches = BatchMaker(self.features, Views(index, held_out), settings, objective.num_train_timesteps, world)
        self.trainer = Trainer(self.model, objective, settings, job.method.tokens.gamma_num_train, world)
        self.progress = self._resume()

    def _say(self, text: str) -> None:
        """One worker's word for all of them."""
        if self.world.rank == 0:
            logger.info("%s", text)

    def _warn_of_little_memory(self) -> None:
        opened = self.order.open_bytes / self.world.size
        if opened > self.memory.features:
            logger.warning(
                "row groups will be read again and again: open_parts=%d are up to %.1f GiB a worker, of memory_gib=%g there "
                "are %.1f GiB for them; set a larger memory_gib or a smaller open_parts",
                *(self.settings.open_parts, opened / 2**30, self.settings.memory_gib, self.memory.features / 2**30),
            )

    def _make_model(self, first: int) -> RealCustomModel:
        channels, width = self.base.unet.config.in_channels, self.base.unet.config.cross_attention_dim
        latents, text = self.features.get(Kind.LATENTS, first), self.features.get(Kind.TEXT, first)
        if latents.shape[0] != channels or text.shape[-1] != width:
            raise UsageError(
                f"the records' latents {tuple(latents.shape)} and text features {tuple(text.shape)} do not fit the "
                f"base {self.base.identity} ({channels} channels, text width {width}): they were made for another one"
            )
        embed_dim = self.features.get(Kind.IMAGE, first).shape[-1]
        generator = torch.Generator().manual_seed(self.settings.seed)
        model = RealCustomModel(self.base.unet, self.job.method, embed_dim, generator, self.encoders.local_views)
        if self.settings.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        tokens = self.job.method.tokens
        idle = IDLE.get(tokens.fusion, ()) + IDLE.get(tokens.projector, ())
        for name, parameter in model.trained_parameters().items():
            parameter.requires_grad_(not name.startswith(idle))
        if self.job.initial_adapter is not None:
            initial = load_adapter(self.job.initial_adapter, self.store)
            if self.world.rank == 0 and initial.image_encoder != self.encoders.image_encoder_identity:
                logger.warning(
                    "the initial adapter was trained with image encoder %s, this run has another", initial.image_encoder
                )
            model.load_adapter_state_dict(initial.tensors)
        if self.settings.base_dtype is Precision.BF16:
            trained = set(model.trained_parameters().values())
            for parameter in set(model.parameters()) - trained:
                parameter.data = parameter.data.bfloat16()
        return model.to(self.world.device)

    def _resume(self) -> dict[str, float]:
        checkpoints = list_checkpoints(self._folder("checkpoints"), self.store)
        if not checkpoints:
            return {}
        checkpoint = load_checkpoint(checkpoints[-1], self.store)
        if checkpoint.identity != self.job.identity:
            raise UsageError(f"{checkpoints[-1]} belongs to a run of another configuration; choose another --output")
        done, steps = checkpoint.counters["step"], self.settings.steps
        if done > steps:
            raise UsageError(
                f"{checkpoints[-1]}: {done} steps are done, train.steps={steps} are fewer; give {done} or more"
            )
        self.losses = dict(checkpoint.losses)
        self.trainer.load_state(dict(checkpoint.tensors), checkpoint.counters)
        return checkpoint.progress

    def run(self) -> None:
        """Train to the last step and save the adapter.

        Raises, on all workers alike, TrainingDiverged, and Stopped where the run is asked to end before its last step.
        """
        trainer, steps = self.trainer, self.settings.steps
        first = self.world.rank == 0
        if first:
            resolved = yaml.safe_dump(dict(self.job.resolved), sort_keys=False)
            for folder in ("checkpoints", "adapters", "samples"):  # of a start that was killed
                storage.remove_partial_files(self._folder(folder))
            self.store.write(self._folder("settings.yaml"), resolved.encode())
        with (
            Background() as self.background,
            ReadAhead(self._batch, range(trainer.step_count, steps), self.memory.batches) as batches,
        ):
            metrics = self._metrics() if first else None
            if trainer.step_count == 0:
                self._say(f"before the first step: the loss on {len(self.validation)} records that are held out")
                self._validate(metrics)
            else:
                self._say(f"continuing after step {trainer.step_count}")
            while trainer.step_count < steps:
                started = time.monotonic()
                batch = batches.take()
                waited = time.monotonic() - started
                result = trainer.step(batch.to(self.world.device), self.stop.is_set())
                if metrics is not None:
                    metrics.add_step(result, batch.total_weight, waited)
                if result.skipped:
                    uids = ", ".join(dict.fromkeys(map(self.features.index.uid, batch.numbers)))
                    logger.warning("step %d was skipped, it is not finite; its records: %s", trainer.step_count, uids)
                self._after_step(metrics, result)
            if metrics is not None:
                self._finish(metrics)

    def _metrics(self) -> Metrics:
        step, steps = self.trainer.step_count, self.settings.steps
        return Metrics(self.job.output, self.store, self.background, steps, step, self.progress)

    def _batch(self, step: int) -> Batch:
        """This worker's share of a step, in host memory."""
        batch = self.batches.training(self.order.share(step, self.world.rank, self.world.size))
        return batch.pinned() if self.world.device.type == "cuda" else batch

    def _after_step(self, metrics: Metrics | None, result: StepResult) -> None:
        settings, step = self.settings, self.trainer.step_count
        last = step == settings.steps
        if metrics is not None and (last or _due(step, settings.log_every)):
            metrics.close_row(step, result)
        if last or _due(step, settings.val_every):
            self._validate(metrics)
        if metrics is not None:
            self.background.check()
            if last or result.stop or _due(step, settings.checkpoint_every):
                self._checkpoint(metrics)
            if last or _due(step, settings.sample_every):
                self._sample(metrics)
            if result.stop and not last:
                self.background.wait()
        if result.stop and not last:
            raise Stopped(step)

    def _validate(self, metrics: Metrics | None) -> None:
        quantity = self.job.method.tokens.influence_quantity
        batches = self.batches.validation(self.validation)
        losses = self.trainer.validate(batches, self.settings.validation_timesteps, quantity)
        step = self.trainer.step_count
        if not all(map(math.isfinite, losses)):
            raise TrainingDiverged(
                f"the validation loss after step {step} is not finite; the checkpoints of the steps before it are whole; try a "
                f"smaller lr (it is {self.settings.lr}) or precision fp32"
            )
        if metrics is not None:
            metrics.add_validation(self.trainer.step_count, losses)

    def _checkpoint(self, metrics: Metrics) -> None:
        tensors, counters = self.trainer.state()
        progress, identity = metrics.progress(), self.job.identity
        if metrics.validated_at == counters["step"]:
            self.losses[str(counters["step"])] = progress["loss_after"]
        checkpoint = Checkpoint(
            tensors=tensors, counters=counters, progress=progress, identity=identity, losses=self.losses
        )
        self.background.wait()  # one is under way at most
        self.snapshot.take(checkpoint)
        metrics.flush()  # first: a checkpoint has all rows up to its step
        write = functools.partial(self._write, self._adapter(), counters["step"], dict(self.losses))
        self.background.put(write)

    def _write(self, adapter: Adapter, step: int, losses: dict[str, float]) -> None:
        """In the background: the adapter before the checkpoint, so that none is without one."""
        settings, folders = self.settings, [self._folder(name) for name in ("adapters", "checkpoints")]
        save_adapter(storage.join(folders[0], file_name(step)), adapter, self.store)
        self.snapshot.write(folders[1], self.store)
        for folder in folders:
            prune(folder, settings.keep_checkpoints, settings.keep_best, losses, self.store)

    def _sample(self, metrics: Metrics) -> None:
        numbers = [int(number) for number in self.validation[: self.settings.sample_records]]
        pictures = [picture for picture in map(self.features.picture, numbers) if picture.image is not None]
        if not pictures:
            return  # none requested, or the records keep no pictures
        with self.trainer.averaged_weights(), self.trainer.autocast():
            base, method = self.encoders.loaded(), self.job.method
            sheet = draw_sample_sheet(pictures, base, self.model, self.encoders, method, self.settings.sample_steps)
        if sheet is not None:
            self.store.write(self._folder("samples", f"step-{self.trainer.step_count:08d}.png"), sheet)
        metrics.restart_clock()

    def _finish(self, metrics: Metrics) -> None:
        sha256 = save_adapter(self._folder("adapter.safetensors"), self._adapter(), self.store)
        metrics.close()
        losses = {"loss_before": metrics.loss_before, "loss_after": metrics.loss_after}
        result = {"sha256": sha256, **losses, "identity": self.job.identity, "steps": self.settings.steps}
        self.store.write(self._folder("result.json"), json.dumps(result, indent=1).encode())

    def _adapter(self) -> Adapter:
        with self.trainer.averaged_weights():
            return Adapter(
                tensors=self.model.adapter_state_dict(),
                settings=self.job.method,
                base=self.base.identity,
                image_encoder=self.encoders.image_encoder_identity,
                provenance={name: self.job.resolved[name] for name in ("records", "initial_adapter", "train")},
            )

    def _folder(self, *parts: str) -> str:
        return storage.join(self.job.output, *parts)


def _due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps is due; 0 = never."""
    return every > 0 and step % every == 0
