"""Units of work and the directory of a stage: what is done, what is to do, and how a unit is committed.

A stage's directory:

    stage.json                              what the stage is: its parameters, models, upstream; hashed to its name
    UNIT.parquet                            rows that were kept, or made (export: UNIT.tar)
    aside/UNIT.jsonl                        rows that were not, one line each with the reason
    manifests/UNIT.INPUT.OUTPUT.json        counts and hashes; written last, and a unit is done when it is there
    report.json, report.html                over all units

A manifest's name carries the identity of the unit's input and the hash of its rows, so that planning, here and in the
stage that follows, needs listings only. No file holds a time, a host, or anything else that differs between two runs.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import posixpath
import re
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.preprocessing.access import access
from realcustom.preprocessing.errors import retry
from realcustom.preprocessing.settings import ExecutionSettings

_ID = 16  # hex digits of an identity in a file name


class UnitKind(enum.Enum):
    """What a unit's input is."""

    TAR = "tar"
    TABLE = "table"  # a Parquet table of a source
    PICTURES = "pictures"
    URLS = "urls"  # rows of a table of URLs
    PART = "part"  # a table that a stage wrote, or a user's own in that schema


class Step(enum.Enum):
    """What is done with a unit: the stage itself, or a step of the global phase before it (partitions.py)."""

    STAGE = "stage"
    SIGNATURES = "signatures"
    SHUFFLE = "shuffle"
    PAIRS = "pairs"


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file that a unit reads."""

    name: str  # source-relative; in the global phase what its steps know the file by
    uri: str
    size: int  # bytes; 0 for a part, which is known by its hash
    caption: str | None = None  # of a picture that a table or a template describes
    unlisted: str = ""  # why a picture does not belong to the corpus; empty: it does


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A piece of the work: done entirely or not at all."""

    name: str  # names its outputs
    identity: str  # of its input; another one: to be done again
    kind: UnitKind
    files: tuple[InputFile, ...]
    first: int = 0  # row of the table that the unit begins with
    count: int | None = None  # rows of the table that belong to the unit; null: all
    byte_range: tuple[int, int] | None = None  # of a CSV: what holds those rows, the first and the one behind the last

    def to_json(self) -> str:
        """As text, to travel through Ray."""
        return json.dumps({**dataclasses.asdict(self), "kind": self.kind.value})

    @classmethod
    def from_json(cls, text: str) -> Unit:
        """The unit of `to_json`."""
        data = json.loads(text)
        files = tuple(InputFile(**file) for file in data["files"])
        byte_range = tuple(data["byte_range"]) if data["byte_range"] is not None else None
        return cls(**{**data, "kind": UnitKind(data["kind"]), "files": files, "byte_range": byte_range})


@dataclass(kw_only=True)
class Counts:
    """The account of a unit or a stage: rows_in = kept + sum(dropped) + sum(quarantined), always."""

    rows_in: int = 0  # counted at the source
    kept: int = 0  # input rows that live on, counted from the rows written
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    quarantined: dict[str, int] = field(default_factory=dict)  # by fault
    rows_out: int = 0  # rows written; differs from `kept` where one row becomes several
    rejected: dict[str, int] = field(default_factory=dict)  # candidates of a 1-to-N stage, by reason; not rows

    @property
    def errors(self) -> int:
        """Quarantined rows."""
        return sum(self.quarantined.values())

    def add(self, other: Counts) -> None:
        """Sum into this one."""
        self.rows_in += other.rows_in
        self.kept += other.kept
        self.rows_out += other.rows_out
        for mine, theirs in (
            (self.dropped, other.dropped),
            (self.quarantined, other.quarantined),
            (self.rejected, other.rejected),
        ):
            for name, number in theirs.items():
                mine[name] = mine.get(name, 0) + number

    def to_dict(self) -> dict:
        """Plain data, keys as in report.json."""
        tables = {name: dict(sorted(getattr(self, name).items())) for name in ("dropped", "quarantined", "rejected")}
        return {"in": self.rows_in, "kept": self.kept, **tables, "rows_out": self.rows_out}

    @classmethod
    def from_dict(cls, data: dict) -> Counts:
        """The counts of `to_dict`."""
        return cls(rows_in=data["in"], **{name: value for name, value in data.items() if name != "in"})


@dataclass(frozen=True, kw_only=True)
class SealedUnit:
    """A unit's outputs as the bytes that are to be written."""

    rows: bytes  # Parquet; a tar from `export`
    aside: bytes  # JSON lines
    counts: Counts


@dataclass(frozen=True, kw_only=True)
class ManifestName:
    """What the name of a manifest says."""

    unit: str
    identity: str
    output: str  # first hex digits of the sha256 of the unit's rows
    uri: str


class StageDirectory:
    """`<root>/<stage>@<fingerprint>/`. Everything that is written there is written here."""

    def __init__(self, uri: str, execution: ExecutionSettings, suffix: str = ".parquet"):
        self.uri = uri
        self.suffix = suffix  # of the files of rows
        self._execution = execution

    def rows_uri(self, unit: str) -> str:
        """Where a unit's rows are."""
        return storage.join(self.uri, f"{unit}{self.suffix}")

    def aside_uri(self, unit: str) -> str:
        """Where the rows are that a unit did not keep."""
        return storage.join(self.uri, "aside", f"{unit}.jsonl")

    def manifests(self) -> list[ManifestName]:
        """All manifests, from a listing. Empty where the directory does not exist."""
        folder = storage.join(self.uri, "manifests")
        return [_parse_manifest(name, f"{folder}/{name}") for name in self._names(folder) if name.endswith(".json")]

    def rows_present(self) -> set[str]:
        """Names of the units whose rows are there, from a listing."""
        return {name.removesuffix(self.suffix) for name in self._names(self.uri) if name.endswith(self.suffix)}

    def commit(self, unit: Unit, sealed: SealedUnit) -> None:
        """Write a unit's outputs, the manifest last. Doing it twice writes the same bytes."""
        outputs, content = {}, hashlib.sha256(sealed.rows).hexdigest()
        for uri, data, sha256 in (
            (self.rows_uri(unit.name), sealed.rows, content),
            (self.aside_uri(unit.name), sealed.aside, hashlib.sha256(sealed.aside).hexdigest()),
        ):
            self.write(uri, data)
            name = uri[len(self.uri) :].strip("/")
            outputs[name] = {"sha256": sha256, "bytes": len(data)}
        manifest = {"unit": unit.name, "input": unit.identity, "outputs": outputs, "counts": sealed.counts.to_dict()}
        name = f"{unit.name}.{unit.identity}.{content[:_ID]}.json"
        self.write(storage.join(self.uri, "manifests", name), to_json_bytes(manifest))

    def counts(self, manifests: Sequence[ManifestName]) -> list[Counts]:
        """What the manifests count."""
        with ThreadPoolExecutor(max_workers=16) as pool:
            documents = pool.map(lambda manifest: self.read(manifest.uri), manifests)
            return [Counts.from_dict(json.loads(document)["counts"]) for document in documents]

    def remove(self, manifests: Iterable[ManifestName], with_outputs: bool = False) -> None:
        """Make units not done. The manifest goes first, so that none ever names outputs that are not there, and the
        rows last, so that a listing of them tells what a kill has left."""
        for manifest in manifests:
            uris = [manifest.uri]
            uris += [self.aside_uri(manifest.unit), self.rows_uri(manifest.unit)] if with_outputs else []
            for uri in uris:
                filesystem, path = storage.open_filesystem(uri)
                if storage.exists(uri):
                    filesystem.delete_file(path)

    def remove_strays(self, units: Collection[str]) -> None:
        """Delete outputs of others than `units`: of those that `remove` was at when it was killed."""
        folders = ((self.uri, self.suffix), (storage.join(self.uri, "aside"), ".jsonl"))
        for folder, suffix in folders:
            for name in self._names(folder):
                if name.endswith(suffix) and name.removesuffix(suffix) not in units:
                    filesystem, path = storage.open_filesystem(storage.join(folder, name))
                    filesystem.delete_file(path)

    def read(self, uri: str) -> bytes:
        """A file's bytes, with retries."""
        with access("read", uri):
            return retry(lambda: storage.read_bytes(uri), *self.retries)

    def write(self, uri: str, data: bytes) -> None:
        """Write a file atomically, with retries."""
        with access("write", uri):
            retry(lambda: storage.write_bytes(uri, data), *self.retries)

    def _names(self, folder: str) -> list[str]:
        """The files in a folder, from a listing; none where it does not exist."""
        try:
            return retry(lambda: storage.list_names(folder), *self.retries)
        except FileNotFoundError:
            return []

    @property
    def retries(self) -> tuple[int, float]:
        """How often, and how soon, a transient error is tried again."""
        return self._execution.attempts, self._execution.backoff


def to_json_bytes(data: dict) -> bytes:
    """JSON for people and for equal bytes: indented, in the order given."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _parse_manifest(name: str, uri: str) -> ManifestName:
    parts = name.removesuffix(".json").rsplit(".", 2)
    if len(parts) != 3:
        raise UsageError(f"{uri} is not the name of a manifest (UNIT.INPUT.OUTPUT.json); remove it")
    return ManifestName(unit=parts[0], identity=parts[1], output=parts[2], uri=uri)


def identity_of(*parts: str | int | Sequence) -> str:
    """A short hash of what identifies an input."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_ID]


def unit_name(file: str) -> str:
    """A unit's name from its file's: a plain file name; the hash of the full one is added where it is changed."""
    stem = posixpath.splitext(file)[0]
    plain = re.sub(r"[^A-Za-z0-9_.=-]+", "-", stem).strip("-.")
    return plain if plain == stem else f"{plain}-{identity_of(file)[:8]}"
