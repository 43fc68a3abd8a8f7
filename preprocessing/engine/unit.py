"""Units of work: pieces of an input that are done entirely or not at all, and their counts."""

from __future__ import annotations

import base64
import enum
import hashlib
import json
import posixpath
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

ID_DIGITS = 16  # hex digits of an identity in a file name
FIRST_NAMES = 5  # names that are kept of rows of which something is to be said
_LONGEST_NAME = 120  # characters of a unit's name, before a hash: a manifest's name has two more, and disks take 255


class UnitKind(enum.Enum):
    """The kind of a unit's input."""

    TAR = "tar"
    TABLE = "table"  # a Parquet table of a source
    PICTURES = "pictures"
    URLS = "urls"  # rows of a table of URLs
    PART = "part"  # a table that a stage wrote, or a user's table in that schema


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file that a unit reads."""

    name: str  # source-relative
    uri: str
    size: int  # bytes; 0 for a part, which its hash identifies
    caption: str | None = None  # caption of a picture that a table or a template describes
    captions: tuple[str, ...] = ()  # further ones, each of a row of its own
    beside: str = ""  # name of the picture that it belongs to, with its caption; empty: it is read for itself
    unlisted: str = ""  # why a picture does not belong to the corpus; empty: it does
    number: int | None = None  # number of the unit that wrote it, among the input's units
    group: int | None = None  # the row group that is read; None: all
    rows: int | None = None  # rows in that group
    right: bool = False  # whether it is on the second of two sides that are compared

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> InputFile:
        """Of its fields as JSON has them, without those that have their defaults."""
        return cls(**{**fields, "captions": tuple(fields.get("captions", ()))})


class PackedFiles(Sequence[InputFile]):
    """A unit's files, compressed: a corpus of ten million pictures is planned in the driver's memory."""

    def __init__(self, packed: bytes, count: int):
        self._packed, self._count = packed, count

    @classmethod
    def of(cls, files: Sequence[Mapping[str, Any]]) -> PackedFiles:
        """Of the fields of each InputFile those that are not its defaults."""
        return cls(zlib.compress(json.dumps(files).encode(), 1), len(files))

    def to_text(self) -> str:
        """As text, for sending."""
        return f"{self._count} {base64.b85encode(self._packed).decode()}"

    @classmethod
    def from_text(cls, text: str) -> PackedFiles:
        """The files of `to_text`."""
        count, _, packed = text.partition(" ")
        return cls(base64.b85decode(packed), int(count))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[InputFile]:
        for file in json.loads(zlib.decompress(self._packed)):
            yield InputFile.of(file)

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self._packed)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A piece of the work: done entirely or not at all."""

    name: str  # names its outputs
    identity: str  # identity of its input; if it changes, the unit is done again
    kind: UnitKind
    files: Sequence[InputFile]  # a tuple, or PackedFiles
    first: int = 0  # row of the table that the unit begins with
    count: int | None = None  # rows of the table that belong to the unit; null: all
    byte_range: tuple[int, int] | None = None  # CSV only: the bytes of those rows, the first and the one after the last
    bits: tuple[int, int] | None = None  # the hash bits that it sorts by: the lowest one, and how many

    def to_json(self) -> str:
        """As text, for sending through Ray."""
        files = self.files.to_text() if isinstance(self.files, PackedFiles) else [vars(file) for file in self.files]
        return json.dumps({**vars(self), "kind": self.kind.value, "files": files})

    @classmethod
    def from_json(cls, text: str) -> Unit:
        """The unit of `to_json`."""
        data = json.loads(text)
        files: Sequence[InputFile]
        if isinstance(data["files"], str):
            files = PackedFiles.from_text(data["files"])
        else:
            files = tuple(map(InputFile.of, data["files"]))
        pairs = {name: tuple(data[name]) if data[name] is not None else None for name in ("byte_range", "bits")}
        return cls(**{**data, **pairs, "kind": UnitKind(data["kind"]), "files": files})


@dataclass(kw_only=True)
class Counts:
    """The counts of a unit or a stage: always rows_in = kept + sum(dropped) + sum(quarantined)."""

    rows_in: int = 0  # counted at the source
    kept: int = 0  # input rows that go on, counted from the rows written
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    quarantined: dict[str, int] = field(default_factory=dict)  # by fault
    rows_out: int = 0  # rows written; differs from `kept` where one row becomes several
    rejected: dict[str, int] = field(default_factory=dict)  # candidates of a 1-to-N stage, by reason; not rows
    noted: dict[str, int] = field(default_factory=dict)  # kept rows of which something is to be said, by what it is
    first: dict[str, list[str]] = field(default_factory=dict)  # the first names of each of these, sorted

    @property
    def errors(self) -> int:
        """Quarantined rows."""
        return sum(self.quarantined.values())

    def add(self, other: Counts) -> None:
        """Add other counts to these."""
        self.rows_in += other.rows_in
        self.kept += other.kept
        self.rows_out += other.rows_out
        for mine, theirs in (
            (self.dropped, other.dropped),
            (self.quarantined, other.quarantined),
            (self.rejected, other.rejected),
            (self.noted, other.noted),
        ):
            for name, number in theirs.items():
                mine[name] = mine.get(name, 0) + number
        for name, names in other.first.items():  # whatever the order in which units end
            self.first[name] = sorted([*self.first.get(name, []), *names])[:FIRST_NAMES]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, keys as in report.json."""
        reasons = {name: dict(sorted(getattr(self, name).items())) for name in ("dropped", "quarantined", "rejected")}
        counts: dict[str, Any] = {"in": self.rows_in, "kept": self.kept, **reasons, "rows_out": self.rows_out}
        if self.noted:
            counts |= {"noted": dict(sorted(self.noted.items())), "first": dict(sorted(self.first.items()))}
        return counts

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Counts:
        """The counts of `to_dict`; other keys, as a report has them, are left."""
        own = {own.name: data[own.name] for own in fields(cls) if own.name in data}
        return cls(rows_in=data["in"], **own)


@dataclass(frozen=True, kw_only=True)
class SealedUnit:
    """A unit's outputs as bytes."""

    rows: bytes  # a Parquet table, or the file that the stage writes instead
    excluded: bytes  # JSON lines
    counts: Counts


def identity_of(*parts: str | int | Sequence[Any]) -> str:
    """A short hash of what identifies an input."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:ID_DIGITS]


def unit_name(file: str) -> str:
    """A unit's name from its file's name: only plain characters, not too many; where that changes it, a hash is added.

    The usual extensions are left out, and no other one: `0.tgz` may lie beside `0.tar`.
    """
    stem, extension = posixpath.splitext(file)
    stem = stem if extension in (".tar", ".parquet") else file
    plain = re.sub(r"[^A-Za-z0-9_.=-]+", "-", stem).strip("-.")
    unchanged = plain == stem and len(plain) <= _LONGEST_NAME
    return plain if unchanged else f"{plain[:_LONGEST_NAME]}-{identity_of(file)[:8]}"
