"""Settings of a training run. Imports neither torch nor ray."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field

from realcustom.errors import UsageError
from realcustom.retry import RetrySettings


class Precision(enum.Enum):
    """Arithmetic of the forward pass; trained weights and optimizer state are always fp32."""

    FP32 = "fp32"
    BF16 = "bf16"  # torch.autocast


class Schedule(enum.Enum):
    """Learning rate after warm-up."""

    CONSTANT = "constant"  # its run is trained further with more `steps`
    COSINE = "cosine"  # to zero at the last step
    LINEAR = "linear"  # to zero at the last step
    WSD = "wsd"  # warm-up, stable, decay: constant, then linear to zero over the last `decay` steps


class Optimizer(enum.Enum):
    """What moves the weights."""

    ADAMW = "adamw"  # torch's; fused on a GPU
    ADAMW_8BIT = "adamw_8bit"  # torchao's: moments in 8 bits, 2 bytes a weight in the place of 8
    PRODIGY = "prodigy"  # prodigyopt's: AdamW that estimates its rate; `lr` is a factor of it, 1 is usual


class MicroBatch(enum.Enum):
    """Rows of a forward that are found before the first step."""

    AUTO = "auto"  # as many as the memory holds, from a worker's whole share of the batch down by halves


class BadRecords(enum.Enum):
    """What becomes of a record whose features are not finite, short, or cannot be computed."""

    STOP = "stop"  # the run ends and names it
    DROP = "drop"  # its place in its batch has weight zero; report.json lists it


class Logger(enum.Enum):
    """Where curves go, beside metrics.jsonl."""

    TENSORBOARD = "tensorboard"  # OUTPUT/tensorboard
    WANDB = "wandb"  # Weights & Biases, as its own environment variables say
    MLFLOW = "mlflow"  # MLFLOW_TRACKING_URI


@dataclass(frozen=True, kw_only=True)
class CurriculumPoint:
    """Probabilities at a step; between two points they change linearly, before the first and after the last not at all."""

    until_step: int  # optimizer step at which these hold
    p_multiview: float = 0.0  # probability that the reference is another view (`view_uids`) where one is known
    ref_aug: float = (
        0.0  # probability that the record's own reference is scaled (0.5 to 1), turned (15 degrees) and mirrored
    )

    def __post_init__(self) -> None:
        if self.until_step < 0:
            raise UsageError(f"until_step={self.until_step} must not be negative")
        for name in ("p_multiview", "ref_aug"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name}={getattr(self, name)} is a probability, in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One training run. `lr` and `steps` are the paper's (section 4.1); the other values are our decisions."""

    lr: float = 1e-5  # AdamW's peak learning rate
    steps: int = 160_000  # optimizer steps
    batch_size: int = 64  # records per optimizer step, over all workers
    gradient_accumulation: int = 1  # number of forwards that a worker's share of the batch is split into
    micro_batch: int | MicroBatch = 0  # rows of a forward on a worker, or `auto`; 0 = as gradient_accumulation says
    optimizer: Optimizer = Optimizer.ADAMW
    weight_decay: float = 1e-2  # AdamW, decoupled
    schedule: Schedule = Schedule.CONSTANT
    warmup: int = 500  # steps of linear warm-up
    decay: int = 0  # steps at the end in which the rate of `schedule: wsd` falls; the adapter is best after them
    grad_clip: float = 1.0  # largest gradient norm; 0 = no clipping
    ema_decay: float = 0.0  # of the trained weights, in [0, 1); 0 = off. When on, the adapter holds the EMA weights
    ema_on_host: bool = False  # keep the EMA weights in host memory: less of the GPU's, a copy over the bus each step
    precision: Precision = Precision.FP32
    base_dtype: Precision = Precision.FP32  # of the frozen UNet's weights; bf16 halves them and needs precision bf16
    gradient_checkpointing: bool = (
        False  # compute activations again in the backward pass: less memory, a third more time
    )
    compile: bool = False  # torch.compile of the UNet's convolution blocks and feed-forwards; needs a compiler
    seed: int = 0  # seed of the order of data, noise, timesteps, dropout and new weights

    min_snr_gamma: float = 0.0  # > 0: errors of little noise count less (min-SNR; 5 is usual); 0 = all count alike
    timestep_shift: float = 1.0  # t = s u / (1 + (s - 1) u), u uniform: 1 = uniform, as the paper; more = noisier
    p_drop_text: float = 0.0  # probability that a sample's caption is the empty one
    # probability that a sample has no reference: its image features are zero, with RealCustom++ those of a black picture
    p_drop_image: float = 0.0
    p_drop_both: float = 0.0  # probability that a sample has neither, beside those two
    p_multiview: float = 0.0  # probability that the reference is another view (`view_uids`) where one is known
    # `{until_step, p_multiview, ref_aug}`: both change linearly from one point to the next, in the place of p_multiview
    curriculum: tuple[CurriculumPoint, ...] = ()
    subject_loss_weight: float = 1.0  # weight of the error inside the subject's mask, that outside is 1; 1 = off
    open_parts: int = (
        8  # parts of files (whole row groups, some 128 MiB) whose rows are mixed with each other at a time
    )

    bad_records: BadRecords = BadRecords.STOP
    max_dropped_fraction: float = 0.2  # share of the records that `drop` may drop; above it the run stops
    validation_fraction: float = 0.05  # share of the pictures that is held out, chosen by a hash of their uid
    validation_records: int = 64  # at most this many are held out
    validation_timesteps: int = 4  # fixed timesteps per held-out record
    val_every: int = 500  # steps between validations; 0 = only the ones before the first step and after the last
    # on Ray: validations and sheets but the first and the last are made of checkpoints by a task of its own, with a CPU, or GPU,
    # beside the workers' ones, while the training goes on
    async_validation: bool = False
    log_every: int = 10  # steps per line of metrics.jsonl; 0 = only after the last step
    sample_every: int = 0  # steps between sample sheets; 0 = only after the last step
    sample_records: int = 4  # held-out records on a sample sheet; 0 = no sheets
    sample_steps: int = 20  # denoising steps of a sample

    checkpoint_every: int = 500  # steps; 0 = only after the last one: an interrupted run begins again
    checkpoint_minutes: float = 0.0  # further ones, this long after the one before; 0 = none
    keep_checkpoints: int = 2  # the latest ones, and their adapters in adapters/
    keep_best: int = 1  # further ones with the least validation loss, of those that were written at a validation
    max_skipped_steps: int = 10  # consecutive steps with a non-finite loss or gradient before the run stops
    max_failures: int = 2  # times in a row that lost workers are replaced without a new checkpoint; -1 = without limit
    step_timeout_minutes: float = (
        0.0  # a worker whose step takes longer is ended, and replaced as a lost one; 0 = never
    )
    loggers: tuple[Logger, ...] = (Logger.TENSORBOARD,)  # beside metrics.jsonl
    device_tflops: float = 0.0  # of one GPU at this precision, for MFU; 0 = from its name, where that is known

    num_workers: int = 2  # data-parallel processes
    min_workers: int = 0  # on Ray: go on with so few while the cluster has no more; 0 = num_workers, wait for all
    worker_resources: tuple[str, ...] = ()  # of Ray, beside a worker's CPU or GPU, as memory=3e10 (bytes)
    worker_labels: tuple[str, ...] = ()  # of the nodes that workers run on, as ray.io/accelerator-type=H100
    shard: bool = False  # each worker holds a part of the trained weights, gradients and moments (FSDP2), not all (DDP)
    threads: int = 0  # CPU threads per worker; 0 = the machine's cores over its workers
    use_gpu: bool = False  # one GPU per worker
    memory_gib: float = 2.0  # memory per worker, GiB, for row groups, kept features and batches that wait
    retries: RetrySettings = field(default_factory=RetrySettings)  # of reading and writing when the storage fails

    def __post_init__(self) -> None:
        counts = (
            *("steps", "batch_size", "gradient_accumulation", "open_parts", "validation_records"),
            *("validation_timesteps", "sample_steps", "keep_checkpoints"),
            *("num_workers", "max_skipped_steps"),
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        for name in (
            *(
                "weight_decay",
                "warmup",
                "grad_clip",
                "min_snr_gamma",
                "keep_best",
                "sample_records",
                "threads",
                "min_workers",
                "memory_gib",
            ),
            *("val_every", "log_every", "checkpoint_every", "sample_every", "decay", "subject_loss_weight"),
            *("checkpoint_minutes", "step_timeout_minutes", "device_tflops"),
        ):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("p_drop_text", "p_drop_image", "p_drop_both", "p_multiview"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name}={getattr(self, name)} is a probability, in [0, 1]")
        if not 0 <= self.max_dropped_fraction <= 1:
            raise UsageError(f"max_dropped_fraction={self.max_dropped_fraction} is a share, in [0, 1]")
        if isinstance(self.micro_batch, int) and self.micro_batch < 0:
            raise UsageError(f"micro_batch={self.micro_batch} must be auto, a number of rows, or 0")
        if self.micro_batch and self.gradient_accumulation != 1:
            raise UsageError(
                f"gradient_accumulation={self.gradient_accumulation} and micro_batch say the same: set one of them"
            )
        for name in ("lr", "timestep_shift"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name}={getattr(self, name)} must be positive")
        if self.base_dtype is Precision.BF16 and self.precision is not Precision.BF16:
            raise UsageError("base_dtype=bf16 needs precision=bf16: fp32 arithmetic on rounded weights gains nothing")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"ema_decay={self.ema_decay} must be in [0, 1); 0 turns it off")
        if not 0 < self.validation_fraction < 1:
            raise UsageError(f"validation_fraction={self.validation_fraction} must be in (0, 1)")
        self._check_schedule()
        if self.max_failures < -1:
            raise UsageError(f"max_failures={self.max_failures} must be -1 (no limit) or more")
        for name, form in (("worker_resources", r"[^=]+=\d+(\.\d+)?(e\d+)?"), ("worker_labels", "[^=]+=.+")):
            for text in getattr(self, name):
                if re.fullmatch(form, text) is None:
                    raise UsageError(f"{name}: {text!r} is not of the form NAME=VALUE")
        if self.shard and (self.optimizer is not Optimizer.ADAMW or self.ema_on_host):
            raise UsageError("shard=true is for optimizer=adamw with ema_on_host=false: their state is sharded instead")
        if self.min_workers > self.num_workers:
            raise UsageError(
                f"min_workers={self.min_workers} exceeds num_workers={self.num_workers}, the most there are"
            )
        if self.num_workers > self.batch_size:
            raise UsageError(f"num_workers={self.num_workers} exceeds batch_size={self.batch_size}: a worker is idle")

    def _check_schedule(self) -> None:
        if self.schedule is Schedule.WSD and not 0 < self.decay <= self.steps:
            raise UsageError(
                f"schedule=wsd needs decay, 1 to steps={self.steps}: how many steps its rate falls; {self.decay}"
            )
        if self.schedule is not Schedule.WSD and self.decay:
            raise UsageError(f"decay={self.decay} belongs to schedule=wsd; {self.schedule.value} has none")
        steps = [point.until_step for point in self.curriculum]
        if steps != sorted(set(steps)):
            raise UsageError(f"the curriculum's until_step must rise from one point to the next: {steps}")
        if self.curriculum and self.p_multiview:
            raise UsageError(
                f"p_multiview={self.p_multiview} is given beside a curriculum, which has its own; set it to 0"
            )

    def at(self, step: int) -> tuple[float, float]:
        """p_multiview and the probability of an augmented reference, at an optimizer step (from 0)."""
        points = self.curriculum
        if not points:
            return self.p_multiview, 0.0
        after = next((number for number, point in enumerate(points) if point.until_step >= step), len(points) - 1)
        end, start = points[after], points[max(0, after - 1)]
        length = end.until_step - start.until_step
        share = min(1.0, (step - start.until_step) / length) if length else 1.0
        p_multiview = start.p_multiview + share * (end.p_multiview - start.p_multiview)
        return p_multiview, start.ref_aug + share * (end.ref_aug - start.ref_aug)


# Settings that may differ when a run is continued: they change how it runs and what it tells, not the weights.
OPERATIONAL = frozenset(
    {
        *(
            "keep_checkpoints",
            "keep_best",
            "checkpoint_every",
            "checkpoint_minutes",
            "step_timeout_minutes",
            "loggers",
            "device_tflops",
            "max_failures",
            "num_workers",
            "min_workers",
            "worker_resources",
            "worker_labels",
            "shard",
            "threads",
            "use_gpu",
            "memory_gib",
            "micro_batch",
            "compile",
            "async_validation",
            "max_dropped_fraction",
        ),
        *("log_every", "val_every", "sample_every", "sample_records", "sample_steps", "max_skipped_steps", "retries"),
    }
)


def may_change(settings: TrainSettings) -> frozenset[str]:
    """Names of the settings that may differ when a run is continued: with a schedule that has no end, `steps` too.

    `wsd` has none before its rate begins to fall.
    """
    return OPERATIONAL | ({"steps"} if settings.schedule in (Schedule.CONSTANT, Schedule.WSD) else set())
