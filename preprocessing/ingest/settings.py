"""Settings of stage `ingest`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from realcustom.errors import UsageError
from realcustom.preprocessing.ingest.captions import parse_join, template_fields
from realcustom.preprocessing.ranges import at_least

_PILLOWS_LIMIT = 178_956_970  # pixels: twice the limit of its warning, which is 1/4 GiB of RGB


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
        at_least(1, connections=self.connections, per_host=self.per_host, units=self.units)
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
    metadata: str | None = None  # table that describes a folder's pictures: path or URI; null: tables beside them do
    join: str | None = None  # which row describes which picture: PART=COLUMN, PART one of folder, stem, file, path
    caption_template: str | None = (
        None  # "a photo of a {class}": columns of `metadata`, or a PART; null: caption_column
    )
    max_pixels: int = 64_000_000  # width x height above this is a decompression bomb
    max_bytes: int = 64 * 2**20  # of one encoded picture
    private_addresses: bool = False  # whether a URL may lead into this machine or its network
    download: DownloadSettings = field(default_factory=DownloadSettings)

    def __post_init__(self) -> None:
        at_least(1, unit_size=self.unit_size, max_pixels=self.max_pixels, max_bytes=self.max_bytes)
        if self.max_pixels > _PILLOWS_LIMIT:
            raise UsageError(f"ingest.max_pixels={self.max_pixels}: Pillow opens no picture above {_PILLOWS_LIMIT}")
        if (self.metadata is None) != (self.join is None):
            given, lacking = ("join", "metadata") if self.metadata is None else ("metadata", "join")
            raise UsageError(
                f"ingest.{given} needs ingest.{lacking}: the table, and PART=COLUMN that says whose row is whose"
            )
        if any(not name or name.startswith(".") or name != name.lower() for name in self.caption_extensions):
            raise UsageError(
                f"ingest.caption_extensions are lower case and without a dot, as txt; got {', '.join(self.caption_extensions)}"
            )
        if self.join is not None:
            parse_join(self.join)
        if self.caption_template is not None:
            template_fields(self.caption_template)
