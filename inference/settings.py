"""Settings of the endpoint. Imports neither torch nor ray."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from realcustom.dtype import Dtype
from realcustom.errors import UsageError

SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"  # of a picture


def width_height(size: str) -> tuple[int, int] | None:
    """A picture's size that `SIZE` matches as numbers of pixels; None = auto, the base model's own."""
    if size == "auto":
        return None
    width, height = size.split("x")
    return int(width), int(height)


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """The endpoint's address, the resources of one replica, and the limits of a request."""

    host: str = "127.0.0.1"  # address that the HTTP proxy listens on; 0.0.0.0 = every interface
    port: int = 8000  # TCP port
    api_key_variable: str | None = (
        None  # environment variable that holds a bearer key; none here and below = none is required
    )
    keys_file: str | None = None  # YAML file of bearer keys with their limits, which others may not read

    device: str | None = None  # torch device of the replica; none = cuda where there is one, else cpu
    dtype: Dtype = Dtype.FLOAT32  # number format of the models' weights
    # AutoencoderTiny for previews, folder or hub id; none = a linear map of the latents
    preview_decoder: str | None = None
    # Grounding DINO, folder or hub id, with which each process of the API looks, on a CPU, which noun of its prompt an edit's
    # picture shows; none = an edit whose prompt has several nouns must say which
    detector: str | None = None
    # picture sizes, WIDTHxHEIGHT or auto (the base's own), that an engine draws once before it gets requests
    warm_up: tuple[str, ...] = ("auto",)
    # torch.compile of the UNet's convolution blocks and feed-forwards, for the sizes of `warm_up`
    compile: bool = False
    # with `compile`: rows that a UNet call of these sizes is padded to
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    threads: int = 2  # torch's CPU threads in the replica
    num_cpus: float = 1.0  # logical CPUs that an engine takes of the Ray cluster
    num_gpus: float = 0.0  # GPUs that an engine takes of the Ray cluster
    api_replicas: int = 1  # processes that speak HTTP; each counts the limits of keys for itself
    api_cpus: float = 0.5  # logical CPUs that each of them takes of the Ray cluster
    min_engines: int = 1  # engines that always run; 0 = none while nobody asks
    max_engines: int = 1  # engines while many ask
    scale_seconds: float = 20.0  # of work for one engine: with more there is another one
    scale_up_seconds: float = 10.0  # for which there must be more work before an engine is added
    scale_down_seconds: float = 300.0  # for which there must be less work before an engine is ended
    drain_seconds: float = 10.0  # for running requests to end, when an engine or the endpoint is to end
    load_timeout_seconds: float = 600.0  # seconds that `start` waits for the models

    adapters: tuple[
        str, ...
    ] = ()  # further adapters of the base, each NAME=PATH or NAME=s3://...: model realcustom:NAME
    max_adapters: int = 4  # adapters that are loaded at the same time; those not used for longest go

    access_log: bool = False  # a line of JSON on the replica's stderr for each request, without prompts and pictures

    max_queue: int = 16  # requests that may wait while one runs; beyond: 429
    deadline_seconds: float = 300.0  # seconds from a request's arrival to its last step; beyond: 408

    body_timeout_seconds: float = 60.0  # seconds within which a request's body must arrive; beyond: 408
    idempotency_seconds: float = 3600.0  # an answer is kept so long for its Idempotency-Key
    heartbeat_seconds: float = 10.0  # a stream sends a comment after so many seconds without an event

    max_pixels: int = 1024 * 1024  # width x height of one generated image
    max_n: int = 4  # images in one request
    max_steps: int = 100  # denoising steps of a request
    max_subjects: int = 4  # subjects of a request
    max_prompt_characters: int = 2000  # of the prompt, and of the negative prompt
    max_image_bytes: int = 10 * 1024 * 1024  # one encoded picture of a request
    max_image_pixels: int = 25_000_000  # width x height of one picture of a request, decoded
    max_request_pixels: int = 32_000_000  # width x height of all pictures of a request
    max_body_bytes: int = 48 * 1024 * 1024  # the request's body
    max_subject_bytes: int = 256 * 1024 * 1024  # encoded subjects that are kept for their ids
    max_prompt_bytes: int = 64 * 1024 * 1024  # encoded prompts that an engine keeps for requests with the same text
    # width x height of all rows of a UNet call (a row: a branch of an image), for the device's memory
    max_batch_pixels: int = 64 * 512 * 512
    max_idempotency_bytes: int = 64 * 1024 * 1024  # answers that are kept for their Idempotency-Key

    @property
    def places(self) -> int:
        """Requests that all engines together take at the same time."""
        return self.max_engines * (self.max_queue + 1)

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise UsageError(f"port must lie in 1..65535, got {self.port}")
        if not 0 <= self.min_engines <= self.max_engines:
            raise UsageError(
                f"min_engines must lie in 0..max_engines, got {self.min_engines} with max_engines={self.max_engines}"
            )
        for size in self.warm_up:
            if not re.fullmatch(SIZE, size):
                raise UsageError(f"warm_up takes sizes as 512x512 or auto, got '{size}'")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise UsageError(f"batch_sizes takes numbers of 1 or more, got {list(self.batch_sizes)}")
        if self.max_queue < 0:
            raise UsageError(f"max_queue must be 0 or more, got {self.max_queue}")
        limits = [field.name for field in fields(self) if field.name.startswith("max_") and field.name != "max_queue"]
        for name in (
            "threads",
            "load_timeout_seconds",
            "deadline_seconds",
            "body_timeout_seconds",
            "heartbeat_seconds",
            "api_replicas",
            "scale_seconds",
            "drain_seconds",
            *limits,
        ):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} must be more than 0, got {getattr(self, name)}")
