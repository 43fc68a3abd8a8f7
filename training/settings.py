"""Settings of a training run. Imports neither torch nor ray."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from realcustom.errors import UsageError
from realcustom.retry import RetrySettings


class Precision(enum.Enum):
    """Arithmetic of the forward pass; trained weights and optimizer state are always fp32."""

    FP32 = "fp32"
    BF16 = "bf16"  # torch.autocast


class Schedule(enum.Enum):
    """Learning rate after warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"  # to zero at the last step


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One training run. `lr` and `steps` are the paper's (section 4.1); the other values are our decisions."""

    lr: float = 1e-5  # AdamW's peak learning rate
    steps: int = 160_000  # optimizer steps
    batch_size: int = 64  # records per optimizer step, over all workers
    gradient_accumulation: int = 1  # number of forwards that a worker's share of the batch is split into
    weight_decay: float = 1e-2  # AdamW, decoupled
    schedule: Schedule = Schedule.CONSTANT
    warmup: int = 500  # steps of linear warm-up
    grad_clip: float = 1.0  # largest gradient norm; 0 = no clipping
    ema_decay: float = 0.0  # of the trained weights, in [0, 1); 0 = off. When on, the adapter holds the EMA weights
    precision: Precision = Precision.FP32
    base_dtype: Precision = Precision.FP32  # of the frozen UNet's weights; bf16 halves them and needs precision bf16
    gradient_checkpointing: bool = (
        False  # compute activations again in the backward pass: less memory, a third more time
    )
    seed: int = 0  # seed of the order of data, noise, timesteps, dropout and new weights

    min_snr_gamma: float = 0.0  # > 0: errors of little noise count less (min-SNR; 5 is usual); 0 = all count alike
    timestep_shift: float = 1.0  # t = s u / (1 + (s - 1) u), u uniform: 1 = uniform, as the paper; more = noisier
    p_drop_text: float = 0.0  # probability that a sample's caption is the empty one
    p_drop_image: float = 0.0  # probability that a sample has no reference (its image features are zero)
    p_multiview: float = 0.0  # probability that the reference is another view (`view_uids`) where one is known
    open_parts: int = (
        8  # parts of files (whole row groups, some 128 MiB) whose rows are mixed with each other at a time
    )

    validation_fraction: float = 0.05  # share of the pictures that is held out, chosen by a hash of their uid
    validation_records: int = 64  # at most this many are held out
    validation_timesteps: int = 4  # fixed timesteps per held-out record
    val_every: int = 500  # steps between validations; 0 = only the ones before the first step and after the last
    log_every: int = 10  # steps per line of metrics.jsonl; 0 = only after the last step
    sample_every: int = 0  # steps between sample sheets; 0 = only after the last step
    sample_records: int = 4  # held-out records on a sample sheet; 0 = no sheets
    sample_steps: int = 20  # denoising steps of a sample

    checkpoint_every: int = 500  # steps; 0 = only after the last one: an interrupted run begins again
    keep_checkpoints: int = 2  # the latest ones, and their adapters in adapters/
    keep_best: int = 1  # further ones with the least validation loss, of those that were written at a validation
    max_skipped_steps: int = 10  # consecutive steps with a non-finite loss or gradient before the run stops
    max_failures: int = 2  # times that lost workers are replaced; -1 = without limit

    num_workers: int = 2  # data-parallel processes
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
                "memory_gib",
            ),
            *("val_every", "log_every", "checkpoint_every", "sample_every"),
        ):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("p_drop_text", "p_drop_image", "p_multiview"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name}={getattr(self, name)} is a probability, in [0, 1]")
        for name in ("lr", "timestep_shift"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name}={getattr(self, name)} must be positive")
        if self.base_dtype is Precision.BF16 and self.precision is not Precision.BF16:
            raise UsageError("base_dtype=bf16 needs precision=bf16: fp32 arithmetic on rounded weights gains nothing")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"ema_decay={self.ema_decay} must be in [0, 1); 0 turns it off")
        if not 0 < self.validation_fraction < 1:
            raise UsageError(f"validation_fraction={self.validation_fraction} must be in (0, 1)")
        if self.max_failures < -1:
            raise UsageError(f"max_failures={self.max_failures} must be -1 (no limit) or more")
        if self.num_workers > self.batch_size:
            raise UsageError(f"num_workers={self.num_workers} exceeds batch_size={self.batch_size}: a worker is idle")


# Settings that may differ when a run is continued: they change how it runs and what it tells, not the weights.
OPERATIONAL = frozenset(
    {
        *(
            "keep_checkpoints",
            "keep_best",
            "checkpoint_every",
            "max_failures",
            "num_workers",
            "threads",
            "use_gpu",
            "memory_gib",
        ),
        *("log_every", "val_every", "sample_every", "sample_records", "sample_steps", "max_skipped_steps", "retries"),
    }
)


def may_change(settings: TrainSettings) -> frozenset[str]:
    """Names of the settings that may differ when a run is continued: with a schedule that has no end, `steps` too."""
    return OPERATIONAL | ({"steps"} if settings.schedule is Schedule.CONSTANT else set())
