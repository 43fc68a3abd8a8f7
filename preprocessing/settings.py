"""Settings of preprocessing: all stages', and what they run on. A stage's own are in its folder's settings.py.

None of these modules imports torch or ray: a typing error is found before anything starts.

The sections `ingest` to `export` and `compute` decide what the output is and so belong to a stage's fingerprint;
`execution` decides only how the work runs and does not.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields
from typing import Any

from realcustom.buckets import Buckets
from realcustom.dtype import Dtype
from realcustom.errors import UsageError
from realcustom.preprocessing.caption.settings import CaptionPolicy, CaptionSettings, EndpointSettings
from realcustom.preprocessing.ingest.settings import CaptionRule, DownloadSettings, IngestSettings, SourceKind
from realcustom.preprocessing.ranges import BatchSize, at_least, fixed_batch
from realcustom.preprocessing.score.settings import JUDGED, ScoreSettings
from realcustom.preprocessing.select.settings import SelectSettings
from realcustom.preprocessing.subjects.settings import SubjectsSettings
from realcustom.preprocessing.views.settings import ViewsSettings
from realcustom.retry import RetrySettings

__all__ = [
    "JUDGED",
    "BatchSize",
    "CaptionPolicy",
    "CaptionRule",
    "CaptionSettings",
    "ComputeSettings",
    "Device",
    "DownloadSettings",
    "EncodeSettings",
    "EndpointSettings",
    "ExecutionSettings",
    "ExportSettings",
    "IngestSettings",
    "ModelDtype",
    "NoSettings",
    "PreprocessSettings",
    "ScoreSettings",
    "SelectSettings",
    "SourceKind",
    "SubjectsSettings",
    "ViewsSettings",
    "fixed_batch",
]


class Device(enum.Enum):
    """Device class that models run on."""

    CPU = "cpu"
    CUDA = "cuda"


class ModelDtype(enum.Enum):
    """Number format that models compute in. Weights, norms and softmax stay in float32."""

    AUTO = "auto"  # bfloat16 on cuda, float32 on cpu
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """Caches of the training recipe; each can be left out."""

    base: str | None = None  # diffusers folder or hub id: VAE and text encoder; null: the run's `base`
    # as method.image_encoder.model: hub id or folder, two for siglip_dino; null: that one
    image_encoder: str | None = None
    latents: bool = True  # the picture as VAE latents, by `base`
    text_features: bool = True  # hidden states of the caption, by `base`'s text encoder
    image_features: bool = True  # features of the reference, by `image_encoder`
    resolution: int = 512  # pixels, without buckets: shorter side scaled to it, a square that shows the subject encoded
    buckets: Buckets = field(default_factory=Buckets)  # parts of other shapes in its place
    max_cut: float = 0.2  # share of the subject's mask outside what is encoded above which a record is dropped
    dtype: Dtype = Dtype.FLOAT16  # of cached tensors
    batch_size: int | BatchSize = 8  # records per forward
    keep_image: bool = True  # false: records hold no picture, only the caches

    def __post_init__(self) -> None:
        at_least(1, resolution=self.resolution, batch_size=self.batch_size)
        if not 0 <= self.max_cut <= 1:
            raise UsageError(f"encode.max_cut is a share within 0..1, got {self.max_cut}")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """webdataset shards of a stage's rows."""

    annotations: bool = (
        True  # a member .realcustom.json beside each sample: uid, captions, scores; false: originals only
    )


@dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """What models run on. Part of the fingerprint of stages with models: it changes the last bits of results."""

    device: Device = Device.CPU
    dtype: ModelDtype = ModelDtype.AUTO
    threads: int = 1  # CPU threads of one worker: torch's, and those that prepare pictures beside the models
    largest_batch: int = 64  # where `batch_size: auto` begins; not in the fingerprint, unlike the number that is found

    def __post_init__(self) -> None:
        at_least(1, threads=self.threads, largest_batch=self.largest_batch)

    @property
    def number_format(self) -> ModelDtype:
        """`dtype`, `auto` resolved."""
        if self.dtype is not ModelDtype.AUTO:
            return self.dtype
        return ModelDtype.BFLOAT16 if self.device is Device.CUDA else ModelDtype.FLOAT32


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """How the work runs. Changes no byte of the output and so no fingerprint."""

    # workers of a stage; null: of a stage with models one per GPU (one on the CPU), else one per core of this machine, or
    # per CPU of a cluster
    workers: int | None = None
    max_error_fraction: float = 0.2  # quarantined / rows in; above it the job stops
    max_error_floor: int = 10  # this many quarantined rows never stop a job
    max_worker_deaths: int = 10  # in a row on the same unit; more stop the job (deaths on different units do not)
    attempts: int = 4  # tries of a read or write with transient failures
    backoff: float = 0.5  # seconds before the second try, doubled for each one after it, at most 30

    def __post_init__(self) -> None:
        at_least(0, max_worker_deaths=self.max_worker_deaths)
        if self.workers is not None:
            at_least(1, workers=self.workers)
        _ = self.retries  # checks attempts and backoff

    @property
    def retries(self) -> RetrySettings:
        """How often, and how soon, a read or write is tried again."""
        return RetrySettings(attempts=self.attempts, backoff=self.backoff)


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """The section of a stage that has no settings."""


@dataclass(frozen=True, kw_only=True)
class PreprocessSettings:
    """All of preprocessing."""

    ingest: IngestSettings = field(default_factory=IngestSettings)
    score: ScoreSettings = field(default_factory=ScoreSettings)
    select: SelectSettings = field(default_factory=SelectSettings)
    caption: CaptionSettings = field(default_factory=CaptionSettings)
    subjects: SubjectsSettings = field(default_factory=SubjectsSettings)
    views: ViewsSettings = field(default_factory=ViewsSettings)
    encode: EncodeSettings = field(default_factory=EncodeSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)

    def section(self, stage: str) -> Any:
        """A stage's own settings; a stage that has none has no section here."""
        return getattr(self, stage) if any(own.name == stage for own in fields(self)) else NoSettings()
