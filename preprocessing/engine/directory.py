"""The directory of a stage: which units are done, and how a unit is committed.

    stage.json                              the stage's parameters, models and upstream; their hash is in its name
    UNIT.parquet                            rows that were kept, or made (a stage may write another kind of file)
    aside/UNIT.jsonl                        rows that were excluded, one line each with the reason
    manifests/UNIT.INPUT.OUTPUT.json        counts and hashes; written last, and a unit is done when it is there
    report.json, report.html                over all units

A manifest's name carries the identity of the unit's input and the hash of its rows, so that planning, here and in the
stage that follows, needs listings only. No file holds a time, a host, or anything else that differs between two runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.preprocessing.engine.unit import ID_DIGITS, Counts, SealedUnit, Unit
from realcustom.store import Store


@dataclass(frozen=True, kw_only=True)
class ManifestName:
    """The parts of a manifest's name."""

    unit: str
    identity: str
    output: str  # first hex digits of the sha256 of the unit's rows
    uri: str


class StageDirectory:
    """`<root>/<stage>@<fingerprint>/`. Units are written only here."""

    def __init__(self, uri: str, store: Store, suffix: str = ".parquet"):
        self.uri = uri
        self.store = store
        self.suffix = suffix  # suffix of the files of rows

    def rows_uri(self, unit: str) -> str:
        """The URI of a unit's rows."""
        return storage.join(self.uri, f"{unit}{self.suffix}")

    def excluded_uri(self, unit: str) -> str:
        """The URI of a unit's excluded rows."""
        return storage.join(self.excluded_folder, f"{unit}.jsonl")

    @property
    def excluded_folder(self) -> str:
        """The folder of the files of excluded rows."""
        return storage.join(self.uri, "aside")

    def manifests(self) -> list[ManifestName]:
        """All manifests, from a listing. Empty where the directory does not exist."""
        folder = storage.join(self.uri, "manifests")
        names = self.store.list_names(folder)
        return [_parse_manifest(name, f"{folder}/{name}") for name in names if name.endswith(".json")]

    def rows_present(self) -> set[str]:
        """Names of the units whose rows exist, from a listing."""
        names = self.store.list_names(self.uri)
        return {name.removesuffix(self.suffix) for name in names if name.endswith(self.suffix)}

    def commit(self, unit: Unit, sealed: SealedUnit) -> None:
        """Write a unit's outputs, the manifest last. Doing it twice writes the same bytes."""
        outputs, content = {}, hashlib.sha256(sealed.rows).hexdigest()
        for uri, data, sha256 in (
            (self.rows_uri(unit.name), sealed.rows, content),
            (self.excluded_uri(unit.name), sealed.excluded, hashlib.sha256(sealed.excluded).hexdigest()),
        ):
            self.store.write(uri, data)
            name = uri[len(self.uri) :].strip("/")
            outputs[name] = {"sha256": sha256, "bytes": len(data)}
        manifest = {"unit": unit.name, "input": unit.identity, "outputs": outputs, "counts": sealed.counts.to_dict()}
        name = f"{unit.name}.{unit.identity}.{content[:ID_DIGITS]}.json"
        self.store.write(storage.join(self.uri, "manifests", name), to_json_bytes(manifest))

    def counts_of(self, unit: Unit) -> Counts | None:
        """The counts in a unit's manifest; None: there is none, and the unit is not done."""
        # the rows come first, and on a disk a folder of very many manifests would be listed for each unit
        if not storage.is_remote(self.uri) and not self.store.exists(self.rows_uri(unit.name)):
            return None
        prefix = storage.join(self.uri, "manifests", f"{unit.name}.{unit.identity}.")
        uri = self.store.call(storage.first_beginning, prefix, "list")
        return None if uri is None else self._counts_in(uri)

    def counts_among(self, units: Sequence[Unit]) -> dict[str, Counts]:
        """The counts of units that are done, by name; from one listing, which may miss some: it is as long as `units`."""
        if not storage.is_remote(self.uri):  # as above
            units = [unit for unit in units if self.store.exists(self.rows_uri(unit.name))]
        if not units:
            return {}
        folder, first = storage.join(self.uri, "manifests"), min(unit.name for unit in units)
        names = self.store.call(lambda place: storage.names_after(place, first, len(units)), folder, "list")
        wanted = {(unit.name, unit.identity) for unit in units}
        found = [_parse_manifest(name, f"{folder}/{name}") for name in names if name.endswith(".json")]
        found = [manifest for manifest in found if (manifest.unit, manifest.identity) in wanted]
        return dict(zip((manifest.unit for manifest in found), self._each(found), strict=True))

    def counts(self, manifests: Sequence[ManifestName]) -> Counts:
        """The sum of the manifests' counts. Reads all of them."""
        total = Counts()
        for counts in self._each(manifests):
            total.add(counts)
        return total

    def _each(self, manifests: Sequence[ManifestName]) -> Iterator[Counts]:
        with ThreadPoolExecutor(max_workers=16) as pool:
            yield from pool.map(lambda manifest: self._counts_in(manifest.uri), manifests)

    def _counts_in(self, manifest: str) -> Counts:
        return Counts.from_dict(json.loads(self.store.read(manifest))["counts"])

    def remove(self, manifests: Iterable[ManifestName], with_outputs: bool = False) -> None:
        """Make units not done. The manifest is deleted first, so that none names missing outputs; the
        rows last, so that a listing of them shows what a killed run left."""
        for manifest in manifests:
            uris = [manifest.uri]
            uris += [self.excluded_uri(manifest.unit), self.rows_uri(manifest.unit)] if with_outputs else []
            for uri in uris:
                self.store.delete(uri)

    def remove_strays(self, units: Collection[str]) -> None:
        """Delete outputs of units that are not in `units`: a killed `remove` leaves them."""
        folders = ((self.uri, self.suffix), (self.excluded_folder, ".jsonl"))
        for folder, suffix in folders:
            for name in self.store.list_names(folder):
                if name.endswith(suffix) and name.removesuffix(suffix) not in units:
                    self.store.delete(storage.join(folder, name))

    def describe(self, description: dict[str, Any]) -> None:
        """Write stage.json, which describes the directory, before anything else is written there.

        Raises UsageError if the directory belongs to something else.
        """
        uri = storage.join(self.uri, "stage.json")
        if self.store.exists(uri):
            if read_description(self.uri, self.store) != description:
                raise UsageError(
                    f"{self.uri} holds the files of another fingerprint: its stage.json is not this run's. Move it "
                    f"away or give another --output"
                )
            return
        try:
            foreign = self.store.list_files(self.uri)
        except FileNotFoundError:
            foreign = []
        if foreign and self.store.exists(uri):  # another run began it between the two looks
            return self.describe(description)
        if foreign:
            raise UsageError(
                f"{self.uri} holds files of no stage ({foreign[0].name}): move them away or give another --output"
            )
        self.store.write(uri, to_json_bytes(description))

    def withdraw(self) -> None:
        """Delete the directory of an input that was refused when it was read, unless some unit is done."""
        if not any("/manifests/" in f"/{entry.name}" for entry in self.store.list_files(self.uri)):
            self.store.delete_folder(self.uri)


def read_description(directory: str, store: Store) -> dict[str, Any]:
    """A stage's stage.json. Raises UsageError if it is none."""
    return read_json(storage.join(directory, "stage.json"), store)


def read_json(uri: str, store: Store) -> dict[str, Any]:
    """The object in a JSON file. Raises UsageError for a file that holds none."""
    try:
        found = json.loads(store.read(uri))
    except ValueError as error:
        raise UsageError(f"{uri} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{uri} holds {type(found).__name__}, expected an object")
    return found


def to_json_bytes(data: dict[str, Any]) -> bytes:
    """Readable JSON with equal bytes for equal data: indented, keys in the order given."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _parse_manifest(name: str, uri: str) -> ManifestName:
    parts = name.removesuffix(".json").rsplit(".", 2)
    if len(parts) != 3:
        raise UsageError(f"{uri} is not the name of a manifest (UNIT.INPUT.OUTPUT.json); remove it")
    return ManifestName(unit=parts[0], identity=parts[1], output=parts[2], uri=uri)
