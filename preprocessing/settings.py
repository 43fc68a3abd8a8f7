"""Settings of the preprocessing stages. Imports neither torch nor ray: a typing error is found before anything starts.

The sections `ingest` to `export` and `compute` decide what the output is and so belong to a stage's fingerprint;
`execution` decides only how the work runs and does not.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from realcustom.dtype import Dtype
from realcustom.errors import UsageError
from realcustom.preprocessing.ingest.captions import parse_join, template_fields
from realcustom.retry import RetrySettings

_PILLOWS_LIMIT = 178_956_970  # pixels: twice the limit of its warning, which is 1/4 GiB of RGB


# Scores of a picture that either a head on CLIP's embedding gives, or an image classification model.
JUDGED = ("aesthetic", "nsfw", "watermark")


class SourceKind(enum.Enum):
    """The kind of input of `ingest`; `auto` looks at the files and refuses a mixture."""

    AUTO = "auto"
    WEBDATASET = "webdataset"  # .tar shards
    PARQUET = "parquet"  # tables that hold the pictures
    PICTURES = "pictures"  # a folder of pictures
    URLS = "urls"  # Parquet, CSV, TSV or JSON lines with URLs, or lists of them, which are downloaded


class CaptionRule(enum.Enum):
    """What becomes of several captions of one picture."""

    FIRST = "first"
    LONGEST = "longest"
    EACH = "each"  # a row for each; `select` takes such rows for copies, unless both of its searches are off


class CaptionPolicy(enum.Enum):
    """Which caption is used where both the alt text and the synthetic one hold a target word."""

    ALT_TEXT = "alt_text"
    SYNTHETIC = "synthetic"


class Device(enum.Enum):
    """Device class that models run on."""

    CPU = "cpu"
    CUDA = "cuda"


class ModelDtype(enum.Enum):
    """Number format that models compute in. Weights, norms and softmax stay in float32."""

    AUTO = "auto"  # bfloat16 on cuda, float32 on cpu
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class BatchSize(enum.Enum):
    """A batch size that is found before the first unit."""

    AUTO = "auto"  # the largest that fits, from compute.largest_batch down by halves


@dataclass(frozen=True, kw_only=True)
class DownloadSettings:
    """How pictures are fetched by URL (tries and waits are those of `execution`). Not part of the fingerprint."""

    connections: int = 128  # at once, of one worker
    units: int = 8  # units that a worker has at once: those whose last rows are slow end beside the next ones
    per_host: int = 4  # at once to one host, of all workers together (each has a share, at least one)
    timeout: float = 30.0  # seconds for one try, from the first byte sent to the last received
    # seconds without a byte after which a try is given up; a host that never said anything is then not asked again
    silence: float = 5.0
    user_agent: str = "realcustom"  # HTTP User-Agent, and the name by which a robots opt-out can address us

    def __post_init__(self) -> None:
        _at_least(1, connections=self.connections, per_host=self.per_host, units=self.units)
        if not (self.timeout > 0 and self.silence > 0):
            raise UsageError(f"timeout and silence must be above 0 seconds, got {self.timeout} and {self.silence}")
        if not self.user_agent.isascii() or not self.user_agent.isprintable() or not self.user_agent.strip():
            raise UsageError(f"user_agent must be printable ASCII, got {self.user_agent!r}")


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """Reading a source. One shard or table is one unit; loose pictures and rows of URLs are cut into units in order."""

    source: SourceKind = SourceKind.AUTO
    corpus: str | None = None  # name that identifies the corpus when its storage moves; null: the input's address does
    unit_size: int = 256  # rows per unit of a table of URLs; pictures per unit of a folder, at most
    # column of a table with encoded bytes, a struct with a `bytes` field, or base64; the default stands for all usual names
    image_column: str = "image"
    url_column: str = "url"  # column with addresses; the default stands for all usual names, in any case
    # column with captions, also of a .json beside a picture; the default stands for all usual names; null: no captions there
    caption_column: str | None = "caption"
    columns: tuple[str, ...] = ()  # names of the columns of a .csv, .tsv or .txt without a header line, in its order
    caption_rule: CaptionRule = CaptionRule.FIRST  # which of several captions of a picture is taken
    caption_extensions: tuple[str, ...] = (
        "txt",
        "caption",
    )  # of files with a picture's caption, the first that is there
    # member of a webdataset sample that is the picture: what follows the key's dot, or a pattern as *.left.jpg; null: the
    # only one with a picture's extension
    image_member: str | None = None
    caption_member: str | None = None  # and the member that is its caption; null: by caption_extensions, or the .json
    keep_columns: tuple[str, ...] | None = None  # other columns of a table that are kept; null: all
    metadata: str | None = None  # CSV that describes a folder's pictures: path or URI; null: tables beside them do
    join: str | None = None  # which row describes which picture: PART=COLUMN, PART one of folder, stem, file, path
    caption_template: str | None = (
        None  # "a photo of a {class}": columns of `metadata`, or a PART; null: caption_column
    )
    max_pixels: int = 64_000_000  # width x height above this is a decompression bomb
    max_bytes: int = 64 * 2**20  # of one encoded picture
    private_addresses: bool = False  # whether a URL may lead into this machine or its network
    download: DownloadSettings = field(default_factory=DownloadSettings)

    def __post_init__(self) -> None:
        _at_least(1, unit_size=self.unit_size, max_pixels=self.max_pixels, max_bytes=self.max_bytes)
        if self.max_pixels > _PILLOWS_LIMIT:
            raise UsageError(f"ingest.max_pixels={self.max_pixels}: Pillow opens no picture above {_PILLOWS_LIMIT}")
        if (self.metadata is None) != (self.join is None):
            given, lacking = ("join", "metadata") if self.metadata is None else ("metadata", "join")
            raise UsageError(
                f"ingest.{given} needs ingest.{lacking}: the CSV, and PART=COLUMN that says whose row is whose"
            )
        if any(not name or name.startswith(".") or name != name.lower() for name in self.caption_extensions):
            raise UsageError(
                f"ingest.caption_extensions are lower case and without a dot, as txt; got {', '.join(self.caption_extensions)}"
            )
        if self.join is not None:
            parse_join(self.join)
        if self.caption_template is not None:
            template_fields(self.caption_template)


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Scores that are computed once; no row is dropped here."""

    sharpness_side: int = 512  # longest side, pixels, at which sharpness is measured (larger pictures are scaled down)
    clip: str | None = None  # CLIPModel, hub id or folder; null: no neural score
    heads: str | None = None  # folder with heads.safetensors on CLIP's image embedding; null: image-text score only
    # Image classification models, hub id or folder, each with a label of this name, whose probability is the score.
    aesthetic: str | None = None
    nsfw: str | None = None
    watermark: str | None = None
    batch_size: int | BatchSize = 32  # pictures per forward

    def __post_init__(self) -> None:
        _at_least(1, sharpness_side=self.sharpness_side, batch_size=self.batch_size)
        if self.heads is not None and self.clip is None:
            raise UsageError("score.heads needs score.clip: the heads read CLIP's image embedding")


@dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """Thresholds (null: not applied; a row whose score is null passes) and duplicates."""

    min_side: int = 256  # shorter side, pixels
    max_aspect: float = 3.0  # longer side / shorter side
    min_sharpness: float | None = None  # variance of the Laplacian on 0..255 grey values
    min_aesthetic: float | None = None  # 0..1 of a classification model; of heads.safetensors on its own scale
    min_image_text: float | None = None  # cosine of CLIP's embeddings of picture and alt text, -1..1
    max_nsfw: float | None = None  # probability, 0..1
    max_watermark: float | None = None  # probability, 0..1
    exact_duplicates: bool = True  # of pictures with equal bytes keep one
    near_duplicate_radius: int | None = (
        8  # bits of 64 that may differ in a candidate pair, 0..16; null: keep all near duplicates
    )
    near_duplicate_bits: int = 40  # bits of 256 set bits of the long hashes that may differ in a near duplicate, 0..128
    near_duplicate_color: float = 0.15  # of a near duplicate: largest difference in tint over brightness, 8 x 8 pixels
    exact_search_rows: int = 4_000_000  # rows; in a larger corpus the search is locality-sensitive: it may miss a few
    partition_rows: int = (
        200_000  # rows of a partition of the search: a worker holds two at about 0.7 kB a row, or one at about 4 kB
    )
    evaluation_folder: str | None = None  # pictures that must not be trained on: their near duplicates are dropped

    def __post_init__(self) -> None:
        _at_least(1, min_side=self.min_side, partition_rows=self.partition_rows)
        _at_least(0, exact_search_rows=self.exact_search_rows)
        radius = self.near_duplicate_radius
        if radius is not None and not 0 <= radius <= 16:
            raise UsageError(f"select.near_duplicate_radius must be within 0..16 (or null), got {radius}")
        if not 0 <= self.near_duplicate_bits <= 128:
            raise UsageError(f"select.near_duplicate_bits must be within 0..128, got {self.near_duplicate_bits}")
        if self.near_duplicate_color < 0:
            raise UsageError(f"select.near_duplicate_color must be at least 0, got {self.near_duplicate_color}")
        if self.max_aspect < 1:
            raise UsageError(f"select.max_aspect is longer/shorter side and at least 1, got {self.max_aspect}")


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """A large captioner behind an OpenAI-compatible endpoint.

    `model`, `prompt`, `seed` and `longest_side` are part of the fingerprint; the other settings are not.
    """

    url: str | None = None  # for example http://127.0.0.1:8000/v1; null: no endpoint
    model: str | None = None  # the model's name at the endpoint
    # instruction sent with every picture; not empty
    prompt: str = "Describe this picture in one short sentence. Name its main objects. Answer with the sentence alone."
    seed: int = 0  # sent with every request, with temperature 0
    longest_side: int = 1024  # pixels: larger pictures are sent scaled down
    concurrency: int = 16  # requests at once, of one worker
    timeout: float = 120.0  # seconds for one try
    # tries of a picture; with the waits between them four minutes, enough for a server to restart
    attempts: int = 13
    backoff: float = 1.0  # seconds before the second try, doubled for each one after it, at most 30
    key_variable: str = "CAPTION_API_KEY"  # environment variable of every worker that holds the key; unset: no key

    def __post_init__(self) -> None:
        _at_least(1, longest_side=self.longest_side, concurrency=self.concurrency)
        _ = self.retries  # checks attempts and backoff
        if not self.timeout > 0:
            raise UsageError(f"timeout must be above 0 seconds, got {self.timeout}")
        if (self.url is None) != (self.model is None):
            given, lacking = ("model", "url") if self.url is None else ("url", "model")
            raise UsageError(f"caption.endpoint.{given} needs caption.endpoint.{lacking}")
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.username is not None or parts.query:  # before any message shows the URL
                raise UsageError(
                    f"caption.endpoint.url holds a name, a key or a query, and would be seen: put the key into the "
                    f"environment variable {self.key_variable}"
                )
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise UsageError(f"caption.endpoint.url must be as http://host:8000/v1, got {self.url!r}")
        if not self.prompt.strip():
            raise UsageError("caption.endpoint.prompt is empty")

    @property
    def retries(self) -> RetrySettings:
        """How often, and how soon, a picture is tried again."""
        return RetrySettings(attempts=self.attempts, backoff=self.backoff)


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Synthetic captions and the words in a caption that can name a subject."""

    model: str | None = None  # BlipForConditionalGeneration, hub id or folder; null: alt texts only
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)  # used instead of `model`
    batch_size: int | BatchSize = 16  # pictures per generation
    max_new_tokens: int = 30  # longest caption, in the captioner's tokens, at least 1; for an endpoint too
    # the target word of every picture, whatever `nouns` says; a picture whose captions lack it gets the caption "a photo
    # of the WORD"; null: each caption's own words
    word: str | None = None
    nouns: tuple[str, ...] = ()  # vocabulary of target words; empty: the noun-phrase rule of nouns.py
    max_words: int = 1  # target words taken from one caption
    caption_policy: CaptionPolicy = CaptionPolicy.ALT_TEXT

    def __post_init__(self) -> None:
        _at_least(1, batch_size=self.batch_size, max_new_tokens=self.max_new_tokens, max_words=self.max_words)
        if self.model is not None and self.endpoint.url is not None:
            raise UsageError(
                "caption.model and caption.endpoint.url are both set: set caption.model=null, or no endpoint"
            )
        if self.word is not None and not any(character.isalnum() for character in self.word):
            raise UsageError(f"caption.word is the word for the subject, as 'dog', got {self.word!r}")
        for noun in self.nouns:
            if not noun.strip():
                raise UsageError("caption.nouns holds an empty word")


@dataclass(frozen=True, kw_only=True)
class SubjectsSettings:
    """Detection of each target word, its mask, and the checks a candidate has to pass."""

    # GroundingDinoForObjectDetection, hub id or folder; null, with the segmenter: the whole picture is the subject, and
    # no other setting here has an effect
    detector: str | None = None
    segmenter: str | None = None  # SamModel, hub id or folder; null where the detector is
    batch_size: int | BatchSize = 8  # pictures, and boxes, per forward
    max_text_tokens: int = 16  # padded length of the detector's text
    min_detection_score: float = 0.35  # 0..1; the detector's queries below it are rejected
    max_box_overlap: float = 0.5  # IoU with a better candidate's box for the same word above which one is rejected
    max_mask_overlap: float = 0.5  # IoU with a better candidate's mask, for any word, above which one is rejected
    max_per_word: int = 1  # subjects of one word in one picture
    min_box_side: int = 48  # shorter side of the box, pixels
    max_border_contact: float = (
        1.0  # largest share of the outline of the mask's box that is mask on the picture's border; 1: not checked
    )
    min_segmentation_score: float = 0.7  # SAM's predicted IoU, 0..1
    min_area: float = 0.02  # mask area / picture area
    max_area: float = 0.9  # mask area / picture area
    min_box_mask_iou: float = 0.6  # IoU of the detected box and the mask's own

    def __post_init__(self) -> None:
        _at_least(1, batch_size=self.batch_size, max_text_tokens=self.max_text_tokens, max_per_word=self.max_per_word)
        if (self.detector is None) != (self.segmenter is None):
            given, lacking = ("segmenter", "detector") if self.detector is None else ("detector", "segmenter")
            raise UsageError(
                f"subjects.{given} needs subjects.{lacking}: set both, or both to null (the whole picture is the subject)"
            )


@dataclass(frozen=True, kw_only=True)
class ViewsSettings:
    """Records that show one subject in different pictures, found by what an image encoder sees in their crops."""

    # a DINOv2, CLIP or CLIP vision model, hub id or folder; null: the stage does not run, and records have the views that
    # `view_group` of the source gives them
    encoder: str | None = None
    neighbours: int = 4  # two records are views of each other if each is among so many nearest ones of the other
    min_similarity: float = 0.8  # cosine of the crops' vectors, -1..1
    max_similarity: float = 0.995  # at this cosine or above two crops are copies, and not linked
    partition_rows: int = 20_000  # records whose vectors a worker compares with as many at a time: it holds both
    batch_size: int | BatchSize = 32  # crops per forward

    def __post_init__(self) -> None:
        _at_least(1, neighbours=self.neighbours, partition_rows=self.partition_rows, batch_size=self.batch_size)
        if not -1 <= self.min_similarity < self.max_similarity:
            raise UsageError(
                f"views.min_similarity={self.min_similarity} must be at least -1 and below "
                f"views.max_similarity={self.max_similarity}"
            )


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """Caches of the training recipe; each can be left out."""

    base: str | None = None  # diffusers folder or hub id: VAE and text encoder; null: the run's `base`
    # as method.image_encoder.model: hub id or folder, two for siglip_dino; null: that one
    image_encoder: str | None = None
    latents: bool = True  # the picture as VAE latents, by `base`
    text_features: bool = True  # hidden states of the caption, by `base`'s text encoder
    image_features: bool = True  # features of the reference, by `image_encoder`
    resolution: int = 512  # pixels: shorter side scaled to it, a square that shows the subject encoded
    max_cut: float = 0.2  # share of the subject's mask outside that square above which a record is dropped
    dtype: Dtype = Dtype.FLOAT16  # of cached tensors
    batch_size: int | BatchSize = 8  # records per forward
    keep_image: bool = True  # false: records hold no picture, only the caches

    def __post_init__(self) -> None:
        _at_least(1, resolution=self.resolution, batch_size=self.batch_size)
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
        _at_least(1, threads=self.threads, largest_batch=self.largest_batch)

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
        _at_least(0, max_worker_deaths=self.max_worker_deaths)
        if self.workers is not None:
            _at_least(1, workers=self.workers)
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


def fixed_batch(batch_size: int | BatchSize) -> int:
    """The number. Raises UsageError for `auto` (`run_stage` replaces it before the first unit)."""
    if isinstance(batch_size, BatchSize):
        raise UsageError("batch_size=auto has not been probed yet; give a number")
    return batch_size


def _at_least(lowest: int, **values: int | BatchSize) -> None:
    for name, value in values.items():
        if not isinstance(value, BatchSize) and value < lowest:
            raise UsageError(f"{name} must be at least {lowest}, got {value}")
