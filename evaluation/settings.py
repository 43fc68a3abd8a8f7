"""Settings of the evaluation table. Imports neither torch nor ray."""

from __future__ import annotations

from dataclasses import dataclass

from realcustom.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """The number of images of a row, and how its interval is computed."""

    images: int = 32  # cases of every row
    batch_size: int = 16  # images of one sampler call
    confidence: float = 0.95  # of the bootstrap intervals
    resamples: int = 4000  # bootstrap resamples
    seed: int = 0  # of the bootstrap
    num_inference_steps: int | None = None  # denoising steps; none = the adapter's setting

    def __post_init__(self) -> None:
        if self.images < 2:
            raise UsageError(f"images must be 2 or more (an interval needs them), got {self.images}")
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be 1 or more, got {self.batch_size}")
        if not 0.0 < self.confidence < 1.0:
            raise UsageError(f"confidence must lie between 0 and 1, got {self.confidence}")
        if self.resamples < 100:
            raise UsageError(f"resamples must be 100 or more, got {self.resamples}")
