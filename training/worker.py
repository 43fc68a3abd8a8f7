"""The work of one data-parallel worker, from loading the base model to the last step. No Ray: `run.py` and
`distributed.py` call it, in-process or in each of a cluster's workers.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from realcustom.base import Base
from realcustom.base_loading import load_base
from realcustom.compiling import needs_compiler
from realcustom.errors import UsageError
from realcustom.machine import is_out_of_memory
from realcustom.store import Store
from realcustom.training.account import Dropped, account
from realcustom.training.ahead import DeviceCopies, ReadAhead
from realcustom.training.background import Background
from realcustom.training.batch import Batch
from realcustom.training.batches import BatchMaker
from realcustom.training.branch import adapted
from realcustom.training.checkpoints import latest_checkpoint, load_checkpoint
from realcustom.training.clock import Clock
from realcustom.training.data import DataOrder, Views, split
from realcustom.training.encoders import FrozenEncoders, check_caches
from realcustom.training.failures import TrainingDiverged
from realcustom.training.features import FeatureStore, Memory
from realcustom.training.flops import FlopMeter
from realcustom.training.indexing import open_index
from realcustom.training.job import TrainingJob
from realcustom.training.loop import StepResult, Trainer, names_of_moments
from realcustom.training.metrics import Metrics, validation_row
from realcustom.training.metrics_file import Row
from realcustom.training.micro_batch import TOO_LITTLE, find_micro_batch
from realcustom.training.models import first_good, make_model
from realcustom.training.objective import Objective
from realcustom.training.outputs import Outputs
from realcustom.training.reading import RecordsChanged
from realcustom.training.settings import BadRecords, MicroBatch
from realcustom.training.sinks import Sink, make_sinks
from realcustom.training.stopping import Stopped
from realcustom.training.validations import is_apart, is_due, write_result
from realcustom.training.watch import StepWatch
from realcustom.training.world import World

logger = logging.getLogger(__name__)

UNREAD = 64  # steps after which results are read, where nothing else asks for it


class Worker:
    """One worker's models, data and place in the run."""

    def __init__(
        self,
        job: TrainingJob,
        world: World,
        stop: threading.Event | None = None,
        notice: Callable[[], bool] = lambda: False,
        sinks: Sequence[Sink] = (),
        checkpoint: str | None = None,
    ) -> None:
        """Load everything and continue from the latest checkpoint, if there is one.

        Args:
            stop: is set when the run is asked to end after its step; None: it never is.
            notice: whether a machine of the run is about to be taken away; all workers ask at each line of the log.
            sinks: get the rows of metrics.jsonl, beside those of `loggers`.
            checkpoint: uri of the one to continue from; empty: begin anew; None: the latest.
        Raises UsageError where a part of the job cannot be used.
        """
        settings = job.settings
        self.job, self.world, self.settings = job, world, settings
        self.store = Store(settings.retries)
        self.stop, self._notice, self._noticed = stop or threading.Event(), notice, False
        self.sinks = sinks
        self._say("loading the models and the index of the records")
        self.base: Base = load_base(job.base, dtype=torch.float32, only=("unet",))
        index = open_index(job.records, self.store)
        if index.identity != job.resolved["records"]:
            raise RecordsChanged(
                f"the records at {job.records} are not those that this run began with: files were added, removed or written "
                "over; put them back as they were, or begin another run with another --output"
            )
        self.held_out, self.validation = split(index, settings.validation_fraction, settings.validation_records)
        self.encoders = FrozenEncoders(self.base, job.image_encoder, job.method, world.device, job.base)
        check_caches(index.schema, self.encoders)
        self.order = DataOrder(index, self.held_out, settings.batch_size, settings.seed, settings.open_parts)
        self.memory = Memory.of(settings.memory_gib)
        self.features = FeatureStore(index, self.encoders, self.memory.features, self.validation, self.store)
        if world.rank == 0:
            self._warn_of_little_memory()
            for width, height in self.order.not_trained:
                logger.warning(
                    "bucket %d x %d has no record to train on: all of its records are held out", width, height
                )
            if len(index.views) == 0 and any(point.p_multiview for point in settings.curriculum or (settings,)):
                logger.warning(
                    "p_multiview has no effect: no record names another view of its subject (`view_uids`); each is its own "
                    "reference"
                )
        self.dropped = Dropped(job.output, self.store, len(index), settings.max_dropped_fraction, world.size)
        number = first_good(self.features, self.validation, settings)
        self.model = make_model(job, self.base, self.encoders, self.features, number, self.store)
        self.model.to(world.device)
        objective = Objective(self.base.scheduler, world.device)
        self.batches = BatchMaker(
            self.features,
            Views(index, self.held_out),
            settings,
            job.method,
            objective.num_train_timesteps,
            world,
            is_sdxl=self.base.is_sdxl,
            drop=self.dropped.add if settings.bad_records is BadRecords.DROP else None,
        )
        self.clock = Clock()
        self.trainer = Trainer(self.model, objective, settings, job.method.tokens.gamma_num_train, world)
        self.flops = FlopMeter(self.trainer)
        self.outputs = Outputs(job, self.store, self.trainer, self.model, self.encoders, self.features)
        self.progress = self._resume(checkpoint)
        if self.features.from_caches:
            self.batches.prepare_constants()
            self.features.give_up_encoders()

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

    def _resume(self, given: str | None) -> dict[str, float]:
        uri = latest_checkpoint(self.job.output, self.store) if given is None else given
        if not uri:
            return self._branch() if self.job.parent is not None else {}
        checkpoint = load_checkpoint(uri, self.store)
        if checkpoint.identity != self.job.identity:
            raise UsageError(f"{uri} belongs to a run of another configuration; choose another --output")
        done, steps = checkpoint.counters["step"], self.settings.steps
        if done > steps:
            raise UsageError(f"{uri}: {done} steps are done, train.steps={steps} are fewer; give {done} or more")
        self.outputs.losses = dict(checkpoint.losses)
        self.trainer.load_state(dict(checkpoint.tensors), checkpoint.counters)
        return checkpoint.progress

    def _branch(self) -> dict[str, float]:
        """Begin at the parent's checkpoint."""
        assert self.job.parent is not None
        checkpoint = load_checkpoint(self.job.parent.checkpoint, self.store)
        counters = {name: value for name, value in checkpoint.counters.items() if name != "micro_batch"}
        tensors = adapted(checkpoint.tensors, bool(self.trainer.ema))
        taken = counters["step"] - counters["skipped"]
        if taken and not self.trainer.takes_moments(tensors):
            self._say(
                f"the parent's optimizer was another one than {self.settings.optimizer.value}, whose moments begin anew; "
                "weights and step count are the parent's"
            )
            tensors = {name: tensors[name] for name in tensors.keys() - names_of_moments(tensors)}
            counters["before_moments"] = taken
        self.trainer.load_state(tensors, counters)
        return {}

    def find_micro_batch(self, batch: Batch) -> None:
        """With `micro_batch: auto`, before the first step: how many rows of this worker's share a forward takes."""
        if self.settings.micro_batch is not MicroBatch.AUTO:
            return
        find_micro_batch(self.trainer, batch)
        rows, forwards = self.trainer.micro_batch, len(self.trainer.chunks(batch))
        self._say(f"train.micro_batch=auto: {rows} rows in a forward, {forwards} forwards a step on each worker")

    @needs_compiler("train.compile")
    def run(self) -> None:
        """Train to the last step and save the adapter.

        Raises, on all workers alike, TrainingDiverged, and Stopped where the run is asked to end before its last step.
        """
        start, steps = self.trainer.step_count, self.settings.steps
        first = self.world.rank == 0
        if first:
            self.outputs.begin()
        if start < steps:
            self.find_micro_batch(self._batch(self.order.step_of_largest()))
        with (
            Background() as self.background,
            ReadAhead(self._batch, range(start, steps), self.memory.batches) as batches,
            StepWatch(self.settings.step_timeout_minutes) as watch,
        ):
            self.outputs.background = self.background
            metrics = self._metrics() if first else None
            with contextlib.nullcontext() if metrics is None else contextlib.closing(metrics):
                self._train(metrics, DeviceCopies(batches, self.world.device), watch)

    def _train(self, metrics: Metrics | None, batches: DeviceCopies, watch: StepWatch) -> None:
        """The validation before the first step, the steps, and what comes after the last."""
        trainer, steps = self.trainer, self.settings.steps
        if not self.progress:
            self._say(f"before the first step: the loss on {len(self.validation)} records that are held out")
            if not self._validate(metrics):
                raise Stopped(0)
        else:
            self._say(f"continuing after step {trainer.step_count}")
            if self.progress.get("owes"):
                self._look_and_keep(metrics)
        unread: list[tuple[Sequence[int], float]] = []  # records of a step that count here, and on all workers
        while trainer.step_count < steps:
            with watch.step(), naming_what_takes_less_memory():
                with self.clock.part("data"):
                    batch = batches.take()
                with self.clock.part("step"):
                    self.flops.add(batch)
                    results = self._step(batch, batches)
                    unread.append((batch.counted, batch.total_weight))
            if results:
                self._tell(metrics, unread, results)
                unread = []
                stop, save = any(result.stop for result in results), any(result.save for result in results)
                self._after_step(metrics, results[-1], stop, save)
        tensors, _ = trainer.state()
        if metrics is not None:
            account_of = account(len(self.features.index), self.held_out, self.dropped.read())
            self.outputs.finish(metrics, tensors, account_of)

    def _step(self, batch: Batch, batches: DeviceCopies) -> list[StepResult]:
        """Take a step; the results since the last reading, where this step is one at which they are read."""
        if logger.isEnabledFor(logging.DEBUG):  # before it: what a killed worker did is known
            logger.debug("step %d: %s", self.trainer.step_count + 1, self._uids(batch.counted))
        save = self.world.rank == 0 and self.outputs.is_old()
        self.trainer.launch(batch, self.stop.is_set(), save)
        batches.copy_next()
        return self.trainer.read() if self._reads(self.trainer.step_count) else []

    def _uids(self, numbers: Sequence[int]) -> str:
        return ", ".join(map(self.features.index.uid, numbers))

    def _reads(self, step: int) -> bool:
        """Whether the results of the steps are read after this one: the same on all workers. Reading waits for a GPU."""
        settings = self.settings
        every = (settings.log_every, settings.val_every, settings.checkpoint_every, settings.sample_every, UNREAD)
        return not self.trainer.guarded or step == settings.steps or any(is_due(step, count) for count in every)

    def _tell(
        self, metrics: Metrics | None, steps: Sequence[tuple[Sequence[int], float]], results: Sequence[StepResult]
    ) -> None:
        first = self.trainer.step_count - len(results) + 1
        for number, ((records, weight), result) in enumerate(zip(steps, results, strict=True)):
            if metrics is not None:
                metrics.add_step(result, weight)
            if result.skipped:
                said = "step %d was skipped, it is not finite; its records: %s"
                logger.warning(said, first + number, self._uids(records))

    def _metrics(self) -> Metrics:
        step, steps = self.trainer.step_count, self.settings.steps
        sinks = make_sinks(self.job, self.store, step)
        sinks += self.sinks
        return Metrics(self.job.output, self.store, self.background, sinks, steps, step, self.progress)

    def _batch(self, step: int) -> Batch:
        """This worker's share of a step, in host memory."""
        batch = self.batches.training(self.order.share(step, self.world.rank, self.world.size))
        return batch.pinned() if self.world.device.type == "cuda" else batch

    def _after_step(self, metrics: Metrics | None, result: StepResult, stop: bool, save: bool) -> None:
        settings, step = self.settings, self.trainer.step_count
        if metrics is not None and (step == settings.steps or is_due(step, settings.log_every)):
            metrics.close_row(step, result, self.clock.take(), self._speed(metrics))
        self._look_and_keep(metrics, stop, save)

    def _look_and_keep(self, metrics: Metrics | None, stop: bool = False, save: bool = False) -> None:
        """Validate, keep a checkpoint, draw a sheet, as each is due after this step. Where the run is asked to end, also within
        the validation or the sheet, the checkpoint owes what is left out, and a later start makes up for it.
        """
        settings, step = self.settings, self.trainer.step_count
        last, apart = step == settings.steps, is_apart(settings, step)
        validated = str(step) in self.outputs.losses  # by a start that was asked to end within the sheet
        validates = not validated and (last or (is_due(step, settings.val_every) and not apart))
        draws = last or (is_due(step, settings.sample_every) and not apart)
        stop = stop or (validates and not self._validate(metrics))
        self.background.check()
        if is_due(step, settings.log_every):
            before, self._noticed = self._noticed, self._notice()
            save = save or (self._noticed and not before)
        if last or stop or save or apart or is_due(step, settings.checkpoint_every):
            self._keep(metrics, owes=stop and (validates or draws))
        if draws and not stop and not self._draw(metrics):
            stop = True
            self._keep(metrics, owes=True)
        if stop:
            self.background.wait()
            raise Stopped(step)

    def _keep(self, metrics: Metrics | None, owes: bool) -> None:
        """A checkpoint of this step."""
        with self.clock.part("checkpoint"):
            state = self.trainer.state()
            if metrics is not None:
                metrics.owes = owes
                self.outputs.checkpoint(metrics, *state)

    def _draw(self, metrics: Metrics | None) -> bool:
        """A sheet by the first worker, for which the others wait. Whether it came to its end, on all workers alike."""
        drawn = True
        with self.trainer.averaged_weights():
            if metrics is not None:
                with metrics.pause():
                    drawn = self.outputs.sample(self.validation, self.stop.is_set)
        return not bool(self.world.sum(torch.tensor(float(not drawn), device=self.world.device)))

    def _speed(self, metrics: Metrics) -> dict[str, float]:
        """Further numbers of a row: the last checkpoint's age in seconds, memory, and FLOP/s where the device's are known."""
        device, speed = self.world.device, {"checkpoint_age": round(time.monotonic() - self.outputs.saved, 1)}
        if device.type == "cuda":
            speed["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
        return speed | self.flops.read(metrics.seconds)

    def validate_apart(self) -> None:
        """Do with the checkpoint that was loaded what is due after its step, beside the training, and keep what came of it.

        Raises TrainingDiverged as a validation within it does.
        """
        settings, trainer = self.settings, self.trainer
        row: Row = {"step": trainer.step_count}
        if not trainer.micro_batch:  # this worker alone has the whole batch: no more rows at once than in the training
            trainer.micro_batch = -(-settings.batch_size // (settings.num_workers * settings.gradient_accumulation))
        if is_due(trainer.step_count, settings.val_every):
            losses = self._losses()
            assert losses is not None, "a task of its own is ended, not asked to end"
            row = validation_row(trainer.step_count, losses)
            said = "step %d/%d  validation loss %.5f, of its checkpoint"
            logger.info(said, trainer.step_count, settings.steps, row["val_loss"])
        if is_due(trainer.step_count, settings.sample_every):
            with trainer.averaged_weights():
                self.outputs.sample(self.validation)
        write_result(self.job.output, row, self.store)

    def _validate(self, metrics: Metrics | None) -> bool:
        """Whether it came to its end: the run was not asked to end before."""
        with contextlib.nullcontext() if metrics is None else metrics.pause():
            losses = self._losses()
        if metrics is not None and losses is not None:
            metrics.add_validation(self.trainer.step_count, losses)
        return losses is not None

    def _losses(self) -> list[float] | None:
        """The validation losses by timestep, of all workers together; None where the run is asked to end. Raises
        TrainingDiverged where one is not finite.
        """
        quantity = self.job.method.tokens.influence_quantity
        batches = self.batches.validation(self.validation)
        strata, step = self.settings.validation_timesteps, self.trainer.step_count
        losses = self.trainer.validate(batches, strata, quantity, self.stop.is_set)
        if losses is not None and not all(map(math.isfinite, losses)):
            raise TrainingDiverged(
                f"the validation loss after step {step} is not finite; the checkpoints of the steps before it are whole; try a "
                f"smaller lr (it is {self.settings.lr}) or precision fp32"
            )
        return losses


@contextlib.contextmanager
def naming_what_takes_less_memory() -> Iterator[None]:
    """A context in which too little memory of the device becomes a UsageError."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UsageError(
            f"{TOO_LITTLE}: set train.micro_batch=auto, train.gradient_checkpointing=true, or "
            "train.precision=bf16 with train.base_dtype=bf16 (--dry-run counts what each takes)"
        ) from error
