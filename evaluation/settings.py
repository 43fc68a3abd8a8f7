"""Settings of the evaluation table. Imports neither torch nor ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from realcustom.errors import UsageError
from realcustom.retry import RetrySettings


@dataclass(frozen=True, kw_only=True)
class MetricModels:
    """The models behind the short names of metrics (`clip_t@b32`): folders or hub ids."""

    b32: str = "openai/clip-vit-base-patch32"  # CLIP ViT-B/32
    l14: str = "openai/clip-vit-large-patch14"  # CLIP ViT-L/14
    dino_s16: str = "facebook/dino-vits16"  # DINO ViT-S/16, DreamBooth's
    dinov2_l: str = "facebook/dinov2-large"  # DINOv2 ViT-L/14


@dataclass(frozen=True, kw_only=True)
class SeeingSettings:
    """A judge that sees, behind an OpenAI-compatible endpoint."""

    url: str | None = None  # for example http://127.0.0.1:8000/v1; null: no endpoint
    model: str | None = None  # the model's name at the endpoint
    asks: int = 4  # questions about each image and rubric, half of them with the two pictures swapped
    concurrency: int = 16  # requests at once
    timeout: float = 120.0  # seconds for one try
    attempts: int = 5  # tries of a question
    backoff: float = 1.0  # seconds before the second try, doubled for each one after it, at most 30
    key_variable: str = "JUDGE_API_KEY"  # environment variable that holds the key; unset: no key

    def __post_init__(self) -> None:
        if self.asks < 1 or self.concurrency < 1 or not self.timeout > 0:
            raise UsageError("asks and concurrency must be 1 or more, timeout above 0 seconds")
        _ = self.retries  # checks attempts and backoff
        if (self.url is None) != (self.model is None):
            raise UsageError("url and model belong together: give both or neither")
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.username is not None or parts.query:  # before any message shows the URL
                raise UsageError(f"url holds a name, a key or a query: put the key into {self.key_variable}")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise UsageError(f"url must be as http://host:8000/v1, got {self.url!r}")

    @property
    def retries(self) -> RetrySettings:
        """How often, and how soon, a question is asked again."""
        return RetrySettings(attempts=self.attempts, backoff=self.backoff)


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """The number of images of a row, and how its interval is computed."""

    images: int = 32  # cases of every row
    batch_size: int = 16  # images of one sampler call
    confidence: float = 0.95  # of the bootstrap intervals
    resamples: int = 4000  # bootstrap resamples
    seed: int = 0  # of the bootstrap
    num_inference_steps: int | None = None  # denoising steps; none = the adapter's setting
    images_per_prompt: int = 4  # of a suite; image i is drawn from seed + i
    threads: int = 1  # torch's, on the CPU; an image's last bits depend on it, so that it is part of its key
    # of a suite, where no --metric is given
    metrics: tuple[str, ...] = ("clip_t@b32", "clip_i@b32", "dino_i@dino_s16", "diversity@dino_s16", "copying@dino_s16")
    models: MetricModels = field(default_factory=MetricModels)
    seeing: SeeingSettings = field(default_factory=SeeingSettings)

    def __post_init__(self) -> None:
        if self.images < 2:
            raise UsageError(f"images must be 2 or more (an interval needs them), got {self.images}")
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be 1 or more, got {self.batch_size}")
        if self.images_per_prompt < 1 or self.threads < 1:
            raise UsageError("images_per_prompt and threads must be 1 or more")
        if not 0.0 < self.confidence < 1.0:
            raise UsageError(f"confidence must lie between 0 and 1, got {self.confidence}")
        if self.resamples < 100:
            raise UsageError(f"resamples must be 100 or more, got {self.resamples}")
